//! Why the host cannot release a device.

use std::fmt;
use std::path::{Path, PathBuf};

use own::THIS_PROCESS;

use crate::{Host, PciDevice, attribute, link_name, names};

/// One reason why a device or disk may not be taken from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A block device is mounted.
    Mounted {
        /// The block device's name, `sda2`.
        block: String,
        /// The mount point.
        at: PathBuf,
    },
    /// A block device is a member of a mounted file system of several devices.
    InFilesystem {
        /// The block device.
        block: String,
        /// The file system's kind and identity.
        filesystem: String,
    },
    /// A block device is swap space.
    Swap {
        /// The block device.
        block: String,
    },
    /// Another block device stands on it: device mapper, LVM, md, bcache.
    Held {
        /// The block device.
        block: String,
        /// The one that stands on it, with its own name where it has one.
        by: String,
    },
    /// A block device is open for exclusive use, and what is on it says by whom.
    Member {
        /// The block device.
        block: String,
        /// What it is a member of: "a ZFS pool".
        of: &'static str,
    },
    /// Somebody has a block device open for themselves alone.
    Exclusive {
        /// The block device.
        block: String,
        /// Processes that have it open, one of which it may be.
        by: Vec<String>,
        /// The mark on it, which the host or a guest of such a process may have written: "a ZFS pool".
        mark: Option<&'static str>,
    },
    /// A network interface is in use.
    Interface {
        /// Its name.
        name: String,
        /// What makes it used: "has a link", "has addresses or routes", "belongs to br0".
        why: String,
    },
    /// It shows the host's console.
    Console {
        /// The frame buffer on it.
        framebuffer: String,
    },
    /// What is mounted cannot be known, so nothing is safe to take.
    Unknown {
        /// The file that could not be read.
        path: PathBuf,
    },
    /// It is with vfio-pci, and a process has it, or another device of its IOMMU group.
    Vfio {
        /// The processes.
        by: Vec<String>,
    },
    /// It is a bridge: part of the host's PCI tree.
    Bridge,
}

impl Reason {
    /// Whether it is that this very process has a block device open, and nobody else.
    pub fn is_by_this_process(&self) -> bool {
        matches!(self, Reason::Exclusive { by, .. } if by.iter().map(String::as_str).eq([THIS_PROCESS]))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The file systems from which this host itself runs cannot be unmounted.
            Reason::Mounted { block, at } if at == Path::new("/") => {
                write!(f, "{block} is mounted on /: this host runs from it, so it stays with the host")
            }
            Reason::Mounted { block, at } => {
                write!(f, "{block} is mounted on {} (`umount {}`)", at.display(), at.display())
            }
            Reason::InFilesystem { block, filesystem } => {
                write!(f, "{block} is part of a mounted file system ({filesystem}); unmount it")
            }
            Reason::Swap { block } => write!(f, "{block} is swap space (`swapoff /dev/{block}`)"),
            Reason::Held { block, by } => {
                write!(f, "{block} is held by {by} (stop that LVM, dm or md device first)")
            }
            Reason::Member { block, of } => {
                write!(f, "{block} is in use as a member of {of} (export or stop it first)")
            }
            Reason::Exclusive { block, by, mark: None } if by.is_empty() => {
                write!(
                    f,
                    "{block} is open for exclusive use: as a disk of a VM, by a ZFS pool, or mounted in another \
                     namespace (`fuser -v /dev/{block}` names a process that has it)"
                )
            }
            Reason::Exclusive { block, by, mark } => {
                let mark = mark.map(|of| format!("{of}, whose mark is on it"));
                let by: Vec<String> = by.iter().cloned().chain(mark).collect();
                write!(f, "{block} is open for exclusive use by {}", by.join(" or "))
            }
            Reason::Interface { name, why } => {
                write!(f, "network interface {name} {why} (`ip link set {name} down`)")
            }
            Reason::Console { framebuffer } => {
                write!(f, "it is the boot display and shows the host's console ({framebuffer})")
            }
            Reason::Unknown { path } => {
                write!(f, "whether it is mounted cannot be known, for {} is not readable", path.display())
            }
            Reason::Vfio { by } => write!(
                f,
                "it, or another device of its IOMMU group, is open through VFIO in {} (stop that first)",
                by.join(", ")
            ),
            Reason::Bridge => write!(f, "it is a bridge; assign the devices behind it instead"),
        }
    }
}

impl Reason {
    /// The block device that it is about, if it is about one.
    pub(crate) fn block(&self) -> Option<&str> {
        match self {
            Reason::Mounted { block, .. }
            | Reason::InFilesystem { block, .. }
            | Reason::Swap { block }
            | Reason::Held { block, .. }
            | Reason::Member { block, .. }
            | Reason::Exclusive { block, .. } => Some(block),
            Reason::Interface { .. }
            | Reason::Console { .. }
            | Reason::Unknown { .. }
            | Reason::Vfio { .. }
            | Reason::Bridge => None,
        }
    }
}

impl Host {
    /// Every reason why the host cannot release a device; empty when it can.
    pub fn device_in_use(&self, device: &PciDevice) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if device.is_bridge() {
            reasons.push(Reason::Bridge);
        }
        let Ok(home) = self.device_dir(device.address).canonicalize() else { return reasons };
        for block in self.blocks_below(&home) {
            reasons.extend(self.block_in_use(&block));
        }
        reasons.dedup();
        reasons.extend(self.interfaces_in_use(&home));
        reasons.extend(self.console_on(device, &home));
        // A device may be taken if it only waits for its driver, and no process binds it.
        if link_name(&home.join("driver")).as_deref() == Some("vfio-pci") {
            let by = self.vfio_users(device.address);
            reasons.extend((!by.is_empty()).then_some(Reason::Vfio { by }));
        }
        reasons
    }

    /// Whole disks that a PCI function carries. Their partitions are looked at with them.
    pub(crate) fn blocks_below(&self, home: &Path) -> Vec<String> {
        let blocks = self.path("/sys/block");
        let on_device = |name: &String| {
            let Ok(place) = blocks.join(name).canonicalize() else { return false };
            place.starts_with(home) || is_multipath_of(&place, home)
        };
        names(&blocks).into_iter().filter(on_device).collect()
    }

    fn interfaces_in_use(&self, home: &Path) -> Vec<Reason> {
        let class = self.path("/sys/class/net");
        let routes = attribute(&self.path("/proc/net/route")).unwrap_or_default();
        let addresses = attribute(&self.path("/proc/net/if_inet6")).unwrap_or_default();
        let reason = |name: String| {
            let dir = class.join(&name);
            if !dir.canonicalize().is_ok_and(|place| place.starts_with(home)) {
                return None;
            }
            let flags = attribute(&dir.join("flags"))?;
            let up = u32::from_str_radix(flags.trim_start_matches("0x"), 16).is_ok_and(|bits| bits & 1 != 0);
            let routed = routes.lines().any(|line| line.split_whitespace().next() == Some(&name))
                || addresses.lines().any(|line| line.split_whitespace().last() == Some(&name));
            let why = if !up {
                return None;
            } else if let Some(master) = link_name(&dir.join("master")) {
                format!("belongs to {master}")
            } else if routed {
                "is up and has addresses or routes".to_owned()
            } else if attribute(&dir.join("carrier")).as_deref() == Some("1") {
                "is up and has a link".to_owned()
            } else {
                return None;
            };
            Some(Reason::Interface { name, why })
        };
        names(&class).into_iter().filter_map(reason).collect()
    }

    /// The frame buffer that shows the console on the boot display: the device's own, or the firmware's, which
    /// is a platform device of its own that merely lies in the display's memory.
    fn console_on(&self, device: &PciDevice, home: &Path) -> Option<Reason> {
        if attribute(&self.device_dir(device.address).join("boot_vga")).as_deref() != Some("1") {
            return None;
        }
        let class = self.path("/sys/class/graphics");
        let shows = |name: &String| {
            let firmware = |place: &Path| {
                let text = place.to_string_lossy();
                ["efi-framebuffer", "simple-framebuffer", "vesa-framebuffer"]
                    .iter()
                    .any(|kind| text.contains(kind))
            };
            let place = class.join(name).canonicalize();
            name.starts_with("fb") && place.is_ok_and(|place| place.starts_with(home) || firmware(&place))
        };
        names(&class).into_iter().find(shows).map(|framebuffer| Reason::Console { framebuffer })
    }
}

/// NVMe namespaces of controllers that could share them sit below a virtual subsystem, whose folder links
/// to its controllers.
fn is_multipath_of(place: &Path, home: &Path) -> bool {
    let Some(subsystem) = place
        .parent()
        .filter(|dir| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nvme-subsys")))
    else {
        return false;
    };
    names(subsystem).iter().filter(|name| name.starts_with("nvme")).any(|name| {
        let link = subsystem.join(name);
        link.is_symlink() && link.canonicalize().is_ok_and(|target| target.starts_with(home))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    fn reasons(fake: &FakeHost, address: &str) -> Vec<Reason> {
        let host = fake.host();
        host.device_in_use(&PciDevice::open(&host, address.parse().unwrap()).unwrap())
    }

    #[test]
    fn a_mounted_partition_swap_and_a_holder_are_all_reported_at_once() {
        let fake = FakeHost::new();
        fake.nvme("0000:01:00.0", 9);
        fake.disk("0000:01:00.0", "nvme0/nvme0n1", "259:0");
        for (part, number) in [("nvme0n1p1", "259:1"), ("nvme0n1p2", "259:2"), ("nvme0n1p3", "259:3")] {
            fake.partition("nvme0n1", part, number);
        }
        assert!(reasons(&fake, "01:00.0").is_empty());
        fake.file("/proc/self/mountinfo", "22 1 259:1 / /boot\\040disk rw - ext4 /dev/nvme0n1p1 rw\n");
        fake.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 1 0 -2\n");
        fake.virtual_disk("dm-0", "253:0", Some("vg-root"));
        fake.holder("nvme0n1p3", "dm-0");
        let found = reasons(&fake, "01:00.0");
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0], Reason::Mounted { block: "nvme0n1p1".into(), at: "/boot disk".into() });
        assert_eq!(found[1], Reason::Swap { block: "nvme0n1p2".into() });
        assert_eq!(found[2], Reason::Held { block: "nvme0n1p3".into(), by: "dm-0 (vg-root)".into() });
    }

    #[test]
    fn a_disk_that_somebody_has_open_exclusively_is_in_use() {
        let fake = FakeHost::new();
        fake.nvme("0000:01:00.0", 9);
        fake.disk("0000:01:00.0", "nvme0/nvme0n1", "259:0");
        assert!(reasons(&fake, "01:00.0").is_empty());
        fake.open_exclusively(&["nvme0n1"]);
        let found = reasons(&fake, "01:00.0");
        assert_eq!(found, [Reason::Exclusive { block: "nvme0n1".into(), by: Vec::new(), mark: None }]);
        let text = found[0].to_string();
        assert!(text.contains("fuser -v /dev/nvme0n1"), "{text}");
    }

    #[test]
    fn of_a_disk_and_its_partitions_the_one_that_is_open_exclusively_is_named() {
        let fake = FakeHost::new();
        fake.nvme("0000:01:00.0", 9);
        fake.disk("0000:01:00.0", "nvme0/nvme0n1", "259:0");
        fake.partition("nvme0n1", "nvme0n1p1", "259:1");
        fake.partition("nvme0n1", "nvme0n1p2", "259:2");
        let busy = |blocks: &[&str]| {
            fake.open_exclusively(blocks);
            let found = reasons(&fake, "01:00.0").into_iter();
            found.map(|reason| reason.block().unwrap().to_owned()).collect::<Vec<_>>()
        };
        // While a disk is open exclusively nobody else can have its partitions, and the other way round.
        assert_eq!(busy(&["nvme0n1", "nvme0n1p1", "nvme0n1p2"]), ["nvme0n1"]);
        assert_eq!(busy(&["nvme0n1", "nvme0n1p2"]), ["nvme0n1p2"]);
        assert_eq!(busy(&["nvme0n1"]), ["nvme0n1"]);
        fake.file("/proc/self/mountinfo", "22 1 259:1 / /boot rw - ext4 /dev/nvme0n1p1 rw\n");
        assert_eq!(busy(&["nvme0n1", "nvme0n1p1"]), ["nvme0n1p1"], "that it is mounted says it all");
        assert_eq!(busy(&["nvme0n1", "nvme0n1p1", "nvme0n1p2"]), ["nvme0n1p1", "nvme0n1p2"]);
    }

    #[test]
    fn where_it_cannot_be_known_what_is_mounted_no_disk_is_free() {
        let fake = FakeHost::new();
        fake.nvme("0000:01:00.0", 9);
        fake.disk("0000:01:00.0", "nvme0/nvme0n1", "259:0");
        fake.remove("/proc/self/mountinfo");
        assert!(matches!(reasons(&fake, "01:00.0")[..], [Reason::Unknown { .. }]));
    }

    #[test]
    fn a_namespace_behind_a_multipath_subsystem_belongs_to_its_controllers() {
        let fake = FakeHost::new();
        fake.nvme("0000:01:00.0", 9);
        fake.nvme("0000:02:00.0", 10);
        fake.dir("/sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0");
        fake.virtual_block("nvme-subsystem/nvme-subsys0/nvme0n1", "259:0");
        fake.link(
            "/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0",
            "/sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0",
        );
        fake.file("/proc/self/mountinfo", "22 1 259:0 / /srv rw shared:1 - ext4 /dev/nvme0n1 rw\n");
        assert_eq!(reasons(&fake, "01:00.0").len(), 1);
        assert!(reasons(&fake, "02:00.0").is_empty());
    }

    #[test]
    fn an_interface_is_used_when_it_is_up_with_a_link_or_addresses_or_a_master() {
        let fake = FakeHost::new();
        fake.pci("0000:00:08.0", 0x020000, Some("e1000e"), 4);
        fake.interface("0000:00:08.0", "eth0", "0x1002", "");
        assert!(reasons(&fake, "00:08.0").is_empty());
        fake.interface("0000:00:08.0", "eth0", "0x1003", "0");
        assert!(reasons(&fake, "00:08.0").is_empty());
        fake.file("/proc/net/route", "Iface Destination\neth0 00000000 01 02\n");
        assert!(reasons(&fake, "00:08.0")[0].to_string().contains("addresses or routes"));
        fake.file("/proc/net/route", "Iface Destination\n");
        fake.interface("0000:00:08.0", "eth0", "0x1003", "1");
        let text = reasons(&fake, "00:08.0")[0].to_string();
        assert_eq!(text, "network interface eth0 is up and has a link (`ip link set eth0 down`)");
        fake.link("/sys/class/net/eth0/master", "/sys/class/net/br0");
        assert!(reasons(&fake, "00:08.0")[0].to_string().contains("belongs to br0"));
    }

    #[test]
    fn bridges_and_the_boot_console_are_refused() {
        let fake = FakeHost::new();
        fake.pci("0000:00:01.0", 0x060400, Some("pcieport"), 1);
        assert_eq!(reasons(&fake, "00:01.0"), [Reason::Bridge]);
        fake.pci("0000:00:02.0", 0x030000, Some("i915"), 2);
        fake.file("/sys/devices/pci0000:00/0000:00:02.0/boot_vga", "1\n");
        assert!(reasons(&fake, "00:02.0").is_empty());
        fake.dir("/sys/devices/pci0000:00/0000:00:02.0/graphics/fb0");
        fake.link("/sys/class/graphics/fb0", "/sys/devices/pci0000:00/0000:00:02.0/graphics/fb0");
        assert_eq!(reasons(&fake, "00:02.0"), [Reason::Console { framebuffer: "fb0".into() }]);
    }
}
