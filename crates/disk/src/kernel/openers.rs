//! Which processes have a file or device open, as /proc shows.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What of a file's openers is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Openers {
    /// Everybody who has it open.
    All,
    /// Those who hold a lock on it.
    WithLock,
}

/// "process 4711 (qemu-system-x86)" for each of them, as far as this process may see; empty when none is found.
pub(super) fn of(path: &Path, which: Openers) -> Vec<String> {
    let Ok(wanted) = fs::metadata(path) else { return Vec::new() };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<(u32, String)> = processes
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            has_open(&entry.path(), &wanted, which).then_some(())?;
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            Some((pid, name.trim().to_owned()))
        })
        .collect();
    found.sort();
    let this = std::process::id();
    found
        .into_iter()
        .map(|(pid, name)| match pid == this {
            true => "this process itself (is the disk given twice?)".to_owned(),
            false => format!("process {pid} ({name})"),
        })
        .collect()
}

fn has_open(process: &Path, wanted: &Metadata, which: Openers) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|descriptor| {
        let Ok(facts) = fs::metadata(descriptor.path()) else { return false };
        let same = match wanted.file_type().is_block_device() {
            true => facts.file_type().is_block_device() && facts.rdev() == wanted.rdev(),
            false => (facts.dev(), facts.ino()) == (wanted.dev(), wanted.ino()),
        };
        let info = || fs::read_to_string(process.join("fdinfo").join(descriptor.file_name()));
        same && (which == Openers::All || info().is_ok_and(|info| info.contains("\nlock:")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_this_process_has_open_is_found_and_another_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(of(file.path(), Openers::All), ["this process itself (is the disk given twice?)"]);
        assert_eq!(of(file.path(), Openers::WithLock), [""; 0]);
        let closed = file.into_temp_path();
        assert_eq!(of(&closed, Openers::All), [""; 0]);
    }
}
