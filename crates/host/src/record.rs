//! What was bound, on record, so that a later process can give it back when the first one was killed.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{BindError, Host, Openers, PciAddress, attribute, names};

/// Where records lie. Gone after a boot, and so are the bindings.
const DIR: &str = "/run/skep";

/// How long others may bind or give back. A single step of theirs may take as long as the kernel is waited for, which
/// is 60 s; who takes longer has been stopped.
const LOCK_PATIENCE: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(90) };
const LOCK_PAUSE: Duration = Duration::from_millis(10);

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
        let failed = |cause| BindError::Record { address, path: path.clone(), cause };
        let open = || {
            std::fs::create_dir_all(self.path(DIR))?;
            File::options().create(true).append(true).open(&path)
        };
        let file = open().map_err(failed)?;
        let end = Instant::now() + LOCK_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(cause)) => return Err(failed(cause)),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => break,
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            }
        }
        let by = file.metadata().map_or_else(|_| Vec::new(), |facts| self.openers(&facts, Openers::WithLock));
        Err(BindError::Held { address, path: path.clone(), after: LOCK_PATIENCE, by })
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

    /// Whether the process that wrote the record still runs. One that has ended and that nobody has waited for, as in a
    /// container whose first process does not, has let go of all it had.
    pub(crate) fn is_alive(&self, record: &Record) -> bool {
        let now = self.started(record.pid);
        now.is_some() && now == record.started && self.runs(record.pid)
    }

    /// Whether a thread of the process has not ended yet. Its first one may have, with others at work.
    fn runs(&self, pid: u32) -> bool {
        let runs = |stat: PathBuf| {
            let state = fields(&stat).and_then(|fields| fields.first().cloned());
            state.is_some_and(|state| state != "Z" && state != "X")
        };
        let threads = self.path(format!("/proc/{pid}/task"));
        runs(self.path(format!("/proc/{pid}/stat")))
            || names(&threads).into_iter().any(|thread| runs(threads.join(thread).join("stat")))
    }

    /// When a process started, in clock ticks since boot; `None` when there is no such process.
    pub(crate) fn started(&self, pid: u32) -> Option<u64> {
        fields(&self.path(format!("/proc/{pid}/stat")))?.get(19)?.parse().ok()
    }

    fn record_path(&self, address: PciAddress) -> PathBuf {
        self.path(DIR).join(format!("vfio-{address}.json"))
    }
}

/// The fields of proc_pid_stat(5) from the third on, which is the state. The second is the program's name in brackets
/// and may hold anything.
fn fields(stat: &Path) -> Option<Vec<String>> {
    let text = attribute(stat)?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PciDevice;
    use crate::fake::FakeHost;

    const BDF: &str = "0000:01:00.0";

    #[test]
    fn who_holds_the_others_off_for_too_long_is_named_and_who_is_done_in_time_is_waited_for() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        fake.file("/run/skep/lock", "");
        fake.opens(77, "skep", "/run/skep/lock");
        fake.file("/proc/77/fdinfo/3", "pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 77\n");
        let other = File::open(fake.path("/run/skep/lock")).unwrap();
        other.lock().unwrap();
        let host = fake.host();
        let device = PciDevice::open(&host, BDF.parse().unwrap()).unwrap();
        let text = host.bind_to_vfio(&device).unwrap_err().to_string();
        assert!(text.contains("process 77 (skep) has held") && text.contains("/run/skep/lock"), "{text}");
        assert_eq!(fake.writes(), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(LOCK_PATIENCE / 6);
                other.unlock().unwrap();
            });
            host.bind_to_vfio(&device).unwrap().give_back().unwrap();
        });
    }

    #[test]
    fn an_owner_that_has_ended_and_that_nobody_has_waited_for_leaves_its_devices() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        let device = || PciDevice::open(&host, BDF.parse().unwrap()).unwrap();
        std::mem::forget(host.bind_to_vfio(&device()).unwrap());
        fake.end_owner('D');
        assert!(host.leftovers().is_empty(), "a thread of it is still at work");
        fake.end_owner('Z');
        assert_eq!(host.leftovers().len(), 1);
        host.bind_to_vfio(&device()).unwrap().give_back().unwrap();
        assert_eq!(fake.state(BDF), (Some("nvme".into()), None));
    }
}
