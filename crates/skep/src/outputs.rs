//! The files that a run writes: none of them may be one that it reads, or another one that it writes.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use config::{Console, DiskSource, Draft};

use crate::console::folder;

/// What makes two paths the same file.
#[derive(PartialEq, Eq)]
enum Identity {
    /// Device and number.
    There(u64, u64),
    /// Nothing is there yet.
    Missing(PathBuf),
}

/// `None` for what several may write (a terminal, /dev/null), and for what cannot be looked at, of which others tell.
fn identity(path: &Path) -> Option<Identity> {
    match fs::metadata(path) {
        Ok(facts) if facts.file_type().is_char_device() => None,
        Ok(facts) => Some(Identity::There(facts.dev(), facts.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some(Identity::Missing(folder(path).canonicalize().ok()?.join(path.file_name()?)))
        }
        Err(_) => None,
    }
}

/// A sentence for each file that the run would write over another of its files.
pub fn overwritten(draft: &Draft, report: Option<&Path>) -> Vec<String> {
    let mut files: Vec<(String, &Path)> = Vec::new();
    files.extend(draft.kernel.iter().map(|path| (format!("the kernel {path}"), path.as_path())));
    files.extend(draft.initrd.iter().map(|path| (format!("the initrd {path}"), path.as_path())));
    files.extend(draft.disks.iter().filter_map(|disk| match &disk.source {
        DiskSource::File(file) => Some((format!("disk {}", file.path), file.path.as_path())),
        _ => None,
    }));
    let inputs = files.len();
    if let Some(Console::File(path)) = &draft.console {
        files.push((format!("the console's file {path}"), path.as_path()));
    }
    files.extend(report.map(|path| (format!("the report {}", path.display()), path)));
    let mut found = Vec::new();
    for (index, (output, path)) in files.iter().enumerate().skip(inputs) {
        let Some(own) = identity(path) else { continue };
        let same = files[..index].iter().find(|(_, other)| identity(other).as_ref() == Some(&own));
        if let Some((other, _)) = same {
            found.push(format!(
                "{output} is the same file as {other}, and would overwrite it. Give another path."
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{Description, Key};

    #[test]
    fn no_output_overwrites_a_disk_a_kernel_or_another_output() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("disk"), "data").unwrap();
        std::os::unix::fs::symlink("disk", at("link")).unwrap();
        let found = |console: String, report: &str| {
            let flags = [(Key::Kernel, at("kernel")), (Key::Disk, at("disk")), (Key::Console, console)];
            overwritten(&Description::read(None, &flags).draft, Some(Path::new(report)))
        };
        let clash = found(format!("file:{}", at("link")), &at("kernel"));
        assert_eq!(clash.len(), 2, "{clash:?}");
        assert!(
            clash[0].contains("link is the same file as disk") && clash[1].contains("as the kernel"),
            "{clash:?}"
        );
        let clash = found(format!("file:{}", at("new")), &format!("{}/./new", place.path().display()));
        assert!(clash.len() == 1 && clash[0].contains("as the console's file"), "{clash:?}");
        assert_eq!(found("file:/dev/null".to_owned(), "/dev/null"), [""; 0]);
        assert_eq!(found(format!("file:{}", at("new")), &at("report")), [""; 0]);
    }
}
