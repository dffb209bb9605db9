//! What can be asked of a running VM, and what goes over the socket, as JSON: written at one end, read at the other.
//!
//! `ENDPOINTS` is the table of all that there is; the types are in the modules below. Addresses are strings of hexadecimal
//! digits (`"0x100000000"`), because JSON's numbers are not exact beyond 2^53; lengths and counts are numbers. Within version
//! 1, endpoints, fields and kinds may be added; none is removed or changes its meaning.

mod disks;
mod dma;
mod events;
mod memory;
mod plug;
mod vm;
mod words;

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::endpoint::{Ask, endpoints};

pub use disks::{Copied, Disk, Drive, Eject, Insert, Stats};
pub use dma::{BackEnd, Count, Dma, Domain, DomainKind, Mapping, P2p, Permission, Target};
pub use events::{
    After, Direction, DiskAnswer, DiskError, DiskErrorKind, DiskOperation, Event, EventKind, Events, Fault,
    FaultSource, Place,
};
pub use memory::{Audit, DeviceMemory, Memory, MemoryFiles, Mirror, Segment};
pub use plug::{NewDisk, Plug, Plugged, Unplug, Unplugged, Word};
pub use vm::{Done, Info, State};

/// The version in the paths of the API.
pub const VERSION: u32 = 1;

endpoints! {
    /// The VM and its process.
    Get "/v1" vm.info() -> Info, 200, until End;

    /// What the VM's devices reach: its DMA domains.
    Get "/v1/dma" vm.dma() -> Dma, 200, until Retired;

    /// The memory map, compared with everything that must hold the same.
    Get "/v1/memory" vm.memory() -> Memory, 200, until Retired;

    /// The memory map, and with it the files of the segments, in their order, as file descriptors (`SCM_RIGHTS`).
    Get "/v1/memory/fds" vm.memory_fds() -> MemoryFiles, 200, until Retired;

    /// The events after the one with a number. If there are none yet, the answer waits for the first.
    Get "/v1/events" server.events(After) -> Events, 200, until End;

    /// What went through the VM's disks since it began, and what is in its CD drives.
    Get "/v1/stats" vm.stats() -> Stats, 200, until Retired;

    /// The vCPUs stop; devices may still finish what they do. Does nothing if the VM is paused already.
    Post "/v1/pause" vm.pause() -> Done, 200, until Retired;

    /// Requests of disks that are held are tried again, and the vCPUs go on. If they fail again, the VM stays paused and the
    /// answer (409) says why. Does nothing if the vCPUs run.
    Post "/v1/resume" vm.resume() -> Done, 200, until Retired;

    /// Puts a disc into a CD drive; it replaces the one there.
    Post "/v1/insert" vm.insert(Insert) -> Drive, 200, until Retired;

    /// Takes the disc out of a CD drive. Does nothing if the drive is empty.
    Post "/v1/eject" vm.eject(Eject) -> Drive, 200, until Retired;

    /// Plugs a disk into a SATA controller.
    Post "/v1/plug" vm.plug(Plug) -> Plugged, 200, until Retired;

    /// Takes a SATA disk away, even if the guest uses it.
    Post "/v1/unplug" vm.unplug(Unplug) -> Unplugged, 200, until Retired;

    /// Presses the power button (ACPI); the guest shuts down when it listens. Each press is an event, which says so if the
    /// guest does not listen yet; it gets the press when it does, which is another event.
    Post "/v1/power" vm.press_power_button() -> Done, 202, until Retired;

    /// Ends the VM, whatever its guest does.
    Post "/v1/stop" vm.stop() -> Done, 202, until Retired;
}

/// What a request says that needs to say nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Nothing {}

impl Ask for Nothing {
    fn example() -> Nothing {
        Nothing {}
    }
}

/// An address: of the guest (GPA), of a device (IOVA), or in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Address(pub u64);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").unwrap_or_default();
        let address = u64::from_str_radix(digits, 16);
        address
            .map(Address)
            .map_err(|_| D::Error::custom(format!("{text:?} is not an address like \"0x1000\"")))
    }
}

/// A range of addresses, both ends in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Range {
    /// First address.
    pub first: Address,
    /// Last address.
    pub last: Address,
}

impl Range {
    /// Length in bytes; all 2^64 addresses count as one less.
    pub fn bytes(self) -> u64 {
        self.last.0.saturating_sub(self.first.0).saturating_add(1)
    }

    /// Whether the address lies in the range.
    pub fn contains(self, address: u64) -> bool {
        (self.first.0..=self.last.0).contains(&address)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The answer to what could not be done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Failed {
    /// Why, in a sentence.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_exact_strings_and_anything_else_is_refused() {
        let json = serde_json::to_string(&Address(u64::MAX)).unwrap();
        assert_eq!(json, "\"0xffffffffffffffff\"");
        assert_eq!(serde_json::from_str::<Address>(&json).unwrap(), Address(u64::MAX));
        for bad in ["\"4096\"", "\"0x\"", "\"0x10000000000000000\"", "4096", "\"0xg\""] {
            assert!(serde_json::from_str::<Address>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_field_that_is_not_known_yet_does_no_harm() {
        let info = r#"{"api":1,"name":"a","version":"0","state":"running","pid":1,"since":"","more":[]}"#;
        assert_eq!(serde_json::from_str::<Info>(info).unwrap().state, State::Running);
    }

    #[test]
    fn a_word_that_is_not_known_yet_does_no_harm() {
        let info = r#"{"api":1,"name":"a","version":"0","state":"hibernating","pid":1,"since":""}"#;
        assert_eq!(serde_json::from_str::<Info>(info).unwrap().state, State::Unknown);
    }

    #[test]
    fn a_mapping_says_what_it_leads_to() {
        let range = Range { first: Address(0), last: Address(0xfff) };
        let target = Target::Ram { gpa: range, segment: Some(0) };
        let json = serde_json::to_string(&target).unwrap();
        assert_eq!(json, r#"{"kind":"ram","gpa":{"first":"0x0","last":"0xfff"},"segment":0}"#);
        assert_eq!(serde_json::from_str::<Target>(&json).unwrap(), target);
    }
}
