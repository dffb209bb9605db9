//! What firmware boots, in which order.
//!
//! It is told by its file `bootorder`: devices as paths of Open Firmware, in the form that EDK II knows
//! (OvmfPkg/Library/QemuBootOrderLib). It sorts the entries that it has by them, and deletes those of disks and devices that
//! are not in the file. So all are.

use std::collections::HashMap;

use config::{Assign, BootIndex, Once};
use pci::Address;

/// Something that may have an operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootable {
    /// The function that it is on.
    pub at: Address,
    /// What it is there.
    pub kind: BootKind,
    /// The place that the description gives it.
    pub index: Option<BootIndex>,
}

/// What it is on its function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootKind {
    /// The disk of a virtio block device.
    VirtioBlk,
    /// A namespace of an NVMe controller, by its number.
    Namespace(u32),
    /// A disk at a port of a SATA controller.
    SataDisk(u8),
    /// A CD drive there.
    SataDrive(u8),
    /// What the guest's own device has.
    Assigned,
}

/// What assigned devices have, in the order in which they are described; `places` has each by its address on the host. Whoever
/// made them may have put them on the bus in another order.
pub fn assigned(described: &[Assign], places: &HashMap<&str, Address>) -> Vec<Bootable> {
    let bootable = |device: &Assign| {
        let at = *places.get(device.address.to_string().as_str())?;
        Some(Bootable { at, kind: BootKind::Assigned, index: device.boot_index })
    };
    described.iter().filter_map(bootable).collect()
}

impl Bootable {
    /// Its path.
    fn path(&self) -> String {
        let at = format!("{:x},{:x}", self.at.device(), self.at.function());
        // The names are those of QEMU's devices, by which EDK II knows what follows; it compares no IDs.
        match self.kind {
            BootKind::VirtioBlk => format!("/pci@i0cf8/scsi@{at}/disk@0,0"),
            BootKind::Namespace(nsid) => format!("/pci@i0cf8/pci8086,5845@{at}/namespace@{nsid:x},0"),
            BootKind::SataDisk(port) | BootKind::SataDrive(port) => {
                format!("/pci@i0cf8/pci8086,2922@{at}/drive@{port:x}/disk@0")
            }
            BootKind::Assigned => format!("/pci@i0cf8/pci@{at}"),
        }
    }

    fn is_drive(&self) -> bool {
        matches!(self.kind, BootKind::SataDrive(_))
    }
}

/// The contents of the file: what is to be booted at the first start, and after a reset. `all` are in the order in which they
/// are described.
pub fn files(all: &[Bootable], once: Option<Once>) -> [Vec<u8>; 2] {
    let mut ordered: Vec<&Bootable> = all.iter().collect();
    ordered.sort_by_key(|one| (one.index.is_none(), one.index));
    let again = file(&ordered);
    match once {
        Some(Once::Cd) => ordered.sort_by_key(|one| !one.is_drive()),
        None => {}
    }
    [file(&ordered), again]
}

fn file(ordered: &[&Bootable]) -> Vec<u8> {
    let paths: Vec<String> = ordered.iter().map(|one| one.path()).collect();
    [paths.join("\n").as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(device: u8, function: u8) -> Address {
        Address::new(0, device, function).unwrap()
    }

    fn index(number: i64) -> Option<BootIndex> {
        Some(BootIndex::try_from(number).unwrap())
    }

    fn all() -> Vec<Bootable> {
        vec![
            Bootable { at: at(2, 1), kind: BootKind::VirtioBlk, index: None },
            Bootable { at: at(3, 0), kind: BootKind::SataDisk(0), index: index(7) },
            Bootable { at: at(3, 0), kind: BootKind::SataDrive(10), index: None },
            Bootable { at: at(0x1f, 0), kind: BootKind::Namespace(17), index: index(0) },
            Bootable { at: at(4, 0), kind: BootKind::Assigned, index: index(3) },
        ]
    }

    #[test]
    fn lower_places_are_booted_first_and_what_has_none_behind_them_as_it_is_described() {
        let [first, again] = files(&all(), None);
        assert_eq!(
            std::str::from_utf8(&first).unwrap(),
            "/pci@i0cf8/pci8086,5845@1f,0/namespace@11,0\n\
             /pci@i0cf8/pci@4,0\n\
             /pci@i0cf8/pci8086,2922@3,0/drive@0/disk@0\n\
             /pci@i0cf8/scsi@2,1/disk@0,0\n\
             /pci@i0cf8/pci8086,2922@3,0/drive@a/disk@0\0"
        );
        assert_eq!(first, again);
    }

    #[test]
    fn a_place_in_the_order_is_that_of_the_device_that_it_was_said_of_wherever_the_bus_has_it() {
        let device = |address: &str, number| Assign {
            boot_index: index(number),
            ..Assign::new(address.parse().unwrap())
        };
        let described = [device("01:00.0", 1), device("02:00.0", 2), device("03:00.0", 3)];
        // The first and the third are in one domain, and so beside each other.
        let places = [("0000:01:00.0", at(2, 0)), ("0000:03:00.0", at(3, 0)), ("0000:02:00.0", at(4, 0))];
        let found = assigned(&described, &places.into());
        let found: Vec<_> = found.iter().map(|one| (one.at, one.index)).collect();
        assert_eq!(found, [(at(2, 0), index(1)), (at(4, 0), index(2)), (at(3, 0), index(3))]);
    }

    #[test]
    fn discs_that_are_booted_once_come_first_and_after_a_reset_where_they_belong() {
        let [first, again] = files(&all(), Some(Once::Cd));
        assert!(
            first.starts_with(b"/pci@i0cf8/pci8086,2922@3,0/drive@a/disk@0\n/pci@i0cf8/pci8086,5845@1f,0/")
        );
        assert_eq!(again, files(&all(), None)[1]);
    }
}
