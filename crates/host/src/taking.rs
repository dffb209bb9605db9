//! What would prevent taking a device, found without a change.

use std::path::PathBuf;

use crate::bind::VFIO;
use crate::{BindError, Host, PciAddress, PciDevice, Reason, attribute, may_write, names};

impl Host {
    /// Everything that is known to prevent this process from taking a device for vfio-pci, beside its use by the host
    /// ([`Host::device_in_use`]): another skep has it, it takes root, there is no vfio-pci. Nothing is changed or loaded.
    pub fn cannot_take(&self, device: &PciDevice) -> Vec<BindError> {
        let address = device.address;
        let with_vfio = device.driver.as_deref() == Some(VFIO);
        let record = match self.record(address) {
            Ok(record) => record,
            // As in [`Host::bind_to_vfio`]: root has reserved it for this user, and nothing is changed.
            Err(BindError::Record { cause, .. }) if with_vfio && cause.is_denied() => return Vec::new(),
            Err(error) => return vec![error],
        };
        if let Some(record) = record.as_ref().filter(|record| self.is_alive(record)) {
            // Once that one has it open, its use by the host names the same process.
            let open = self.device_in_use(device).iter().any(|reason| matches!(reason, Reason::Vfio { .. }));
            return if open { Vec::new() } else { vec![BindError::Taken { address, pid: record.pid }] };
        }
        if with_vfio && record.is_none() {
            return Vec::new();
        }
        let mut found = Vec::new();
        // One refusal is enough.
        found.extend(self.steps(device).into_iter().find_map(|(step, path)| {
            let cause = may_write(&path).err()?;
            Some(self.step_failed(step, address, path, cause))
        }));
        if !with_vfio && !self.path("/sys/bus/pci/drivers").join(VFIO).exists() {
            found.extend(self.kernel.can_load(VFIO).err().map(|cause| BindError::NoVfio { cause }));
        }
        found
    }

    /// What is written to take a device.
    fn steps(&self, device: &PciDevice) -> Vec<(&'static str, PathBuf)> {
        let home = self.device_dir(device.address);
        let mut steps = vec![("choose the driver of", home.join("driver_override"))];
        if device.driver.as_deref().is_some_and(|driver| driver != VFIO) {
            steps.push(("unbind", home.join("driver/unbind")));
        }
        steps.push(("probe a driver for", self.path("/sys/bus/pci/drivers_probe")));
        steps
    }

    /// Whether the IOMMU remaps interrupts, so that no device raises another's (Intel VT-d 4.1, chapter 5). `None` where
    /// the kernel does not say. Its names of interrupt controllers begin with IR where they are behind the remapping.
    pub fn remaps_interrupts(&self) -> Option<bool> {
        let text = attribute(&self.path("/proc/interrupts"))?;
        let is_chip = |word: &&str| word.contains("IO-APIC") || word.contains("PCI-MSI");
        let mut chips = text.split_whitespace().filter(is_chip).peekable();
        chips.peek()?;
        Some(chips.any(|chip| chip.starts_with("IR-")))
    }

    /// Whether a module (`vfio_iommu_type1`, `iommufd`) lets devices be without interrupt remapping, or will when it is
    /// loaded, as far as its parameter, the kernel's command line or modprobe's files say so.
    pub fn allows_unsafe_interrupts(&self, module: &str) -> bool {
        const PARAMETER: &str = "allow_unsafe_interrupts";
        if let Some(value) = attribute(&self.path(format!("/sys/module/{module}/parameters/{PARAMETER}"))) {
            return value == "Y";
        }
        let set = |text: &str| {
            text.split_whitespace().any(|word| {
                word.split_once('=').is_some_and(|(name, value)| {
                    name.ends_with(PARAMETER) && matches!(value, "1" | "Y" | "y")
                })
            })
        };
        let folders = ["/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/lib/modprobe.d"];
        let files = folders.iter().flat_map(|folder| {
            let folder = self.path(folder);
            names(&folder).into_iter().map(move |name| folder.join(name))
        });
        std::iter::once(self.path("/proc/cmdline")).chain(files).any(|file| {
            attribute(&file).is_some_and(|text| text.lines().any(|line| line.contains(module) && set(line)))
        })
    }

    /// The namespaces that the kernel knows of an NVMe controller, by their numbers (NSID). `None` where the kernel does
    /// not drive it, or has not brought it up.
    pub fn nvme_namespaces(&self, device: &PciDevice) -> Option<Vec<u32>> {
        let home = self.device_dir(device.address).canonicalize().ok()?;
        let controllers = names(&home.join("nvme"));
        let is_live =
            |name: &String| attribute(&home.join("nvme").join(name).join("state")).as_deref() == Some("live");
        if device.driver.as_deref() != Some("nvme") || !controllers.iter().any(is_live) {
            return None;
        }
        let blocks = self.path("/sys/block");
        let mut found: Vec<u32> = self
            .blocks_below(&home)
            .into_iter()
            .filter_map(|name| attribute(&blocks.join(name).join("nsid"))?.parse().ok())
            .collect();
        found.sort_unstable();
        found.dedup();
        Some(found)
    }

    /// The BARs of a device, as (register, what its low bits say, bytes), without those that are empty.
    pub fn bars(&self, address: PciAddress) -> Vec<HostBar> {
        let text = attribute(&self.device_dir(address).join("resource")).unwrap_or_default();
        let number = |word: Option<&str>| u64::from_str_radix(word?.trim_start_matches("0x"), 16).ok();
        let bar = |(register, line): (usize, &str)| {
            let mut words = line.split_whitespace();
            let (first, last, flags) = (number(words.next())?, number(words.next())?, number(words.next())?);
            let size = last.checked_sub(first)?.checked_add(1)?;
            // PCI keeps the low bits of the register among the flags (linux/ioport.h).
            let (io, memory64, prefetchable) =
                (flags & 0x100 != 0, flags & 0x10_0000 != 0, flags & 0x2000 != 0);
            (flags != 0 && size > 1).then_some(HostBar { register, size, io, memory64, prefetchable })
        };
        text.lines().take(6).enumerate().filter_map(bar).collect()
    }
}

/// A BAR of a device of the host (sysfs, `resource`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostBar {
    /// Register number, 0 to 5.
    pub register: usize,
    /// Bytes or ports.
    pub size: u64,
    /// I/O ports, not memory.
    pub io: bool,
    /// Memory that may lie above 4 GiB.
    pub memory64: bool,
    /// Reads have no side effects.
    pub prefetchable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    const BDF: &str = "0000:01:00.0";

    fn texts(fake: &FakeHost) -> Vec<String> {
        let host = fake.host();
        let device = PciDevice::open(&host, BDF.parse().unwrap()).unwrap();
        host.cannot_take(&device).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_keeps_a_device_from_being_taken_is_known_with_nothing_touched() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        fake.file("/sys/bus/pci/drivers_probe", "");
        fake.file("/sys/bus/pci/drivers/nvme/unbind", "");
        assert_eq!(texts(&fake), [""; 0]);
        fake.remove("/sys/bus/pci/drivers/vfio-pci");
        assert_eq!(texts(&fake), [""; 0], "it can be loaded");
        fake.no_modules();
        fake.remove(&format!("/sys/devices/pci0000:00/{BDF}/driver_override"));
        let found = texts(&fake);
        assert!(found.len() == 2 && found[0].contains("cannot choose the driver of"), "{found:?}");
        assert!(found[1].contains("vfio-pci driver is not loaded"), "{found:?}");
        assert_eq!(fake.writes(), 0);
        // With vfio-pci already, as root has set it aside for a user, there is nothing to write.
        let aside = FakeHost::new();
        aside.pci(BDF, 0x010802, Some("vfio-pci"), 9);
        assert_eq!(texts(&aside), [""; 0]);
    }

    #[test]
    fn a_device_that_another_vm_has_is_known() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        let bound = host.bind_to_vfio(&PciDevice::open(&host, BDF.parse().unwrap()).unwrap()).unwrap();
        let found = texts(&fake);
        assert!(found[0].contains(&format!("in use by process {}", std::process::id())), "{found:?}");
        // Its use by the host says it once it is open, and once is enough.
        fake.link("/proc/77/fd/5", "/dev/vfio/9");
        fake.file("/proc/77/comm", "skep\n");
        assert_eq!(texts(&fake), [""; 0]);
        fake.remove("/proc/77/fd/5");
        bound.give_back().unwrap();
    }

    #[test]
    fn interrupt_remapping_shows_in_the_names_of_interrupt_controllers() {
        let fake = FakeHost::new();
        assert_eq!(fake.host().remaps_interrupts(), None);
        let interrupts = |chips: [&str; 2]| {
            let [first, second] = chips;
            format!(
                "   CPU0\n  4: 36 {first} 4-edge ttyS0\n 24: 0 {second} 0-edge nvme0q0\nNMI: 0 Non-maskable\n"
            )
        };
        fake.file("/proc/interrupts", &interrupts(["IO-APIC", "PCI-MSI-0000:00:1f.2"]));
        assert_eq!(fake.host().remaps_interrupts(), Some(false));
        fake.file("/proc/interrupts", &interrupts(["IR-IO-APIC", "IR-PCI-MSIX-0000:00:1f.2"]));
        assert_eq!(fake.host().remaps_interrupts(), Some(true));
        fake.file("/proc/interrupts", "   CPU0\n  4: 36 GICv3 4 Level uart\n");
        assert_eq!(fake.host().remaps_interrupts(), None);
    }

    #[test]
    fn a_module_that_does_without_remapping_is_known_loaded_or_not() {
        let fake = FakeHost::new();
        let allows = || fake.host().allows_unsafe_interrupts("vfio_iommu_type1");
        fake.file("/proc/cmdline", "root=/dev/sda iommufd.allow_unsafe_interrupts=1\n");
        assert!(!allows() && fake.host().allows_unsafe_interrupts("iommufd"));
        fake.file("/etc/modprobe.d/vfio.conf", "options vfio_iommu_type1 allow_unsafe_interrupts=0\n");
        assert!(!allows());
        fake.file("/etc/modprobe.d/vfio.conf", "options vfio_iommu_type1 a=b allow_unsafe_interrupts=1\n");
        assert!(allows());
        fake.file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n");
        assert!(!allows(), "what is loaded counts");
    }

    #[test]
    fn namespaces_are_those_of_a_controller_that_the_kernel_has_brought_up() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let home = format!("/sys/devices/pci0000:00/{BDF}/nvme/nvme0");
        let found = || {
            let host = fake.host();
            host.nvme_namespaces(&PciDevice::open(&host, BDF.parse().unwrap()).unwrap())
        };
        assert_eq!(found(), None);
        fake.file(format!("{home}/state"), "live\n");
        assert_eq!(found(), Some(vec![]));
        for (name, number, nsid) in [("nvme0n1", "259:0", "7\n"), ("nvme0n2", "259:1", "2\n")] {
            fake.disk(BDF, &format!("nvme/nvme0/{name}"), number);
            fake.file(format!("{home}/{name}/nsid"), nsid);
        }
        assert_eq!(found(), Some(vec![2, 7]));
        fake.file(format!("{home}/state"), "resetting\n");
        assert_eq!(found(), None);
    }

    #[test]
    fn bars_have_their_sizes_and_kinds() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let lines = [
            "0x00000000fe000000 0x00000000fe003fff 0x0000000000140204",
            "0x0000000000000000 0x0000000000000000 0x0000000000000000",
            "0x000000000000c000 0x000000000000c01f 0x0000000000040101",
            "0x0000000000000000 0x0000000000000000 0x0000000000000000",
            "0x0000004000000000 0x00000043ffffffff 0x000000000014220c",
        ];
        fake.file(format!("/sys/devices/pci0000:00/{BDF}/resource"), &lines.join("\n"));
        let bars: Vec<(usize, u64, bool, bool, bool)> = fake
            .host()
            .bars(BDF.parse().unwrap())
            .iter()
            .map(|bar| (bar.register, bar.size, bar.io, bar.memory64, bar.prefetchable))
            .collect();
        assert_eq!(
            bars,
            [(0, 0x4000, false, true, false), (2, 32, true, false, false), (4, 16 << 30, false, true, true)]
        );
    }
}
