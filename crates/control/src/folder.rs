//! Where the sockets of running VMs lie, and the claim of one.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use config::VmName;

use crate::unix::{self, Peer};

/// Names another folder than the usual one; for tests and for several worlds on one host.
const OVERRIDE: &str = "SKEP_RUNTIME_DIR";
/// What the names of sockets end with.
const SUFFIX: &str = ".sock";

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is no place for sockets.
    #[error(
        "there is no folder for control sockets: XDG_RUNTIME_DIR is not set. Log in through a session that sets it, or \
         name a folder of your own: {OVERRIDE}=/path"
    )]
    NoPlace,
    /// The folder that was named is another one wherever skep is started.
    #[error("{OVERRIDE} is {value:?}, which is not an absolute path. Write one that begins with /")]
    Relative {
        /// What was named.
        value: OsString,
    },
    /// The folder could not be made, read or locked.
    #[error("cannot {what} the folder of control sockets {}: {cause}. Name another one: {OVERRIDE}=/path", path.display())]
    Folder {
        /// What was tried.
        what: &'static str,
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// Others could put sockets of theirs into the folder.
    #[error(
        "the folder of control sockets {} can be written by others (owner {owner}, mode {mode:04o}). Make it yours alone: \
         chown {user} and chmod 700, or name another one: {OVERRIDE}=/path",
        path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
        /// Who should own it.
        user: u32,
    },
    /// A VM of this name runs.
    #[error(
        "a VM called {name} runs already{}: it listens on {}. Give this one another name (--name), or end that one: \
         skep stop {name}",
        pid.map_or(String::new(), |pid| format!(" in process {pid}")),
        path.display()
    )]
    Alive {
        /// The name.
        name: VmName,
        /// Its socket.
        path: PathBuf,
        /// Its process, if it could be asked.
        pid: Option<u32>,
    },
    /// The socket could not be made.
    #[error("cannot {what} the control socket {}: {cause}. {hint}", path.display())]
    Socket {
        /// What was tried.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
        /// What a person can do.
        hint: &'static str,
    },
}

/// The folder in which the sockets of VMs lie, one for each: `NAME.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder for VMs of this user: `/run/skep/vm` for root, `$XDG_RUNTIME_DIR/skep` for others, or what
    /// `SKEP_RUNTIME_DIR` names. It need not exist.
    pub fn of_this_user() -> Result<Folder, FolderError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Folder::of(set(OVERRIDE), unix::own_user(), set("XDG_RUNTIME_DIR"))
    }

    fn of(named: Option<OsString>, user: u32, runtime: Option<OsString>) -> Result<Folder, FolderError> {
        match named {
            Some(value) if !Path::new(&value).is_absolute() => return Err(FolderError::Relative { value }),
            Some(path) => return Ok(Folder(path.into())),
            None if user == 0 => return Ok(Folder("/run/skep/vm".into())),
            None => {}
        }
        // A relative one is to be ignored (XDG Base Directory Specification).
        let base = runtime.filter(|value| Path::new(value).is_absolute()).ok_or(FolderError::NoPlace)?;
        Ok(Folder(Path::new(&base).join("skep")))
    }

    /// This folder.
    pub fn at(path: impl Into<PathBuf>) -> Folder {
        Folder(path.into())
    }

    /// The place of a VM's socket.
    pub fn socket(&self, name: &VmName) -> PathBuf {
        self.0.join(format!("{name}{SUFFIX}"))
    }

    /// The VMs that have a socket, by name. A VM that was killed may have left one at which nobody listens.
    pub fn names(&self) -> Result<Vec<VmName>, FolderError> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(self.failed("read", cause)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(|cause| self.failed("read", cause))?.file_name();
            names.extend(file.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<VmName>().ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Claims the name: makes its socket, for this user alone, in place of one that a killed VM left. Refused while
    /// a VM of that name runs.
    pub fn claim(&self, name: &VmName) -> Result<Claim, FolderError> {
        self.prepare()?;
        let path = self.socket(name);
        let _lock = self.lock()?;
        let hint = "Is something else at that path? Remove it.";
        let fail = |what, hint| {
            let path = path.clone();
            move |cause| FolderError::Socket { what, path, cause, hint }
        };
        match unix::connect(&path) {
            Ok(stream) => {
                let pid = Peer::of(&stream).ok().map(|peer| peer.pid);
                return Err(FolderError::Alive { name: name.clone(), path, pid });
            }
            // No room to connect, for so many do: somebody listens.
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                return Err(FolderError::Alive { name: name.clone(), path, pid: None });
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            // Nobody listens: its VM is dead.
            Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused && is_socket(&path) => {}
            Err(cause) => return Err(fail("use", hint)(cause)),
        }
        // It gets its mode before it gets its name, so nobody ever finds it open to others.
        let draft = self.0.join(format!("{name}.new"));
        let listener = bind(&draft).map_err(fail("make", "Give the VM a shorter name (--name)."))?;
        fs::set_permissions(&draft, Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&draft, &path))
            .map_err(|cause| {
            // What remains is removed by the next claim, if not now.
            drop(fs::remove_file(&draft));
            fail("make", hint)(cause)
        })?;
        Ok(Claim { listener, path, folder: self.clone() })
    }

    /// Makes the folder if need be, and sees that nobody else can put anything into it.
    fn prepare(&self) -> Result<(), FolderError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(|cause| self.failed("make", cause))?;
        let metadata = fs::metadata(&self.0).map_err(|cause| self.failed("look at", cause))?;
        let (owner, mode, user) = (metadata.uid(), metadata.mode() & 0o7777, unix::own_user());
        if owner != user || mode & 0o022 != 0 {
            return Err(FolderError::Foreign { path: self.0.clone(), owner, mode, user });
        }
        Ok(())
    }

    /// Holds off all other claims while the file is open.
    fn lock(&self) -> Result<File, FolderError> {
        let lock = || {
            let folder = File::open(&self.0)?;
            folder.lock()?;
            Ok(folder)
        };
        lock().map_err(|cause| self.failed("lock", cause))
    }

    fn failed(&self, what: &'static str, cause: io::Error) -> FolderError {
        FolderError::Folder { what, path: self.0.clone(), cause }
    }
}

/// A name that is ours: its socket, on which somebody may connect from now on. The socket goes when this is dropped.
#[derive(Debug)]
pub struct Claim {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    folder: Folder,
}

impl Claim {
    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // We still listen, so nobody could replace the socket; without the lock somebody could be about to.
        let lock = self.folder.lock();
        if let Err(cause) = fs::remove_file(&self.path)
            && cause.kind() != io::ErrorKind::NotFound
        {
            eprintln!(
                "skep: cannot remove the control socket {}: {cause}. Remove it by hand.",
                self.path.display()
            );
        }
        unix::stop_listening(&self.listener);
        drop(lock);
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => UnixListener::bind(path),
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VmName {
        text.parse().unwrap()
    }

    fn folder() -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::at(place.path().join("a/b"));
        (place, folder)
    }

    #[test]
    fn a_folder_that_is_named_counts_and_a_relative_one_is_an_error() {
        let of = |named: &str, user, runtime: &str| {
            let some = |text: &str| Some(OsString::from(text)).filter(|text| !text.is_empty());
            Folder::of(some(named), user, some(runtime)).map_err(|error| error.to_string())
        };
        assert_eq!(of("/mine", 0, "/run/user/7"), Ok(Folder::at("/mine")));
        assert_eq!(of("", 0, "/run/user/7"), Ok(Folder::at("/run/skep/vm")));
        assert_eq!(of("", 7, "/run/user/7"), Ok(Folder::at("/run/user/7/skep")));
        assert!(of("mine", 0, "").unwrap_err().contains("SKEP_RUNTIME_DIR is \"mine\""));
        assert!(of("", 7, "user/7").is_err() && of("", 7, "").is_err());
    }

    #[test]
    fn a_socket_is_for_its_owner_alone_and_goes_with_the_claim() {
        let (_place, folder) = folder();
        assert_eq!(folder.names().unwrap(), []);
        let claim = folder.claim(&name("web")).unwrap();
        assert_eq!(fs::metadata(claim.path()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&folder.0).unwrap().mode() & 0o777, 0o700);
        assert_eq!(folder.names().unwrap(), [name("web")]);
        drop(claim);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }

    #[test]
    fn the_name_of_a_vm_that_runs_is_refused_in_a_sentence() {
        let (_place, folder) = folder();
        let claim = folder.claim(&name("web")).unwrap();
        let error = folder.claim(&name("web")).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(error.starts_with(&format!("a VM called web runs already in process {pid}: ")), "{error}");
        assert!(error.contains("--name") && error.ends_with("skep stop web"), "{error}");
        folder.claim(&name("db")).unwrap();
        assert!(unix::connect(claim.path()).is_ok(), "it still listens");
    }

    #[test]
    fn what_a_killed_vm_left_is_replaced() {
        let (_place, folder) = folder();
        folder.prepare().unwrap();
        let path = folder.socket(&name("web"));
        // A listener that is closed without more leaves its file, as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        drop(UnixListener::bind(folder.0.join("web.new")).unwrap());
        let claim = folder.claim(&name("web")).unwrap();
        assert!(unix::connect(claim.path()).is_ok());
    }

    #[test]
    fn something_else_at_the_place_is_left_alone() {
        let (_place, folder) = folder();
        folder.prepare().unwrap();
        let path = folder.socket(&name("web"));
        fs::write(&path, "mine").unwrap();
        let error = folder.claim(&name("web")).unwrap_err().to_string();
        assert!(error.contains("Remove it"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused_with_the_remedy() {
        let (place, _) = folder();
        fs::set_permissions(place.path(), Permissions::from_mode(0o777)).unwrap();
        let error = Folder::at(place.path()).claim(&name("web")).unwrap_err().to_string();
        assert!(error.contains("mode 0777") && error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_name_too_long_for_a_socket_is_said() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::at(place.path().join("x".repeat(60)));
        let error = folder.claim(&name(&"y".repeat(64))).unwrap_err().to_string();
        assert!(error.contains("shorter") || error.contains("107 bytes"), "{error}");
    }
}
