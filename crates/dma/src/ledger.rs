//! What a domain holds, and how that compares with the memory map.

use std::fmt;
use std::sync::Arc;

use memory::{Contents, DeviceMemory, Difference, GpaRange};

use crate::iova::IovaRange;
use crate::p2p::P2p;

/// What devices may do with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Read only.
    Read,
    /// Read and write.
    ReadWrite,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Permission::Read => "read",
            Permission::ReadWrite => "read, write",
        })
    }
}

/// What devices reach through a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A segment of guest RAM, named by its guest addresses.
    Ram(GpaRange),
    /// Memory of another assigned device.
    Device {
        /// Whose.
        owner: Arc<str>,
        /// Where the guest sees it.
        range: GpaRange,
    },
    /// Memory of one of skep's own drivers: queues, lists, bounce buffers.
    Own(Arc<str>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Ram(range) => write!(f, "RAM {range}"),
            Target::Device { owner, range } => write!(f, "{owner} at {range}"),
            Target::Own(what) => f.write_str(what),
        }
    }
}

/// One mapping: a row of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// What devices say.
    pub iova: IovaRange,
    /// What they reach.
    pub target: Target,
    /// Where in the target the mapping begins, in bytes.
    pub offset: u64,
    /// What they may do there.
    pub permission: Permission,
}

impl Mapping {
    /// All of a target at these addresses, to read and to write.
    pub(crate) fn of(iova: IovaRange, target: Target) -> Mapping {
        Mapping { iova, target, offset: 0, permission: Permission::ReadWrite }
    }

    /// A whole segment at IOVA = GPA.
    pub(crate) fn of_ram(segment: GpaRange) -> Mapping {
        Mapping::of(IovaRange::identity(segment), Target::Ram(segment))
    }

    /// A device's memory at IOVA = GPA.
    pub(crate) fn of_device(device: &DeviceMemory) -> Mapping {
        let range = device.range();
        Mapping::of(IovaRange::identity(range), Target::Device { owner: device.owner().into(), range })
    }

    /// Whether the mapping is a piece of what `whole` maps.
    fn is_piece_of(&self, whole: &Mapping) -> bool {
        self.target == whole.target
            && Some(self.iova.first().0) == whole.iova.first().0.checked_add(self.offset)
            && whole.iova.covers(self.iova)
            && self.permission == whole.permission
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mapping { iova, target, offset, permission } = self;
        write!(f, "IOVA {iova} to {target} + {offset:#x} ({permission})")
    }
}

/// Compares what is mapped with what the memory map says should be: all RAM, device memory when devices reach each
/// other's, and beside that only memory of skep's own drivers, where no RAM is.
pub(crate) fn audit(
    mirror: String,
    mappings: &[Mapping],
    contents: &Contents,
    p2p: &P2p,
) -> Result<(), Difference> {
    let mut wanted: Vec<Mapping> =
        contents.ram.segments().iter().map(|segment| Mapping::of_ram(segment.range())).collect();
    if let P2p::Asked | P2p::Working = p2p {
        wanted
            .extend(contents.devices.iter().filter(|device| !device.is_read_only()).map(Mapping::of_device));
    }
    let right = |mapping: &&Mapping| match mapping.target {
        Target::Own(_) => wanted.iter().all(|wanted| !wanted.iova.overlaps(mapping.iova)),
        _ => wanted.iter().any(|wanted| mapping.is_piece_of(wanted)),
    };
    let (good, wrong): (Vec<&Mapping>, Vec<&Mapping>) = mappings.iter().partition(right);
    let good: Vec<IovaRange> = good.into_iter().map(|mapping| mapping.iova).collect();
    let missing = wanted.iter().flat_map(|wanted| {
        wanted.iova.without(&good).into_iter().map(|iova| format!("{} is missing at {iova}", wanted.target))
    });
    let wrong = wrong.into_iter().map(|mapping| format!("it maps {mapping}"));
    let differences: Vec<String> = missing.chain(wrong).collect();
    if differences.is_empty() { Ok(()) } else { Err(Difference { mirror, differences }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Iova;
    use memory::{Gpa, Ram};

    fn contents() -> Contents {
        let range = |start, len| GpaRange::new(Gpa(start), len).unwrap();
        let ram = Ram::new(&[range(0, 0x4000), range(0x10000, 0x2000)]).unwrap();
        Contents { ram: Arc::new(ram), devices: Vec::new() }
    }

    fn rows(contents: &Contents) -> Vec<Mapping> {
        contents.ram.segments().iter().map(|segment| Mapping::of_ram(segment.range())).collect()
    }

    fn check(mappings: &[Mapping]) -> Result<(), Difference> {
        audit("guest".into(), mappings, &contents(), &P2p::Off)
    }

    #[test]
    fn pieces_that_make_up_the_ram_are_as_good_as_whole_segments() {
        let whole = rows(&contents());
        check(&whole).unwrap();
        let piece = |first, last, offset| Mapping {
            iova: IovaRange::inclusive(Iova(first), Iova(last)).unwrap(),
            offset,
            ..whole[0].clone()
        };
        check(&[piece(0, 0xfff, 0), piece(0x1000, 0x3fff, 0x1000), whole[1].clone()]).unwrap();
    }

    #[test]
    fn a_hole_a_stranger_and_a_wrong_offset_are_all_named() {
        let rows = rows(&contents());
        let difference = check(&rows[..1]).unwrap_err();
        assert!(difference.to_string().contains("RAM 0x10000-0x11fff is missing at 0x10000"), "{difference}");
        let shifted = Mapping { offset: 0x1000, ..rows[0].clone() };
        assert_eq!(check(&[shifted, rows[1].clone()]).unwrap_err().differences.len(), 2);
        let read_only = Mapping { permission: Permission::Read, ..rows[0].clone() };
        assert!(check(&[read_only, rows[1].clone()]).is_err());
        let stranger = Mapping::of_ram(GpaRange::new(Gpa(0x50000), 0x1000).unwrap());
        let all = [rows[0].clone(), rows[1].clone(), stranger];
        assert_eq!(check(&all).unwrap_err().differences.len(), 1);
    }

    #[test]
    fn a_drivers_own_memory_is_right_only_where_no_ram_is() {
        let own = |first| {
            let iova = IovaRange::inclusive(Iova(first), Iova(first + 0xfff)).unwrap();
            Mapping::of(iova, Target::Own("queues".into()))
        };
        let rows = rows(&contents());
        check(&[rows[0].clone(), rows[1].clone(), own(0x4000)]).unwrap();
        assert!(check(&[rows[0].clone(), rows[1].clone(), own(0x3000)]).is_err());
    }
}
