//! The file of `skep run --report`: looked at before a start, and written whole at the end.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::console::folder;

/// Why a report cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report {}: {cause}. {hint}", path.display())]
pub struct ReportError {
    path: PathBuf,
    cause: io::Error,
    hint: &'static str,
}

const PATH: &str = "Check the path after --report.";
const FULL: &str = "Its disk may be full.";

/// The place of a report. Until it is written, what is there stays.
#[derive(Debug)]
pub struct ReportFile {
    path: PathBuf,
    way: Way,
}

/// How a report gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As another file, which takes the place of this one: a reader sees all of the old one or all of the new.
    Replace,
    /// Into what is there: a pipe, a terminal, a file in a folder of somebody else's.
    Write,
}

impl ReportFile {
    /// Finds out whether a report can be written there, and changes nothing.
    pub fn look(path: &Path) -> Result<ReportFile, ReportError> {
        let failed = |cause| ReportError { path: path.to_owned(), cause, hint: PATH };
        let refuse = |why: &str| Err(failed(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned())));
        match fs::metadata(path) {
            Ok(facts) if facts.is_dir() => refuse("it is a directory"),
            Ok(facts) if facts.file_type().is_block_device() => {
                refuse("it is a block device, whose contents the report would overwrite")
            }
            Ok(facts) => {
                host::may_write(path).map_err(failed)?;
                // What a link leads to is replaced, not the link.
                let path = path.canonicalize().map_err(failed)?;
                let replaceable = facts.is_file() && host::may_write(folder(&path)).is_ok();
                Ok(ReportFile { path, way: if replaceable { Way::Replace } else { Way::Write } })
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                host::may_write(folder(path)).map_err(failed)?;
                Ok(ReportFile { path: path.to_owned(), way: Way::Replace })
            }
            Err(cause) => Err(failed(cause)),
        }
    }

    /// Writes the report.
    pub fn write(&self, text: &str) -> Result<(), ReportError> {
        let written = match self.way {
            Way::Replace => self.replace(text),
            Way::Write => OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(&self.path)
                .and_then(|mut file| file.write_all(text.as_bytes())),
        };
        written.map_err(|cause| ReportError { path: self.path.clone(), cause, hint: FULL })
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let draft = self.path.with_file_name(name);
        let write = || {
            // Never through what somebody else has put there.
            let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
            file.write_all(text.as_bytes())?;
            if let Ok(facts) = fs::metadata(&self.path) {
                file.set_permissions(facts.permissions())?;
            }
            file.sync_all()?;
            fs::rename(&draft, &self.path)
        };
        // Who could not write it may not be able to remove it either; the first failure is the one to know.
        write().inspect_err(|_| drop(fs::remove_file(&draft)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn looking_changes_nothing_and_writing_leaves_one_whole_file_where_a_link_leads() {
        let place = tempfile::tempdir().unwrap();
        let (old, link, new) =
            (place.path().join("old"), place.path().join("link"), place.path().join("new"));
        fs::write(&old, "an earlier report, which was longer").unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("old", &link).unwrap();
        let files = [ReportFile::look(&link).unwrap(), ReportFile::look(&new).unwrap()];
        assert!(fs::read_to_string(&old).unwrap().starts_with("an earlier") && !new.exists());
        files.iter().for_each(|file| file.write("{}").unwrap());
        assert_eq!([&old, &link, &new].map(|path| fs::read_to_string(path).unwrap()), ["{}"; 3]);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&old).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 3, "no draft is left");
    }

    #[test]
    fn what_cannot_be_written_is_found_before_the_start() {
        let place = tempfile::tempdir().unwrap();
        for (path, why) in
            [(place.path().join("no/report"), "No such file"), (place.path().into(), "it is a directory")]
        {
            let text = ReportFile::look(&path).unwrap_err().to_string();
            assert!(text.contains(why) && text.contains("--report"), "{text}");
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_plain_file_is_written_and_not_replaced() {
        let null = ReportFile::look(Path::new("/dev/null")).unwrap();
        assert_eq!(null.way, Way::Write);
        null.write("{}").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }
}
