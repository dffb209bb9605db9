//! Whether this process may write a file, found out without opening it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// include/uapi/linux/magic.h.
const SYSFS_MAGIC: libc::c_long = 0x6265_6572;

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

/// Whether [`may_write`] allows to make this file or folder, with the folders on its way that are not there yet.
pub fn may_make(path: &Path) -> io::Result<()> {
    // A name without folders is made in the working directory, whose path is empty here.
    let folders = path.ancestors().skip(1).map(|folder| match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    });
    for folder in folders {
        match folder.metadata() {
            Ok(facts) if facts.is_dir() => return takes_files(folder).and_then(|()| may_write(folder)),
            Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Refuses folders of the kernel's own, which root may write and where it still makes no file.
fn takes_files(folder: &Path) -> io::Result<()> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: statfs is plain data, for which all zeroes are valid.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a NUL, and the kernel writes one statfs.
    let status = unsafe { libc::statfs(path.as_ptr(), &raw mut answer) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    match answer.f_type {
        libc::PROC_SUPER_MAGIC | SYSFS_MAGIC => Err(io::Error::other(format!(
            "{} is the kernel's, and no file can be made there",
            folder.display()
        ))),
        _ => Ok(()),
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

    #[test]
    fn what_may_be_made_has_a_folder_above_it_in_which_it_may_be() {
        let place = tempfile::tempdir().unwrap();
        may_make(&place.path().join("a/b/c")).unwrap();
        may_make(Path::new("a-name-alone")).unwrap();
        std::fs::write(place.path().join("file"), "").unwrap();
        let error = may_make(&place.path().join("file/b")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "nothing was made");
        for path in ["/proc/a", "/proc/self/a/b", "/sys/a", "/sys/class/a"] {
            let error = may_make(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains("is the kernel's"), "{error}");
        }
    }
}
