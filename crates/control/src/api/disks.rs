//! Disks and CD drives in the API.

use serde::{Deserialize, Serialize};

use crate::endpoint::Ask;

/// What went through the VM's disks since it began.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stats {
    /// Its disks, and the discs that are in its CD drives.
    pub disks: Vec<Disk>,
    /// Its CD drives.
    #[serde(default)]
    pub drives: Vec<Drive>,
}

/// A CD drive.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Drive {
    /// Its name: `cd0` for the first that the VM's description has, and so on.
    pub name: String,
    /// What is in it, a disk of these statistics by name; none if it is empty.
    pub disc: Option<String>,
    /// The disc that was taken out just now and is still open, because a request of the guest is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<String>,
}

/// Which disc goes into which drive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Insert {
    /// The drive: its name, or what is in it.
    pub drive: String,
    /// What is to be in it: the absolute path of a file or block device.
    pub disc: String,
    /// Take what is there even if the guest has locked the tray.
    #[serde(default)]
    pub force: bool,
}

impl Ask for Insert {
    fn example() -> Insert {
        Insert { drive: "cd0".to_owned(), disc: "/a/path".to_owned(), force: false }
    }
}

/// Which drive is to be emptied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Eject {
    /// The drive: its name, or what is in it.
    pub drive: String,
    /// Take what is there even if the guest has locked the tray.
    #[serde(default)]
    pub force: bool,
}

impl Ask for Eject {
    fn example() -> Eject {
        Eject { drive: "cd0".to_owned(), force: false }
    }
}

/// A disk's counters.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Disk {
    /// The disk.
    pub name: String,
    /// Reads that succeeded.
    pub reads: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Discards and zeroed ranges that succeeded.
    pub discards: u64,
    /// Requests that failed or were refused, and whose error the guest has got.
    pub errors: u64,
    /// Requests that failed, but were reported to the guest as successful.
    #[serde(default)]
    pub ignored: u64,
    /// Requests that failed and wait to be tried again.
    #[serde(default)]
    pub held: u64,
    /// Which of these failed first, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_since: Option<String>,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes that went between guest RAM and disk without a copy.
    pub bytes_direct: u64,
    /// Those of them that used memory that is registered with the kernel, and so pinned once (`buffers=registered`).
    #[serde(default)]
    pub bytes_registered: u64,
    /// Bytes that were copied on their way, by reason.
    pub bytes_copied: Copied,
    /// Writes of less than a block, for which the block was read first.
    #[serde(default)]
    pub read_modify_writes: u64,
}

/// Bytes that were copied, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub struct Copied {
    /// The guest's memory was not aligned as the disk needs it.
    pub alignment: u64,
    /// The user asked for it.
    pub asked: u64,
    /// The host's page cache lies in between.
    pub page_cache: u64,
    /// The guest's sectors are smaller than the disk's blocks.
    #[serde(default)]
    pub sector_emulation: u64,
    /// The image's format has the data in another shape, or at a place that was not known yet.
    #[serde(default)]
    pub image_format: u64,
    /// It goes over a connection.
    #[serde(default)]
    pub transport: u64,
}

impl Copied {
    /// All of them.
    pub fn sum(self) -> u64 {
        let Copied { alignment, asked, page_cache, sector_emulation, image_format, transport } = self;
        alignment + asked + page_cache + sector_emulation + image_format + transport
    }
}
