//! The host's disks, for people who want to give one to a VM.

mod signature;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use signature::Content;

use crate::{Host, PciAddress, PciDevice, attribute, link_name, names};

/// A disk of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostDisk {
    /// The kernel's name, which may be another one after the next start: "sda".
    pub name: String,
    /// A name that stays: below /dev/disk/by-id. `None` where the disk has no serial number, or there is no udev.
    pub stable: Option<PathBuf>,
    /// Size in bytes.
    pub bytes: u64,
    /// Smallest transfer in bytes.
    pub logical_sector: u32,
    /// What the disk writes without reading first, in bytes.
    pub physical_sector: u32,
    /// The maker's name for it.
    pub model: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Whether it spins.
    pub rotational: bool,
    /// Whether it cannot be written to.
    pub read_only: bool,
    /// Whether it can be taken out.
    pub removable: bool,
    /// The PCI function to which it is connected.
    pub controller: Option<Controller>,
    /// Its number on an NVMe controller (NSID). The numbers in the kernel's names (`nvme0n1`) are others: the kernel
    /// counts as it finds.
    pub namespace: Option<u32>,
    /// What is on it outside of partitions; `None` where it could not be read.
    pub contents: Option<Vec<Content>>,
    /// Its partitions.
    pub partitions: Vec<Partition>,
    /// Why a VM may not have it now, a sentence each; empty when it may.
    pub used: Vec<String>,
}

/// A partition of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// The kernel's name: "sda1".
    pub name: String,
    /// The name that the table of partitions has for it.
    pub label: Option<String>,
    /// Size in bytes.
    pub bytes: u64,
    /// What is on it; `None` where it could not be read.
    pub contents: Option<Vec<Content>>,
}

/// The PCI function to which a disk is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Controller {
    /// Where it sits.
    #[serde(serialize_with = "as_text")]
    pub address: PciAddress,
    /// The host's driver for it.
    pub driver: Option<String>,
    /// Its IOMMU group, if an IOMMU translates for it.
    pub group: Option<u32>,
}

/// Class of mass storage controllers (PCI Code and ID Assignment, 1.2).
const STORAGE_CLASS: u32 = 0x01;

/// A disk controller with the driver vfio-pci.
#[derive(Debug, Clone)]
pub struct VfioController {
    /// The controller.
    pub device: PciDevice,
    /// Who uses it now, a sentence each; empty when a VM may have it.
    pub used: Vec<String>,
}

fn as_text<S: serde::Serializer>(address: &PciAddress, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(address)
}

impl HostDisk {
    /// The path to give to a VM: the name that stays, if there is one.
    pub fn path(&self) -> PathBuf {
        self.stable.clone().unwrap_or_else(|| device(&self.name))
    }
}

/// Names of udev begin with these, the ones that say most to people first.
const KINDS: [&str; 8] = ["ata-", "nvme-", "scsi-", "virtio-", "usb-", "mmc-", "wwn-", ""];

impl Host {
    /// All disks: block devices of hardware, with a medium. What the kernel makes of others (loop devices, md, LVM) and
    /// optical drives are not among them, nor are hidden ones: the single paths to an NVMe namespace with several,
    /// which have nothing in /dev.
    pub fn disks(&self) -> Vec<HostDisk> {
        let blocks = self.path("/sys/block");
        let optical = |name: &str| name.starts_with("sr") || name.starts_with("fd");
        let hidden = |name: &str| attribute(&blocks.join(name).join("hidden")).as_deref() == Some("1");
        let is_disk =
            |name: &String| blocks.join(name).join("device").exists() && !optical(name) && !hidden(name);
        let disks = names(&blocks).into_iter().filter(is_disk).map(|name| self.disk(name));
        disks.filter(|disk| disk.bytes > 0).collect()
    }

    /// The disk controllers that are with vfio-pci, for VMs: the kernel does not see what disks are on them.
    pub fn controllers_with_vfio(&self) -> Vec<VfioController> {
        let addresses = names(&self.path("/sys/bus/pci/devices")).into_iter();
        let devices = addresses.filter_map(|name| PciDevice::open(self, name.parse().ok()?).ok());
        let devices = devices.filter(|device| {
            device.class >> 16 == STORAGE_CLASS && device.driver.as_deref() == Some("vfio-pci")
        });
        let with_users = devices.map(|device| VfioController {
            used: self.device_in_use(&device).iter().map(ToString::to_string).collect(),
            device,
        });
        with_users.collect()
    }

    fn disk(&self, name: String) -> HostDisk {
        let dir = self.path("/sys/block").join(&name);
        let flag = |file: &str| attribute(&dir.join(file)).as_deref() == Some("1");
        let sector =
            |file: &str| attribute(&dir.join(file)).and_then(|text| text.parse().ok()).unwrap_or(512);
        let bytes = size(&dir);
        let parts = names(&dir).into_iter().filter(|part| dir.join(part).join("partition").exists());
        HostDisk {
            stable: self.stable_name(&name),
            bytes,
            logical_sector: sector("queue/logical_block_size"),
            physical_sector: sector("queue/physical_block_size"),
            model: text(&dir.join("device/model")),
            serial: serial_number(&dir),
            rotational: flag("queue/rotational"),
            read_only: flag("ro"),
            removable: flag("removable"),
            controller: self.controller(&dir),
            namespace: attribute(&dir.join("nsid")).and_then(|number| number.parse().ok()),
            contents: self.contents(&name, bytes),
            partitions: parts.map(|part| self.partition(&dir.join(&part), part)).collect(),
            used: self.block_in_use(&name).iter().map(ToString::to_string).collect(),
            name,
        }
    }

    fn partition(&self, dir: &Path, name: String) -> Partition {
        let uevent = attribute(&dir.join("uevent")).unwrap_or_default();
        let label = uevent.lines().find_map(|line| line.strip_prefix("PARTNAME=")).map(str::to_owned);
        let bytes = size(dir);
        Partition { label, bytes, contents: self.contents(&name, bytes), name }
    }

    /// What is on a block device.
    pub(crate) fn contents(&self, name: &str, bytes: u64) -> Option<Vec<Content>> {
        signature::of(&self.path(device(name)), bytes)
    }

    /// The name below /dev/disk/by-id that says most about the disk itself.
    fn stable_name(&self, name: &str) -> Option<PathBuf> {
        let folder = Path::new("/dev/disk/by-id");
        let here = self.path(folder);
        let leads_here = |link: &String| link_name(&here.join(link)).is_some_and(|target| target == name);
        let rank = |link: &String| {
            let by_number = link.starts_with("nvme-eui.") || link.starts_with("nvme-uuid.");
            let kind = KINDS.iter().position(|kind| link.starts_with(kind)).unwrap_or(KINDS.len());
            (by_number, kind, link.len())
        };
        names(&here).into_iter().filter(leads_here).min_by_key(rank).map(|link| folder.join(link))
    }

    /// The PCI function that the block device of this number (stat(2), `st_rdev`) hangs on, whole disk or partition.
    pub fn controller_of(&self, number: u64) -> Option<PciAddress> {
        let link = self.path(format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number)));
        let place = link.canonicalize().ok()?;
        let whole = if place.join("partition").exists() { place.parent()? } else { &place };
        self.controller(whole).map(|controller| controller.address)
    }

    /// The PCI function closest above a disk. NVMe namespaces that several controllers could share hang on a
    /// subsystem, which has links to its controllers.
    fn controller(&self, dir: &Path) -> Option<Controller> {
        let device = dir.join("device").canonicalize().ok()?;
        let direct = closest_function(&device);
        let address = direct.or_else(|| {
            let links = names(&device).into_iter().filter(|name| name.starts_with("nvme"));
            links.into_iter().find_map(|name| closest_function(&device.join(name).canonicalize().ok()?))
        })?;
        let device = PciDevice::open(self, address).ok()?;
        Some(Controller { address, driver: device.driver, group: device.group })
    }
}

fn closest_function(place: &Path) -> Option<PciAddress> {
    place.ancestors().find_map(|dir| dir.file_name()?.to_str()?.parse().ok())
}

/// Where the kernel's block device is; in its name an exclamation mark stands for a slash.
pub(crate) fn device(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

/// sysfs has sizes in sectors of 512 bytes, whatever the disk's are.
pub(crate) fn size(dir: &Path) -> u64 {
    attribute(&dir.join("size")).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0).saturating_mul(512)
}

/// Devices put anything into these fields; only printable ASCII goes further.
fn text(path: &Path) -> Option<String> {
    printable(&std::fs::read(path).ok()?)
}

fn printable(bytes: &[u8]) -> Option<String> {
    let text: String = bytes.iter().map(|b| char::from(*b)).filter(|c| (' '..='~').contains(c)).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The serial number of a disk, from the folder of its block device in sysfs (of the whole disk, not of a partition).
///
/// NVMe and MMC have a file, virtio one beside the queue, SCSI and ATA the page 0x80 of their vital product data:
/// four bytes of header, then the number (SPC-4, 7.8.13). The kernel asks no disk behind USB for that page, as many
/// fail at it; there it is the USB device that has a number.
pub fn serial_number(dir: &Path) -> Option<String> {
    let page = || {
        let page = std::fs::read(dir.join("device/vpd_pg80")).ok()?;
        printable(page.get(4..)?)
    };
    let usb = || {
        let place = dir.canonicalize().ok()?;
        let device = place.ancestors().find(|above| above.join("idVendor").exists())?;
        text(&device.join("serial"))
    };
    text(&dir.join("device/serial")).or_else(|| text(&dir.join("serial"))).or_else(page).or_else(usb)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    fn with_a_disk() -> FakeHost {
        let fake = FakeHost::new();
        fake.pci("0000:00:1f.2", 0x010601, Some("ahci"), 7);
        fake.disk("0000:00:1f.2", "ata1/sda", "8:0");
        fake.link("/sys/block/sda/device", "/sys/devices/pci0000:00/0000:00:1f.2/ata1");
        fake.file("/sys/block/sda/size", "2048\n");
        fake.file("/sys/block/sda/queue/logical_block_size", "512\n");
        fake.file("/sys/block/sda/queue/physical_block_size", "4096\n");
        fake.file("/sys/block/sda/queue/rotational", "1\n");
        fake.file("/sys/devices/pci0000:00/0000:00:1f.2/ata1/model", "ST4000VN008-2DR1\n");
        fake.file("/sys/devices/pci0000:00/0000:00:1f.2/ata1/vpd_pg80", "\0\u{1}\0\u{8}  ZGY0ABCD");
        fake.file("/dev/sda", &"\0".repeat(1 << 16));
        fake
    }

    #[test]
    fn a_disk_is_described_with_its_controller_and_the_name_that_stays() {
        let fake = with_a_disk();
        for name in ["wwn-0x5000c500a1b2c3d4", "ata-ST4000VN008-2DR166_ZGY0ABCD", "scsi-0ATA_ST4000"] {
            fake.link(format!("/dev/disk/by-id/{name}"), "/dev/sda");
        }
        let disks = fake.host().disks();
        let [disk] = &disks[..] else { panic!("{disks:?}") };
        assert_eq!(disk.path(), Path::new("/dev/disk/by-id/ata-ST4000VN008-2DR166_ZGY0ABCD"));
        assert_eq!((disk.bytes, disk.logical_sector, disk.physical_sector), (1 << 20, 512, 4096));
        assert_eq!(disk.model.as_deref(), Some("ST4000VN008-2DR1"));
        assert_eq!(disk.serial.as_deref(), Some("ZGY0ABCD"));
        let controller = disk.controller.as_ref().unwrap();
        assert_eq!((controller.address.to_string().as_str(), controller.group), ("0000:00:1f.2", Some(7)));
        assert!(disk.rotational && !disk.read_only && disk.used.is_empty());
        assert_eq!(disk.contents.as_deref(), Some(&[][..]));
    }

    #[test]
    fn a_block_device_leads_to_its_controller_by_its_number() {
        let fake = with_a_disk();
        fake.partition("sda", "sda1", "8:1");
        let host = fake.host();
        for number in [libc::makedev(8, 0), libc::makedev(8, 1)] {
            assert_eq!(
                host.controller_of(number).map(|address| address.to_string()).as_deref(),
                Some("0000:00:1f.2")
            );
        }
        assert_eq!(host.controller_of(libc::makedev(8, 16)), None);
    }

    #[test]
    fn disk_controllers_with_vfio_are_found_though_they_have_no_block_devices() {
        let fake = with_a_disk();
        fake.pci("0000:03:00.0", 0x010802, Some("vfio-pci"), 9);
        fake.pci("0000:04:00.0", 0x020000, Some("vfio-pci"), 10);
        let host = fake.host();
        let found = host.controllers_with_vfio();
        let [one] = &found[..] else {
            panic!("neither a network card nor what the kernel drives: {found:?}")
        };
        assert_eq!((one.device.address.to_string().as_str(), one.used.len()), ("0000:03:00.0", 0));
        assert_eq!(host.disks().len(), 1);
    }

    #[test]
    fn a_disk_behind_usb_has_the_number_of_its_usb_device_unless_it_says_one_itself() {
        let fake = FakeHost::new();
        fake.pci("0000:00:14.0", 0x0c0330, Some("xhci_hcd"), 3);
        let usb = "/sys/devices/pci0000:00/0000:00:14.0/usb2/2-1";
        let scsi = "2-1:1.0/host6/target6:0:0/6:0:0:0";
        fake.disk("0000:00:14.0", &format!("usb2/2-1/{scsi}/block/sdb"), "8:16");
        fake.link("/sys/block/sdb/device", format!("{usb}/{scsi}"));
        fake.file("/sys/block/sdb/size", "2048\n");
        // A hub above it, and the controller, are USB devices as well.
        fake.file("/sys/devices/pci0000:00/0000:00:14.0/usb2/idVendor", "1d6b\n");
        fake.file("/sys/devices/pci0000:00/0000:00:14.0/usb2/serial", "0000:00:14.0\n");
        fake.file(format!("{usb}/idVendor"), "0781\n");
        let serial = || fake.host().disks().remove(0).serial;
        assert_eq!(serial(), None, "that of the hub is no disk's");
        fake.file(format!("{usb}/serial"), "SAME-FIRST-20-CHARACTERS-1\n");
        assert_eq!(serial().as_deref(), Some("SAME-FIRST-20-CHARACTERS-1"));
        fake.file(format!("{usb}/{scsi}/vpd_pg80"), "\0\u{1}\0\u{4}DISK");
        assert_eq!(serial().as_deref(), Some("DISK"));
    }

    #[test]
    fn partitions_have_their_contents_and_whoever_uses_one_uses_the_disk() {
        let fake = with_a_disk();
        fake.partition("sda", "sda1", "8:1");
        fake.file("/sys/class/block/sda1/size", "1024\n");
        fake.file("/sys/class/block/sda1/uevent", "DEVTYPE=partition\nPARTNAME=root\n");
        fake.file("/dev/sda1", &("XFSB".to_owned() + &"\0".repeat(1 << 16)));
        fake.file("/proc/self/mountinfo", "22 1 8:1 / / rw - xfs /dev/sda1 rw\n");
        let disk = fake.host().disks().remove(0);
        let [part] = &disk.partitions[..] else { panic!("{disk:?}") };
        assert_eq!((part.label.as_deref(), part.bytes), (Some("root"), 1 << 19));
        assert_eq!(part.contents.as_ref().unwrap()[0].kind, "xfs");
        assert_eq!(disk.used, ["sda1 is mounted on /: this host runs from it, so it stays with the host"]);
    }

    #[test]
    fn what_is_no_hardware_or_has_no_medium_is_no_disk() {
        let fake = FakeHost::new();
        fake.virtual_disk("loop0", "7:0", None);
        fake.file("/sys/block/loop0/size", "2048\n");
        assert_eq!(fake.host().disks(), []);
        let fake = with_a_disk();
        fake.file("/sys/block/sda/size", "0\n");
        assert_eq!(fake.host().disks(), []);
    }

    #[test]
    fn a_namespace_of_several_controllers_hangs_on_one_of_them() {
        let fake = FakeHost::new();
        fake.nvme("0000:01:00.0", 9);
        fake.dir("/sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0");
        let subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0";
        fake.virtual_block("nvme-subsystem/nvme-subsys0/nvme0n1", "259:0");
        fake.link(format!("{subsystem}/nvme0"), "/sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0");
        fake.link(format!("{subsystem}/nvme0n1/device"), subsystem);
        fake.file(format!("{subsystem}/nvme0n1/size"), "8\n");
        fake.file(format!("{subsystem}/nvme0n1/nsid"), "7\n");
        fake.disk("0000:01:00.0", "nvme/nvme0/nvme0c0n1", "259:1");
        fake.link("/sys/block/nvme0c0n1/device", "/sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0");
        fake.file("/sys/block/nvme0c0n1/size", "8\n");
        fake.file("/sys/block/nvme0c0n1/hidden", "1\n");
        let mut disks = fake.host().disks();
        assert_eq!(disks.len(), 1, "the path to it is no disk: {disks:?}");
        let disk = disks.remove(0);
        assert_eq!(disk.namespace, Some(7), "which is not the number in its name");
        assert_eq!(disk.controller.unwrap().address.to_string(), "0000:01:00.0");
        assert_eq!(disk.contents, None, "there is nothing to read");
    }
}
