//! A file that takes the guest's console: looked at, and locked, before anything else is touched; emptied, or made, only
//! when the VM is there. A start that fails leaves it as it was.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use host::{Host, Openers};

/// Why a file cannot take the console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleFileError {
    /// The system refused something.
    #[error("cannot {what} the console's file {}: {cause}. {hint}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
        /// What a person can do.
        hint: &'static str,
    },
    /// It is a disk.
    #[error(
        "the console's file {} is a block device, whose contents the console would overwrite. Give a plain file, a pipe or \
         a terminal (--console file:PATH).",
        .0.display()
    )]
    Disk(PathBuf),
    /// Another VM writes its console there.
    #[error(
        "the console's file {} is in use: {} holds a lock on it. Give each VM a file of its own (--console file:PATH).",
        path.display(),
        if by.is_empty() { "another process".to_owned() } else { by.join(", ") }
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// Who, as far as can be seen.
        by: Vec<String>,
    },
}

const FOLDER: &str = "Check that its folder exists and may be written to (--console file:PATH).";
const NO_READER: &str = "Nobody reads from this pipe. Start its reader first.";

/// A file for the console's output.
#[derive(Debug)]
pub struct ConsoleFile {
    path: PathBuf,
    /// Open and locked, if it was there already.
    there: Option<File>,
    /// What the console writes to, once it does.
    begun: OnceLock<File>,
}

impl ConsoleFile {
    /// Looks at the file and locks it, if it is there. Its contents stay; a file that is not there is not made.
    pub fn look(path: &Path) -> Result<ConsoleFile, ConsoleFileError> {
        let mut looked = ConsoleFile { path: path.to_owned(), there: None, begun: OnceLock::new() };
        match looked.open(OpenOptions::new().write(true)) {
            Ok(file) => looked.there = Some(file),
            Err(ConsoleFileError::System { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                host::may_write(folder(path)).map_err(|cause| looked.failed("create", cause, FOLDER))?;
            }
            Err(error) => return Err(error),
        }
        Ok(looked)
    }

    /// Takes the console from now on: makes the file, or empties it of what an earlier VM left.
    pub fn begin(&self) -> Result<(), ConsoleFileError> {
        let file = match &self.there {
            // The lock is held by either.
            Some(file) => file.try_clone().map_err(|cause| self.failed("open", cause, FOLDER))?,
            None => self.open(OpenOptions::new().write(true).create(true).truncate(false))?,
        };
        if file.metadata().is_ok_and(|facts| facts.is_file()) {
            let hint = "Give another file (--console file:PATH).";
            file.set_len(0).map_err(|cause| self.failed("empty", cause, hint))?;
        }
        self.begun.get_or_init(|| file);
        Ok(())
    }

    /// Opens it without waiting for anybody, and locks it, unless it is a device, which whoever may open it may share.
    fn open(&self, options: &mut OpenOptions) -> Result<File, ConsoleFileError> {
        let opened = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&self.path);
        let file = opened.map_err(|cause| match cause.raw_os_error() {
            Some(libc::ENXIO) => self.failed("open", cause, NO_READER),
            _ => self.failed("open", cause, FOLDER),
        })?;
        let facts = file.metadata().map_err(|cause| self.failed("look at", cause, FOLDER))?;
        if facts.file_type().is_block_device() {
            return Err(ConsoleFileError::Disk(self.path.clone()));
        }
        if !facts.file_type().is_char_device() {
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let by = Host::here().openers(&facts, Openers::WithLock);
                    return Err(ConsoleFileError::Locked { path: self.path.clone(), by });
                }
                Err(TryLockError::Error(cause)) => return Err(self.failed("lock", cause, FOLDER)),
            }
        }
        wait_when_it_is_full(&file).map_err(|cause| self.failed("set up", cause, FOLDER))?;
        Ok(file)
    }

    fn failed(&self, what: &'static str, cause: io::Error, hint: &'static str) -> ConsoleFileError {
        ConsoleFileError::System { what, path: self.path.clone(), cause, hint }
    }
}

/// The folder that a file lies in.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A write waits for room, though the opening did not wait for a reader.
fn wait_when_it_is_full(file: &File) -> io::Result<()> {
    // SAFETY: both calls take numbers only, and the descriptor is open.
    let done = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        flags >= 0 && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The end into which the console's output goes. What comes before the file has begun goes nowhere.
pub struct Sink(pub Arc<ConsoleFile>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.begun.get().map_or(Ok(bytes.len()), |mut file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_as_it_was_until_the_vm_begins() {
        let place = tempfile::tempdir().unwrap();
        let (old, new) = (place.path().join("old"), place.path().join("new"));
        fs::write(&old, "an earlier VM").unwrap();
        let looked = [ConsoleFile::look(&old).unwrap(), ConsoleFile::look(&new).unwrap()].map(Arc::new);
        assert_eq!((fs::read(&old).unwrap().as_slice(), new.exists()), (&b"an earlier VM"[..], false));
        for file in looked {
            Sink(file.clone()).write_all(b"early").unwrap();
            file.begin().unwrap();
            Sink(file).write_all(b"hello").unwrap();
        }
        assert_eq!([old, new].map(|path| fs::read(path).unwrap()), [b"hello", b"hello"]);
    }

    #[test]
    fn a_file_that_another_vm_writes_is_refused_with_who_it_is() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("console");
        let first = ConsoleFile::look(&path).unwrap();
        let second = ConsoleFile::look(&path).unwrap();
        first.begin().unwrap();
        for refused in [ConsoleFile::look(&path).map(drop), second.begin()] {
            let text = refused.unwrap_err().to_string();
            assert!(text.contains("in use: this process itself") && text.contains("--console"), "{text}");
        }
        drop(first);
        ConsoleFile::look(&path).unwrap();
    }

    #[test]
    fn devices_are_shared_and_a_pipe_without_a_reader_holds_nobody_up() {
        let place = tempfile::tempdir().unwrap();
        let pipe = place.path().join("pipe");
        let null = Path::new("/dev/null");
        let both = [ConsoleFile::look(null).unwrap(), ConsoleFile::look(null).unwrap()];
        both.iter().for_each(|file| file.begin().unwrap());
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let text = ConsoleFile::look(&pipe).unwrap_err().to_string();
        assert!(text.contains("Nobody reads from this pipe"), "{text}");
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe).unwrap();
        ConsoleFile::look(&pipe).unwrap().begin().unwrap();
        drop(reader);
    }

    #[test]
    fn a_folder_that_is_not_there_is_said_and_not_made() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("no/console");
        let text = ConsoleFile::look(&path).unwrap_err().to_string();
        assert!(text.contains("No such file") && text.contains("its folder exists"), "{text}");
        assert!(ConsoleFile::look(place.path()).unwrap_err().to_string().contains("directory"));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
