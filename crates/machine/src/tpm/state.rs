//! Where an emulated TPM keeps what it must not forget.

use std::fs::{self, DirBuilder, File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};

use super::TpmError;

/// The file of a state that swtpm locks with its first INIT, until it ends.
pub const LOCK: &str = ".lock";

/// A folder with a TPM's state, or where it will be.
#[derive(Debug)]
pub struct State(PathBuf);

impl State {
    /// Looks at the folder, if it is there.
    pub fn check(path: &Path) -> Result<State, TpmError> {
        match fs::metadata(path) {
            Ok(facts) => {
                drop(lock(path)?);
                own(&facts).map_err(|cause| failed("trust", path, cause))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                host::may_make(path).map_err(|cause| failed("make", path, cause))?;
            }
            Err(cause) => return Err(failed("open", path, cause)),
        }
        Ok(State(path.to_path_buf()))
    }

    /// Makes the folder if need be, and keeps other VMs away from it.
    pub fn take(&self) -> Result<Taken, TpmError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(|cause| failed("make", &self.0, cause))?;
        Ok(Taken { path: self.0.clone(), _lock: lock(&self.0)? })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// A state that this VM uses and no other.
#[derive(Debug)]
pub struct Taken {
    path: PathBuf,
    _lock: File,
}

impl Taken {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that has swtpm's own lock of the state, if one has. One that cannot be asked for is swtpm's to tell of.
    pub fn holder(&self) -> Option<String> {
        let file = File::open(self.path.join(LOCK)).ok()?;
        let (whole, nobody) = (0, 0);
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: whole,
            l_pid: nobody,
        };
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).ok()?;
        if lock.l_type == libc::F_UNLCK as libc::c_short {
            return None;
        }
        // One of another container has no number here.
        if lock.l_pid <= 0 {
            return Some("another process".into());
        }
        let name = fs::read_to_string(format!("/proc/{}/comm", lock.l_pid)).unwrap_or_default();
        Some(format!("process {} ({})", lock.l_pid, name.trim()))
    }
}

fn failed(what: &'static str, path: &Path, cause: io::Error) -> TpmError {
    TpmError::State { what, path: path.to_path_buf(), cause }
}

/// Whether nobody but root and who starts this can reach what the TPM keeps secret.
fn own(facts: &Metadata) -> io::Result<()> {
    let (mode, owner) = (facts.mode() & 0o777, facts.uid());
    if mode & 0o077 != 0 {
        return Err(io::Error::other(format!("its mode is {mode:04o}, so others can reach it (chmod 700)")));
    }
    let user = nix::unistd::geteuid();
    if !user.is_root() && owner != user.as_raw() {
        return Err(io::Error::other(format!("it belongs to user {owner}")));
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, TpmError> {
    let folder = File::open(path).map_err(|cause| failed("open", path, cause))?;
    if !folder.metadata().is_ok_and(|facts| facts.is_dir()) {
        return Err(failed("open", path, io::ErrorKind::NotADirectory.into()));
    }
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => Err(TpmError::InUse(path.to_path_buf())),
        Err(TryLockError::Error(cause)) => Err(failed("lock", path, cause)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_state_is_its_owners_and_one_vms_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm/tpm2");
        let state = State::check(&path).unwrap();
        assert!(!path.exists(), "a check makes nothing");
        let taken = state.take().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for error in [State::check(&path).unwrap_err(), state.take().unwrap_err()] {
            assert!(error.to_string().contains("in use by another process"), "{error}");
        }
        drop(taken);
        State::check(&path).unwrap().take().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        let error = State::check(&path).unwrap_err().to_string();
        assert!(error.contains("its mode is 0750") && error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn what_is_no_folder_is_refused_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tpm2");
        fs::write(&path, "text").unwrap();
        let error = State::check(&path).unwrap_err().to_string();
        assert!(error.contains("cannot open the TPM's state"), "{error}");
        for below in ["below", "far/below"] {
            let error = State::check(&path.join(below)).unwrap_err().to_string();
            assert!(error.contains("Not a directory"), "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), b"text");
    }
}
