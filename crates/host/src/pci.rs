//! One PCI function of the host, as sysfs describes it.

use std::io;
use std::path::PathBuf;

use crate::{Host, PciAddress, link_name};

/// A PCI function and the facts that sysfs has about it, read once.
#[derive(Debug, Clone)]
pub struct PciDevice {
    /// Where it sits.
    pub address: PciAddress,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code: class, subclass, programming interface (24 bits).
    pub class: u32,
    /// The driver that has it, if one has.
    pub driver: Option<String>,
    /// Its IOMMU group; `None` when no IOMMU translates for it.
    pub group: Option<u32>,
}

/// A fact that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No such function on this host.
    #[error("there is no PCI device {address} on this host. `lspci -D` lists its devices")]
    NoDevice {
        /// The address asked for.
        address: PciAddress,
    },
    /// The function has no IOMMU group.
    #[error(
        "PCI device {address} belongs to no IOMMU group, so nothing would confine its DMA. {}",
        if *.iommus { "An IOMMU is there, but it does not translate for this device: it may be behind a unit \
            that the firmware disables" } else { "Enable VT-d (Intel) or AMD-Vi/IOMMU (AMD) in the firmware \
            set-up, and on Intel add intel_iommu=on to the kernel's command line (AMD: remove amd_iommu=off)" }
    )]
    NoGroup {
        /// The device.
        address: PciAddress,
        /// Whether the host has an active IOMMU.
        iommus: bool,
    },
    /// VFIO has no character device for it.
    #[error(
        "PCI device {address} has no VFIO character device, so iommufd cannot use it. {}, or use VFIO type1 \
         (--dma type1)",
        if *.kernel { "See that it is bound to vfio-pci and that /dev/vfio/devices is there (devtmpfs, udev)" }
        else { "Use a kernel with CONFIG_VFIO_DEVICE_CDEV (Linux 6.6 or later)" }
    )]
    NoCdev {
        /// The device.
        address: PciAddress,
        /// Whether the kernel has character devices for others.
        kernel: bool,
    },
    /// A file of sysfs or procfs could not be read or made sense of.
    #[error("cannot read {what} from {}: {cause}. Check that /sys and /proc are mounted", path.display())]
    Read {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
}

impl PciDevice {
    /// Reads the facts about a function of `host`.
    pub fn open(host: &Host, address: PciAddress) -> Result<PciDevice, HostError> {
        let dir = host.device_dir(address);
        if !dir.exists() {
            return Err(HostError::NoDevice { address });
        }
        let hex = |name: &'static str| {
            let path = dir.join(name);
            let fail = |cause| HostError::Read { what: name, path: path.clone(), cause };
            let text = std::fs::read_to_string(&path).map_err(fail)?;
            let digits = text.trim().trim_start_matches("0x");
            let wrong =
                |_| fail(io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no number")));
            u32::from_str_radix(digits, 16).map_err(wrong)
        };
        Ok(PciDevice {
            address,
            vendor: hex("vendor")? as u16,
            device: hex("device")? as u16,
            class: hex("class")?,
            driver: link_name(&dir.join("driver")),
            group: link_name(&dir.join("iommu_group")).and_then(|name| name.parse().ok()),
        })
    }

    /// The IOMMU group's number, or the error that says how to get one.
    pub fn require_group(&self, host: &Host) -> Result<u32, HostError> {
        let none = || HostError::NoGroup { address: self.address, iommus: !host.iommus().is_empty() };
        self.group.ok_or_else(none)
    }

    /// Whether it is a bridge (class 06): the host's own, which no guest can have.
    pub fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }
}

impl std::fmt::Display for PciDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let driver = self.driver.as_deref().map_or("no driver".to_owned(), |name| format!("driver {name}"));
        write!(
            f,
            "{} [{:04x}:{:04x}] {}, {driver}",
            self.address,
            self.vendor,
            self.device,
            class(self.class)
        )
    }
}

/// A word for a class code (PCI Code and ID Assignment Specification, section 1).
pub(crate) fn class(code: u32) -> &'static str {
    match (code >> 16, code >> 8 & 0xff) {
        (0x01, 0x06) => "SATA controller",
        (0x01, 0x08) => "NVMe controller",
        (0x01, _) => "storage controller",
        (0x02, _) => "network controller",
        (0x03, _) => "display controller",
        (0x04, _) => "multimedia device",
        (0x06, 0x00) => "host bridge",
        (0x06, 0x01) => "ISA bridge",
        (0x06, 0x04) => "PCI bridge",
        (0x06, _) => "bridge",
        (0x0c, 0x03) => "USB controller",
        (0x0c, 0x05) => "SMBus controller",
        _ => "device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    #[test]
    fn facts_are_read_as_sysfs_has_them() {
        let fake = FakeHost::new();
        fake.nvme("0000:01:00.0", 9);
        let device = PciDevice::open(&fake.host(), "01:00.0".parse().unwrap()).unwrap();
        assert_eq!((device.vendor, device.device, device.class), (0x1b36, 0x0010, 0x010802));
        assert_eq!((device.driver.as_deref(), device.group), (Some("nvme"), Some(9)));
        assert_eq!(device.to_string(), "0000:01:00.0 [1b36:0010] NVMe controller, driver nvme");
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let error = PciDevice::open(&FakeHost::new().host(), "05:00.0".parse().unwrap()).unwrap_err();
        assert!(
            error.to_string().starts_with("there is no PCI device 0000:05:00.0 on this host."),
            "{error}"
        );
    }

    #[test]
    fn without_an_iommu_the_error_says_how_to_enable_it() {
        let fake = FakeHost::new();
        fake.nvme("0000:01:00.0", 9);
        fake.remove("/sys/bus/pci/devices/0000:01:00.0/iommu_group");
        let device = PciDevice::open(&fake.host(), "01:00.0".parse().unwrap()).unwrap();
        let error = device.require_group(&fake.host()).unwrap_err().to_string();
        assert!(error.contains("intel_iommu=on") && error.contains("AMD-Vi"), "{error}");
    }
}
