//! Which processes have a file or device open, as /proc shows.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::{Host, attribute, names};

/// The words for this process among a file's openers.
pub(crate) const THIS_PROCESS: &str = "this process itself (is it given twice?)";

/// What of a file's openers is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Openers {
    /// Everybody who has it open.
    All,
    /// Those who hold a lock on it.
    WithLock,
}

impl Host {
    /// "process 4711 (qemu-system-x86)" for each process that has a file or block device open, as far as this one may
    /// see; empty when none is found. The kernel's own users (mounts, pools) are no processes.
    pub fn openers(&self, file: &Metadata, which: Openers) -> Vec<String> {
        let proc = self.path("/proc");
        let pids = names(&proc).into_iter().filter_map(|name| name.parse::<u32>().ok());
        let mut found: Vec<u32> =
            pids.filter(|pid| has_open(&proc.join(pid.to_string()), file, which)).collect();
        found.sort_unstable();
        let named = |pid: u32| {
            if pid == std::process::id() {
                return THIS_PROCESS.to_owned();
            }
            let name = attribute(&proc.join(pid.to_string()).join("comm")).unwrap_or_default();
            format!("process {pid} ({name})")
        };
        found.into_iter().map(named).collect()
    }
}

fn has_open(process: &Path, wanted: &Metadata, which: Openers) -> bool {
    let descriptors = process.join("fd");
    names(&descriptors).into_iter().any(|descriptor| {
        let Ok(facts) = fs::metadata(descriptors.join(&descriptor)) else { return false };
        let same = match wanted.file_type().is_block_device() {
            true => facts.file_type().is_block_device() && facts.rdev() == wanted.rdev(),
            false => (facts.dev(), facts.ino()) == (wanted.dev(), wanted.ino()),
        };
        let info = || fs::read_to_string(process.join("fdinfo").join(&descriptor));
        same && (which == Openers::All || info().is_ok_and(|info| info.contains("\nlock:")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    #[test]
    fn a_file_that_this_process_has_open_is_found_and_another_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let facts = file.as_file().metadata().unwrap();
        let host = Host::here();
        assert_eq!(host.openers(&facts, Openers::All), ["this process itself (is it given twice?)"]);
        assert_eq!(host.openers(&facts, Openers::WithLock), [""; 0]);
        drop(file);
        assert_eq!(host.openers(&facts, Openers::All), [""; 0]);
    }

    #[test]
    fn processes_come_in_order_and_those_with_a_lock_alone_where_they_are_asked_for() {
        let fake = FakeHost::new();
        fake.file("/run/it", "");
        for (pid, name, info) in [(91, "smartd", "pos:\t0\n"), (7, "skep", "pos:\t0\nlock:\t1: FLOCK\n")] {
            fake.opens(pid, name, "/run/it");
            fake.file(format!("/proc/{pid}/fdinfo/3"), info);
        }
        let facts = fs::metadata(fake.path("/run/it")).unwrap();
        let host = fake.host();
        assert_eq!(host.openers(&facts, Openers::All), ["process 7 (skep)", "process 91 (smartd)"]);
        assert_eq!(host.openers(&facts, Openers::WithLock), ["process 7 (skep)"]);
    }
}
