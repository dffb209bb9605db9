//! Folders in which skep keeps what only its own user may put there: records of devices, locks, sockets.
//!
//! A user who could write there could make skep give devices to drivers of his choice, and one who could lock a file there
//! could keep VMs from starting. So a folder is looked at on every use, held open, and everything in it is reached through
//! that descriptor: what it is called now may be another folder a moment later.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::openers::Openers;

/// Bytes of a file at most.
const LONGEST: u64 = 64 << 10;

/// How often to try for a lock.
const PAUSE: Duration = Duration::from_millis(10);

/// A folder, held open, in which only this user, or root, can put something.
#[derive(Debug)]
pub struct OwnFolder {
    folder: File,
    path: PathBuf,
}

/// Why a folder, or a file in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    /// A call failed.
    #[error("cannot {what} {}: {cause}", path.display())]
    Failed {
        /// What was tried: "make", "lock" …
        what: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// Another user may have made it, or may change it.
    #[error(
        "{} is not safe to use: it has owner {owner} and mode {mode:04o}, so users other than {user} can have written \
         to it. Look at what is in it. Then remove it, or make it yours alone: chown {user} and chmod {safe:03o}",
        path.display()
    )]
    Foreign {
        /// The folder or file.
        path: PathBuf,
        /// The user it belongs to.
        owner: u32,
        /// Its mode.
        mode: u32,
        /// The user it should belong to.
        user: u32,
        /// The mode it should have.
        safe: u32,
    },
    /// Something else has that name.
    #[error("{} is not a {wanted}: something else has that name. Look at it, and remove it", path.display())]
    Kind {
        /// What was found.
        path: PathBuf,
        /// "folder" or "plain file".
        wanted: &'static str,
    },
    /// Another process has held the lock all the time.
    #[error("{} held the lock {} for {} s", holders(by), path.display(), after.as_secs())]
    Held {
        /// The lock.
        path: PathBuf,
        /// How long it was waited for.
        after: Duration,
        /// Who holds it, as far as can be seen.
        by: Vec<String>,
    },
}

/// "process 7 (skep) has", as the start of a sentence.
pub fn holders(by: &[String]) -> String {
    if by.is_empty() { "another process has".to_owned() } else { format!("{} has", by.join(", ")) }
}

impl OwnError {
    /// Whether this user may not look there at all.
    pub fn is_denied(&self) -> bool {
        matches!(self, OwnError::Failed { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl OwnFolder {
    /// Opens the folder, and makes it (mode 0700, whatever the umask) if it is not there, with those above it.
    pub fn make(path: &Path) -> Result<OwnFolder, OwnError> {
        OwnFolder::made(path, OwnFolder::open)
    }

    /// The same for a folder that is skep's by its name alone: one of this user's that others can write to is closed to
    /// them first. What they have put there is refused file by file.
    pub fn make_private(path: &Path) -> Result<OwnFolder, OwnError> {
        OwnFolder::made(path, OwnFolder::open_private)
    }

    fn made(
        path: &Path,
        open: impl Fn(&Path) -> Result<Option<OwnFolder>, OwnError>,
    ) -> Result<OwnFolder, OwnError> {
        match open(path)? {
            Some(folder) => Ok(folder),
            None => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
                made.map_err(|cause| failed("make", path, cause))?;
                let gone = || failed("open", path, io::ErrorKind::NotFound.into());
                open(path)?.ok_or_else(gone)
            }
        }
    }

    /// Opens the folder, if it is there.
    ///
    /// # Errors
    ///
    /// It is a symbolic link or a file, others can write to it or to one above it, or it cannot be opened.
    pub fn open(path: &Path) -> Result<Option<OwnFolder>, OwnError> {
        OwnFolder::unchecked(path)?.map(OwnFolder::checked).transpose()
    }

    /// The same, as with [`OwnFolder::make_private`].
    pub fn open_private(path: &Path) -> Result<Option<OwnFolder>, OwnError> {
        let Some(found) = OwnFolder::unchecked(path)? else { return Ok(None) };
        let facts = found.facts()?;
        if facts.uid() == own_user() && facts.mode() & 0o022 != 0 {
            let closed = found.folder.set_permissions(Permissions::from_mode(0o700));
            closed.map_err(|cause| failed("change the mode of", path, cause))?;
        }
        found.checked().map(Some)
    }

    fn unchecked(path: &Path) -> Result<Option<OwnFolder>, OwnError> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(folder) => Ok(Some(OwnFolder { folder, path: path.to_owned() })),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {
                Err(OwnError::Kind { path: path.to_owned(), wanted: "folder" })
            }
            Err(cause) => Err(failed("open", path, cause)),
        }
    }

    fn facts(&self) -> Result<Metadata, OwnError> {
        self.folder.metadata().map_err(|cause| failed("look at", &self.path, cause))
    }

    fn checked(self) -> Result<OwnFolder, OwnError> {
        check(&self.path, &self.facts()?, 0o700)?;
        for above in self.path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            let facts = fs::metadata(above).map_err(|cause| failed("look at", above, cause))?;
            // In a folder such as /tmp nobody can rename what belongs to others.
            if facts.mode() & 0o002 != 0 && facts.mode() & 0o1000 == 0 {
                return Err(foreign(above, &facts, 0o755));
            }
        }
        Ok(self)
    }

    /// What it was called when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The way to a file in it, whatever the folder is called by now. Good as long as the folder is open.
    pub fn place(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd())).join(name)
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Result<Vec<String>, OwnError> {
        let failed = |cause| failed("read", &self.path, cause);
        let mut names = Vec::new();
        for entry in fs::read_dir(self.place("")).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    /// What a file in it holds, if it is there. Refused where another user may have written it.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, OwnError> {
        let path = self.path.join(name);
        let Some(file) = self.open_file(name, OpenOptions::new().read(true))? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes).map_err(|cause| failed("read", &path, cause))?;
        Ok(Some(bytes))
    }

    /// Puts a file in place whole, for this user alone: a reader sees the old one or the new one.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), OwnError> {
        let draft = format!("{name}.{}.new", std::process::id());
        let write = || {
            remove(&self.place(&draft))?;
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.place(&draft))?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(bytes)?;
            fs::rename(self.place(&draft), self.place(name))
        };
        write().map_err(|cause| failed("write", &self.path.join(name), cause))
    }

    /// Removes what has that name; well if nothing has.
    pub fn remove(&self, name: &str) -> Result<(), OwnError> {
        remove(&self.place(name)).map_err(|cause| failed("remove", &self.path.join(name), cause))
    }

    /// Holds a lock that only this user and root can take, as long as the file is open. `proc` is where /proc
    /// is, which shows who has it.
    pub fn lock(&self, proc: &Path, name: &str, patience: Duration) -> Result<File, OwnError> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let gone = || failed("open", &path, io::ErrorKind::NotFound.into());
        let file = self.open_file(name, &mut options)?.ok_or_else(gone)?;
        let facts = file.metadata().map_err(|cause| failed("look at", &path, cause))?;
        if facts.mode() & 0o077 != 0 {
            // Who can read it can lock it.
            let private = file.set_permissions(Permissions::from_mode(0o600));
            private.map_err(|cause| failed("change the mode of", &path, cause))?;
        }
        let until = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(cause)) => return Err(failed("lock", &path, cause)),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => break,
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            }
        }
        Err(OwnError::Held { path, after: patience, by: Openers::WithLock.of(&facts, proc) })
    }

    fn open_file(&self, name: &str, options: &mut OpenOptions) -> Result<Option<File>, OwnError> {
        let path = self.path.join(name);
        // A pipe that somebody put there must not be waited for.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match options.custom_flags(flags).open(self.place(name)) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::EISDIR)) => {
                return Err(OwnError::Kind { path, wanted: "plain file" });
            }
            Err(cause) => return Err(failed("open", &path, cause)),
        };
        let facts = file.metadata().map_err(|cause| failed("look at", &path, cause))?;
        if !facts.is_file() {
            return Err(OwnError::Kind { path, wanted: "plain file" });
        }
        check(&path, &facts, 0o600)?;
        Ok(Some(file))
    }
}

/// Refuses what another user than this one and root can have written.
fn check(path: &Path, facts: &Metadata, safe: u32) -> Result<(), OwnError> {
    let owned = facts.uid() == own_user() || facts.uid() == 0;
    if owned && facts.mode() & 0o022 == 0 { Ok(()) } else { Err(foreign(path, facts, safe)) }
}

fn foreign(path: &Path, facts: &Metadata, safe: u32) -> OwnError {
    let (owner, mode, user) = (facts.uid(), facts.mode() & 0o7777, own_user());
    OwnError::Foreign { path: path.to_owned(), owner, mode, user, safe }
}

fn failed(what: &'static str, path: &Path, cause: io::Error) -> OwnError {
    OwnError::Failed { what, path: path.to_owned(), cause }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => Ok(()),
    }
}

/// The effective user of this process.
pub fn own_user() -> u32 {
    // SAFETY: asks for a number; cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run/skep");
        (place, path)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn whatever_the_umask_the_folder_and_its_files_are_for_one_user() {
        let (_place, path) = scratch();
        // SAFETY: sets a number of this process, which no other test depends on.
        let before = unsafe { libc::umask(0) };
        let folder = OwnFolder::make(&path).unwrap();
        folder.write("it", b"1").unwrap();
        folder.write("it", b"2").unwrap();
        let lock = folder.lock(Path::new("/proc"), "lock", Duration::ZERO);
        // SAFETY: as above.
        unsafe { libc::umask(before) };
        lock.unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o700, 0o700));
        assert_eq!((mode(&path.join("it")), mode(&path.join("lock"))), (0o600, 0o600));
        assert_eq!(folder.read("it").unwrap().unwrap(), b"2");
        assert_eq!(folder.names().unwrap(), ["it", "lock"]);
        folder.remove("it").unwrap();
        folder.remove("it").unwrap();
        assert_eq!(folder.read("it").unwrap(), None);
    }

    #[test]
    fn a_folder_that_others_can_write_to_and_one_below_such_a_folder_are_refused() {
        let (_place, path) = scratch();
        OwnFolder::make(&path).unwrap();
        chmod(&path, 0o777);
        let text = OwnFolder::make(&path).unwrap_err().to_string();
        assert!(text.contains("/run/skep is not safe") && text.contains("mode 0777"), "{text}");
        chmod(&path, 0o700);
        chmod(path.parent().unwrap(), 0o777);
        let text = OwnFolder::open(&path).unwrap_err().to_string();
        assert!(text.contains("/run is not safe"), "{text}");
        chmod(path.parent().unwrap(), 0o1777);
        OwnFolder::open(&path).unwrap().unwrap();
        // One that has skep's own name is closed to others instead.
        for open in [0o777, 0o1777, 0o775] {
            chmod(&path, open);
            OwnFolder::make_private(&path).unwrap();
            assert_eq!(mode(&path), 0o700);
        }
    }

    #[test]
    fn a_link_or_file_in_place_of_the_folder_is_refused() {
        let (place, path) = scratch();
        OwnFolder::make(&path).unwrap();
        let link = place.path().join("link");
        symlink(&path, &link).unwrap();
        fs::write(place.path().join("file"), "").unwrap();
        for name in ["link", "file"] {
            let text = OwnFolder::make(&place.path().join(name)).unwrap_err().to_string();
            assert!(text.contains("is not a folder"), "{text}");
        }
    }

    #[test]
    fn a_file_that_others_can_have_written_is_refused_by_name_owner_and_mode() {
        let (_place, path) = scratch();
        let folder = OwnFolder::make(&path).unwrap();
        fs::write(path.join("it"), "planted").unwrap();
        chmod(&path.join("it"), 0o666);
        let text = folder.read("it").unwrap_err().to_string();
        let owner = own_user();
        assert!(
            text.contains(&format!("/run/skep/it is not safe to use: it has owner {owner} and mode 0666")),
            "{text}"
        );
        assert!(folder.lock(Path::new("/proc"), "it", Duration::ZERO).is_err());
        folder.write("it", b"ours").unwrap();
        assert_eq!(folder.read("it").unwrap().unwrap(), b"ours", "written anew, it is ours");
    }

    #[test]
    fn links_pipes_and_folders_in_place_of_a_file_are_refused_and_not_waited_for() {
        let (_place, path) = scratch();
        let folder = OwnFolder::make(&path).unwrap();
        folder.write("it", b"ours").unwrap();
        symlink(path.join("it"), path.join("link")).unwrap();
        fs::create_dir(path.join("dir")).unwrap();
        let pipe = std::ffi::CString::new(path.join("pipe").to_str().unwrap()).unwrap();
        // SAFETY: a path that ends with 0.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        for name in ["link", "pipe", "dir"] {
            let text = folder.read(name).unwrap_err().to_string();
            assert!(text.contains("is not a plain file"), "{name}: {text}");
            assert!(folder.lock(Path::new("/proc"), name, Duration::ZERO).is_err(), "{name}");
        }
    }

    #[test]
    fn a_lock_that_others_could_take_no_longer_is_one_that_they_can() {
        let (_place, path) = scratch();
        let folder = OwnFolder::make(&path).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        chmod(&path.join("lock"), 0o644);
        let lock = folder.lock(Path::new("/proc"), "lock", Duration::ZERO).unwrap();
        assert_eq!(mode(&path.join("lock")), 0o600);
        let text = folder.lock(Path::new("/proc"), "lock", Duration::ZERO).unwrap_err().to_string();
        assert!(text.contains("held the lock") && text.contains("/run/skep/lock"), "{text}");
        drop(lock);
        folder.lock(Path::new("/proc"), "lock", Duration::ZERO).unwrap();
    }
}
