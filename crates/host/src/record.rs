//! What was bound, on record, so that a later process can give it back when the first one was killed.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{BindError, Host, PciAddress, attribute, names};

/// Where records lie. Gone after a boot, and so are the bindings.
const DIR: &str = "/run/skep";

/// What a device was before it was bound, and who bound it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub address: String,
    /// The driver that had it.
    pub driver: Option<String>,
    /// Its `driver_override`, if one was set.
    pub driver_override: Option<String>,
    pub pid: u32,
    /// The owner's start time (proc_pid_stat(5), field 22), for process numbers come again.
    pub started: Option<u64>,
}

/// A device that a process which is gone did not give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The device.
    pub address: PciAddress,
    /// The driver it had, if any.
    pub driver: Option<String>,
    /// The process that had bound it.
    pub pid: u32,
    pub(crate) record: Record,
}

impl Host {
    /// Devices that processes which are gone did not give back, as far as their records can be read.
    pub fn leftovers(&self) -> Vec<Leftover> {
        self.try_leftovers().into_iter().flatten().collect()
    }

    /// Devices that processes which are gone did not give back, and an error for each record that cannot be read.
    pub fn try_leftovers(&self) -> Vec<Result<Leftover, BindError>> {
        let files = names(&self.path(DIR)).into_iter();
        let addresses = files
            .filter_map(|name| name.strip_prefix("vfio-")?.strip_suffix(".json")?.parse::<PciAddress>().ok());
        let leftover = |address| match self.record(address) {
            Ok(Some(record)) if !self.is_alive(&record) => {
                Some(Ok(Leftover { address, driver: record.driver.clone(), pid: record.pid, record }))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        };
        addresses.filter_map(leftover).collect()
    }

    /// Waits until no other process binds or gives back; holds them off as long as the file is open.
    pub(crate) fn hold(&self, address: PciAddress) -> Result<File, BindError> {
        let path = self.path(DIR).join("lock");
        let lock = || {
            std::fs::create_dir_all(self.path(DIR))?;
            let file = File::options().create(true).append(true).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(|cause| BindError::Record { address, path: path.clone(), cause })
    }

    /// The record of a device, if there is one.
    pub(crate) fn record(&self, address: PciAddress) -> Result<Option<Record>, BindError> {
        let path = self.record_path(address);
        let fail = |cause| BindError::Record { address, path: path.clone(), cause };
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|wrong| fail(wrong.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fail(error)),
        }
    }

    /// Puts a record in place whole: a reader sees the old one or the new one.
    pub(crate) fn keep_record(&self, address: PciAddress, record: &Record) -> Result<(), BindError> {
        let path = self.record_path(address);
        let write = || {
            std::fs::create_dir_all(self.path(DIR))?;
            let draft = path.with_extension(format!("{}.new", std::process::id()));
            std::fs::write(&draft, serde_json::to_vec(record)?)?;
            std::fs::rename(&draft, &path)
        };
        write().map_err(|cause| BindError::Record { address, path: path.clone(), cause })
    }

    pub(crate) fn drop_record(&self, address: PciAddress) -> Result<(), BindError> {
        let path = self.record_path(address);
        match std::fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(BindError::Record { address, path, cause })
            }
            _ => Ok(()),
        }
    }

    /// Whether the process that wrote the record still runs.
    pub(crate) fn is_alive(&self, record: &Record) -> bool {
        let now = self.started(record.pid);
        now.is_some() && now == record.started
    }

    /// When a process started, in clock ticks since boot; `None` when there is no such process.
    pub(crate) fn started(&self, pid: u32) -> Option<u64> {
        let text = attribute(&self.path(format!("/proc/{pid}/stat")))?;
        // The second field is the program's name in brackets and may hold anything.
        text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
    }

    fn record_path(&self, address: PciAddress) -> PathBuf {
        self.path(DIR).join(format!("vfio-{address}.json"))
    }
}
