//! Where SATA disks and CD drives are: ports of controllers.

use std::fmt;
use std::sync::Arc;

use config::ControllerName;
use devices::ahci::Ahci;
use pci::Function;

/// A SATA controller of the VM.
pub struct SataController {
    /// Its name in the description, if it has one.
    pub name: Option<ControllerName>,
    pub ahci: Arc<Ahci>,
}

impl SataController {
    /// All its ports.
    pub fn ports(&self) -> impl Iterator<Item = SataPort> {
        (0..self.ahci.ports()).map(|port| SataPort::new(&self.ahci, port))
    }
}

/// "s (ahci 00:03.0)", or without a name "ahci 00:03.0".
impl fmt::Display for SataController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.ahci.name()),
            None => f.write_str(self.ahci.name()),
        }
    }
}

/// A port of a controller.
#[derive(Clone)]
pub struct SataPort {
    pub controller: Arc<Ahci>,
    pub number: u8,
}

impl SataPort {
    pub fn new(controller: &Arc<Ahci>, number: u8) -> SataPort {
        SataPort { controller: controller.clone(), number }
    }
}

impl PartialEq for SataPort {
    fn eq(&self, other: &SataPort) -> bool {
        Arc::ptr_eq(&self.controller, &other.controller) && self.number == other.number
    }
}

/// "ahci 00:03.0, port 1".
impl fmt::Display for SataPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, port {}", self.controller.name(), self.number)
    }
}
