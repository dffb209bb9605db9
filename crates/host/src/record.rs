//! What was bound, on record, so that a later process can give it back when the first one was killed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use own::{OwnError, OwnFolder};
use serde::{Deserialize, Serialize};

use crate::{BindError, Host, PciAddress, attribute, names};

/// Where records lie. Gone after a boot, and so are the bindings.
const DIR: &str = "/run/skep";

/// How long others may bind or give back the same device. One of their steps may take as long as skep waits for
/// the kernel, which is 60 s. A process that needs longer was stopped.
const LOCK_LIMIT: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(90) };

/// What a device was before it was bound, and who bound it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub address: String,
    /// The driver that had it.
    pub driver: Option<String>,
    /// Its `driver_override`, if one was set.
    pub driver_override: Option<String>,
    pub pid: u32,
    /// The owner's start time (proc_pid_stat(5), field 22), because process numbers are used again.
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

    /// Devices that processes which are gone did not give back, and an error for each record that cannot be read or that
    /// another user may have written.
    pub fn try_leftovers(&self) -> Vec<Result<Leftover, BindError>> {
        let files = match OwnFolder::open_private(&self.path(DIR))
            .and_then(|folder| folder.map_or(Ok(Vec::new()), |folder| folder.names()))
        {
            Ok(files) => files,
            Err(cause) => return vec![Err(BindError::Records { cause })],
        };
        let addresses = files
            .iter()
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

    /// Waits until no other process binds or gives back this device. Other processes wait as long as the file is open.
    pub(crate) fn hold(&self, address: PciAddress) -> Result<File, BindError> {
        let lock = || {
            OwnFolder::make_private(&self.path(DIR))?.lock(
                &self.path("/proc"),
                &format!("vfio-{address}.lock"),
                LOCK_LIMIT,
            )
        };
        lock().map_err(|cause| match cause {
            OwnError::Held { path, after, by } => BindError::Held { address, path, after, by },
            cause => BindError::Record { address, cause },
        })
    }

    /// The record of a device, if there is one.
    pub(crate) fn record(&self, address: PciAddress) -> Result<Option<Record>, BindError> {
        let fail = |cause| BindError::Record { address, cause };
        let Some(folder) = OwnFolder::open_private(&self.path(DIR)).map_err(fail)? else { return Ok(None) };
        let name = record_name(address);
        let Some(bytes) = folder.read(&name).map_err(fail)? else { return Ok(None) };
        let wrong = |cause: io::Error| {
            fail(OwnError::Failed { what: "make sense of", path: folder.path().join(&name), cause })
        };
        let record: Record = serde_json::from_slice(&bytes).map_err(|cause| wrong(cause.into()))?;
        if record.address != address.to_string() {
            let other = format!("it is about {:?}", record.address);
            return Err(wrong(io::Error::new(io::ErrorKind::InvalidData, other)));
        }
        Ok(Some(record))
    }

    /// Puts a record in place whole: a reader sees the old one or the new one.
    pub(crate) fn keep_record(&self, address: PciAddress, record: &Record) -> Result<(), BindError> {
        let keep = || {
            let folder = OwnFolder::make_private(&self.path(DIR))?;
            let failed = |cause: serde_json::Error| OwnError::Failed {
                what: "write",
                path: folder.path().join(record_name(address)),
                cause: cause.into(),
            };
            folder.write(&record_name(address), &serde_json::to_vec(record).map_err(failed)?)
        };
        keep().map_err(|cause| BindError::Record { address, cause })
    }

    pub(crate) fn drop_record(&self, address: PciAddress) -> Result<(), BindError> {
        let fail = |cause| BindError::Record { address, cause };
        let Some(folder) = OwnFolder::open_private(&self.path(DIR)).map_err(fail)? else { return Ok(()) };
        folder.remove(&record_name(address)).map_err(fail)
    }

    /// Whether the process that wrote the record still runs. One that has ended and that nobody has waited for, as in a
    /// container whose first process does not, has released all it had.
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
}

fn record_name(address: PciAddress) -> String {
    format!("vfio-{address}.json")
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
    const LOCK: &str = "/run/skep/vfio-0000:01:00.0.lock";

    #[test]
    fn who_holds_the_others_off_for_too_long_is_named_and_who_is_done_in_time_is_waited_for() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        fake.file(LOCK, "");
        fake.opens(77, "skep", LOCK);
        fake.file("/proc/77/fdinfo/3", "pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 77\n");
        let other = File::open(fake.path(LOCK)).unwrap();
        other.lock().unwrap();
        let host = fake.host();
        let device = PciDevice::open(&host, BDF.parse().unwrap()).unwrap();
        let text = host.bind_to_vfio(&device).unwrap_err().to_string();
        assert!(text.contains("process 77 (skep) has held") && text.contains(LOCK), "{text}");
        assert_eq!(fake.writes(), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(LOCK_LIMIT / 6);
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
    #[test]
    fn who_is_at_work_on_another_device_holds_nobody_off() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        let _other = host.hold("0000:02:00.0".parse().unwrap()).unwrap();
        let device = PciDevice::open(&host, BDF.parse().unwrap()).unwrap();
        host.bind_to_vfio(&device).unwrap().give_back().unwrap();
    }

    #[test]
    fn records_that_others_may_have_written_are_refused_by_name_owner_and_mode_and_nothing_is_touched() {
        let fake = FakeHost::new();
        fake.pci(BDF, 0x010802, Some("vfio-pci"), 9);
        let host = fake.host();
        let device = PciDevice::open(&host, BDF.parse().unwrap()).unwrap();
        let planted = format!(
            "{{\"address\":\"{BDF}\",\"driver\":\"evil\",\"driver_override\":\"evil\",\"pid\":7,\"started\":1}}"
        );
        let record = format!("/run/skep/vfio-{BDF}.json");
        fake.file(&record, &planted);
        let own = host.leftovers();
        assert_eq!(own.len(), 1, "as written by a user of mine");
        fake.mode(&record, 0o666);
        let refused = |what: &str| {
            let texts = [
                host.try_leftovers().remove(0).unwrap_err().to_string(),
                host.bind_to_vfio(&device).unwrap_err().to_string(),
                host.give_back_leftover(&own[0]).unwrap_err().to_string(),
            ];
            for text in texts {
                assert!(text.contains(what) && text.contains("owner") && text.contains("mode 0"), "{text}");
            }
            assert_eq!(fake.writes(), 0);
        };
        // A folder that a careless umask made is closed; what others may have put there still does not count.
        fake.mode("/run/skep", 0o777);
        refused(&record);
        let folder = std::fs::metadata(fake.path("/run/skep")).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&folder.permissions()) & 0o7777, 0o700);
    }

    #[test]
    fn a_record_of_another_device_is_no_record() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        fake.file(
            format!("/run/skep/vfio-{BDF}.json"),
            "{\"address\":\"0000:02:00.0\",\"driver\":null,\"driver_override\":null,\"pid\":7,\"started\":1}",
        );
        let text = fake.host().try_leftovers().remove(0).unwrap_err().to_string();
        assert!(text.contains("it is about") && text.contains("0000:02:00.0"), "{text}");
    }
}
