//! A device of the host for the guest alone.

use std::fmt;
use std::str::FromStr;

use super::distinct::Identified;
use super::dma::{OnFault, OnRequest};
use crate::values::Invalid;
use crate::values::address::PciAddress;
use crate::values::count::BootIndex;
use crate::values::name::DomainName;
use crate::values::path::HostPath;

/// A PCI function of the host that the guest gets for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assign {
    /// Its address on the host.
    pub address: PciAddress,
    /// The domain that it translates through. Devices with the same name share one.
    pub domain: DomainName,
    /// What happens when its DMA fails; `None` for what the VM has ([`super::Dma::on_fault`]).
    pub on_fault: Option<OnFault>,
    /// What happens when this host wants it back.
    pub on_request: OnRequest,
    /// Its place among what firmware boots.
    pub boot_index: Option<BootIndex>,
    /// The expansion ROM that the guest sees at it.
    pub rom: Rom,
}

/// Which expansion ROM a guest sees at a device: `on`, `off` or a path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Rom {
    /// The device's own, if it has one.
    #[default]
    Own,
    /// None.
    Off,
    /// The bytes of this file.
    File(HostPath),
}

impl FromStr for Rom {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Rom, Invalid> {
        match text {
            "on" => Ok(Rom::Own),
            "off" => Ok(Rom::Off),
            path => {
                HostPath::unless_word(path, "no choice of an expansion ROM", &["on", "off"]).map(Rom::File)
            }
        }
    }
}

/// As it is written in flags and TOML.
impl fmt::Display for Rom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rom::Own => f.write_str("on"),
            Rom::Off => f.write_str("off"),
            Rom::File(path) => path.fmt(f),
        }
    }
}

impl Assign {
    /// The function at this address, in the common guest domain.
    pub fn new(address: PciAddress) -> Assign {
        Assign {
            address,
            domain: DomainName::default(),
            on_fault: None,
            on_request: OnRequest::default(),
            boot_index: None,
            rom: Rom::default(),
        }
    }
}

impl Identified for Assign {
    fn identity(&self) -> Option<String> {
        Some(format!("PCI device {}", self.address))
    }
}
