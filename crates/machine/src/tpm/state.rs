//! Where an emulated TPM keeps what it must not forget.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::TpmError;

/// A folder with a TPM's state, or where it will be.
#[derive(Debug)]
pub struct State(PathBuf);

impl State {
    /// Looks at the folder, if it is there.
    pub fn check(path: &Path) -> Result<State, TpmError> {
        match fs::metadata(path) {
            Ok(_) => drop(lock(path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
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
}

fn failed(what: &'static str, path: &Path, cause: io::Error) -> TpmError {
    TpmError::State { what, path: path.to_path_buf(), cause }
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
    }

    #[test]
    fn what_is_no_folder_is_refused_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tpm2");
        fs::write(&path, "text").unwrap();
        let error = State::check(&path).unwrap_err().to_string();
        assert!(error.contains("cannot open the TPM's state"), "{error}");
        assert!(State::check(&path.join("below")).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"text");
    }
}
