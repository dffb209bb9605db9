//! VFIO's character devices, by which iommufd has devices (Linux 6.6).

use std::path::PathBuf;

use crate::{Host, HostError, PciAddress, names};

/// What VFIO's character devices are called among the kernel's (drivers/vfio/device_cdev.c).
const NAME: &str = "vfio-dev";

impl Host {
    /// Whether the kernel's VFIO is loaded.
    pub fn has_vfio(&self) -> bool {
        self.has_devices_of(&["vfio", NAME])
    }

    /// Whether the kernel's VFIO, which must be loaded, has character devices.
    pub fn has_vfio_cdevs(&self) -> bool {
        self.has_devices_of(&[NAME])
    }

    fn has_devices_of(&self, names: &[&str]) -> bool {
        let devices = std::fs::read_to_string(self.path("/proc/devices")).unwrap_or_default();
        devices.lines().any(|line| line.split_whitespace().nth(1).is_some_and(|name| names.contains(&name)))
    }

    /// The character device of a device that is with vfio-pci.
    pub fn vfio_cdev(&self, address: PciAddress) -> Result<PathBuf, HostError> {
        let found = names(&self.device_dir(address).join("vfio-dev"));
        let name = found.into_iter().find(|name| name.starts_with("vfio"));
        let path = name.map(|name| self.path("/dev/vfio/devices").join(name));
        path.filter(|path| path.exists())
            .ok_or_else(|| HostError::NoCdev { address, kernel: self.has_vfio_cdevs() })
    }
}

#[cfg(test)]
mod tests {
    use crate::fake::FakeHost;

    #[test]
    fn a_device_with_vfio_has_a_character_device_where_the_kernel_has_them() {
        let fake = FakeHost::new();
        fake.pci("0000:01:00.0", 0x010802, Some("vfio-pci"), 9);
        let address = "01:00.0".parse().unwrap();
        let text = fake.host().vfio_cdev(address).unwrap_err().to_string();
        assert!(text.contains("0000:01:00.0") && text.contains("CONFIG_VFIO_DEVICE_CDEV"), "{text}");
        fake.dir("/sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio3");
        assert!(fake.host().vfio_cdev(address).is_err(), "sysfs has the name without the option, too");
        fake.file("/proc/devices", "Character devices:\n  1 mem\n243 vfio\n242 vfio-dev\n");
        let text = fake.host().vfio_cdev(address).unwrap_err().to_string();
        assert!(text.contains("/dev/vfio/devices"), "{text}");
        fake.file("/dev/vfio/devices/vfio3", "");
        assert_eq!(fake.host().vfio_cdev(address).unwrap(), fake.path("/dev/vfio/devices/vfio3"));
    }

    #[test]
    fn the_kernel_says_whether_it_has_character_devices() {
        let fake = FakeHost::new();
        assert!(!fake.host().has_vfio_cdevs() && !fake.host().has_vfio());
        fake.file("/proc/devices", "Character devices:\n243 vfio\n\nBlock devices:\n  7 loop\n");
        assert!(!fake.host().has_vfio_cdevs() && fake.host().has_vfio());
        fake.file("/proc/devices", "243 vfio\n242 vfio-dev\n");
        assert!(fake.host().has_vfio_cdevs());
    }
}
