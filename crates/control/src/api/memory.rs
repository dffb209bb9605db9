//! The memory map.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::{Address, Range};
use crate::endpoint::Answer;

/// The memory map.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Memory {
    /// RAM, by rising guest address. The file descriptors come in this order.
    pub segments: Vec<Segment>,
    /// Memory of devices that the guest reaches (BARs), by rising guest address.
    pub devices: Vec<DeviceMemory>,
    /// Everything that must hold the same (KVM's memory slots, DMA domains), compared just now.
    pub mirrors: Vec<Mirror>,
}

/// The memory map, and the files of its segments in their order, both of the same moment.
#[derive(Debug)]
pub struct MemoryFiles {
    /// The memory map.
    pub memory: Memory,
    /// The segments' files.
    pub files: Vec<OwnedFd>,
}

impl Answer for MemoryFiles {
    type Body = Memory;

    fn into_parts(self) -> (Memory, Vec<OwnedFd>) {
        (self.memory, self.files)
    }

    fn from_parts(memory: Memory, files: Vec<OwnedFd>) -> Result<MemoryFiles, String> {
        if memory.segments.len() == files.len() {
            return Ok(MemoryFiles { memory, files });
        }
        Err(format!("{} segments came with {} files", memory.segments.len(), files.len()))
    }
}

/// Something that must hold what the memory map says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Mirror {
    /// What it is.
    pub name: String,
    /// How the comparison came out.
    pub audit: Audit,
}

/// A piece of guest RAM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Segment {
    /// Its guest addresses.
    pub gpa: Range,
    /// Where in its file it begins, in bytes.
    pub offset: Address,
    /// Its pages, in bytes.
    pub page_size: u64,
    /// The NUMA node it is bound to, if it is.
    pub node: Option<u32>,
}

/// Memory of a device that the guest reaches.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceMemory {
    /// The device.
    pub owner: String,
    /// Its guest addresses.
    pub gpa: Range,
}

/// How a comparison with the memory map came out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Audit {
    /// It is the same.
    Same,
    /// It is not.
    Differs {
        /// In what.
        how: String,
    },
}
