//! Whether this process may write a file, found out without opening it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether this process, with its effective user and its capabilities, may write to a file, or put files into a folder.
/// Nothing is opened or changed. The error is the kernel's: no permission, a read-only file system, no such file.
pub fn may_write(path: &Path) -> io::Result<()> {
    // For a folder, to search it is as much part of making a file there as to write it.
    let mode = if path.is_dir() { libc::W_OK | libc::X_OK } else { libc::W_OK };
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the name ends with a zero, and the call reads nothing else of ours.
    match unsafe { libc::faccessat(libc::AT_FDCWD, name.as_ptr(), mode, libc::AT_EACCESS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_written_is_and_what_is_not_there_is_the_kernels_error() {
        let place = tempfile::tempdir().unwrap();
        may_write(place.path()).unwrap();
        let file = place.path().join("a");
        assert_eq!(may_write(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&file, "kept").unwrap();
        may_write(&file).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }
}
