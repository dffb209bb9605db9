//! Where the sockets of running VMs lie, and the claim of one.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use config::VmName;
use own::{OwnError, OwnFolder, own_user};

use crate::own_socket::{OwnSocket, SocketError};

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
    /// The folder cannot be read.
    #[error("cannot read the folder of control sockets {}: {cause}. Name another one: {OVERRIDE}=/path", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The folder could not be made, opened or locked, or others could put sockets of theirs into it.
    #[error("the folder of control sockets cannot be used: {0}. Or name another one: {OVERRIDE}=/path")]
    Folder(#[from] OwnError),
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
    #[error("the VM's control socket cannot be made: {0}")]
    Socket(SocketError),
}

/// The folder in which the sockets of VMs lie, one for each: `NAME.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder for VMs of this user: `/run/skep/vm` for root, `$XDG_RUNTIME_DIR/skep` for others, or what
    /// `SKEP_RUNTIME_DIR` names. It need not exist.
    pub fn of_this_user() -> Result<Folder, FolderError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Folder::of(set(OVERRIDE), own_user(), set("XDG_RUNTIME_DIR"))
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
            Err(cause) => return Err(self.unreadable(cause)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(|cause| self.unreadable(cause))?.file_name();
            names.extend(file.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<VmName>().ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Claims the name: makes its socket, for this user alone, in place of one that a killed VM left. Refused while
    /// a VM of that name runs.
    pub fn claim(&self, name: &VmName) -> Result<Claim, FolderError> {
        let folder = OwnFolder::make(&self.0)?;
        match OwnSocket::in_folder(folder, &format!("{name}{SUFFIX}")) {
            Ok(socket) => Ok(Claim { socket }),
            Err(SocketError::Alive { path, pid }) => {
                Err(FolderError::Alive { name: name.clone(), path, pid })
            }
            Err(SocketError::Lock(cause)) => Err(FolderError::Folder(cause)),
            Err(other) => Err(FolderError::Socket(other)),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn unreadable(&self, cause: io::Error) -> FolderError {
        FolderError::Unreadable { path: self.0.clone(), cause }
    }
}

/// A name that is ours: its socket, on which somebody may connect from now on. The socket goes when this is dropped.
#[derive(Debug)]
pub struct Claim {
    pub(crate) socket: OwnSocket,
}

impl Claim {
    /// The socket.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unix;
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::net::UnixListener;

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
        assert_eq!(folder.names().unwrap(), []);
        assert!(!folder.socket(&name("web")).exists());
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
        OwnFolder::make(folder.path()).unwrap();
        let path = folder.socket(&name("web"));
        // A listener that is closed without more leaves its file, as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        let claim = folder.claim(&name("web")).unwrap();
        assert!(unix::connect(claim.path()).is_ok());
    }

    #[test]
    fn something_else_at_the_place_is_left_alone() {
        let (_place, folder) = folder();
        OwnFolder::make(folder.path()).unwrap();
        let path = folder.socket(&name("web"));
        fs::write(&path, "mine").unwrap();
        let error = folder.claim(&name("web")).unwrap_err().to_string();
        assert!(error.contains("remove it"), "{error}");
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
