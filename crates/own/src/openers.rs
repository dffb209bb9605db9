//! Which processes have a file or device open, as /proc shows.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The words for this process among a file's openers.
pub const THIS_PROCESS: &str = "this process itself (is it given twice?)";

/// What of a file's openers is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Openers {
    /// Everybody who has it open.
    All,
    /// Those who hold a lock on it.
    WithLock,
}

impl Openers {
    /// "process 4711 (qemu-system-x86)" for each process that has a file or block device open, as far as this one may
    /// see; empty when none is found. The kernel's own users (mounts, pools) are no processes. `proc` is where /proc is.
    pub fn of(self, file: &Metadata, proc: &Path) -> Vec<String> {
        let pids = names(proc).into_iter().filter_map(|name| name.parse::<u32>().ok());
        let mut found: Vec<u32> =
            pids.filter(|pid| has_open(&proc.join(pid.to_string()), file, self)).collect();
        found.sort_unstable();
        let named = |pid: u32| {
            if pid == std::process::id() {
                return THIS_PROCESS.to_owned();
            }
            let name = fs::read_to_string(proc.join(pid.to_string()).join("comm")).unwrap_or_default();
            format!("process {pid} ({})", name.trim())
        };
        found.into_iter().map(named).collect()
    }
}

/// The names in a folder; none when it is not there.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
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
