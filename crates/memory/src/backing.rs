//! The files behind guest RAM.
//!
//! A guest takes one fault where it would take 512, and an IOMMU one entry, when its RAM comes in pages of
//! 2 MiB. A memfd has them only where the administrator allows it (shmem_enabled, by default never); a tmpfs of
//! our own has them from the first touch on, and memory that is never touched costs nothing.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::placement::Pages;

/// `fsconfig` commands (linux/mount.h; not in libc yet).
const SET_STRING: libc::c_uint = 1;
const CREATE: libc::c_uint = 6;

/// When a file has large pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LargePages {
    /// From the first touch on.
    OnTouch,
    /// Only once they were asked for.
    OnRequest,
    /// Always; it has no others.
    Always,
}

/// A file of `len` zeroes in memory, for a shared mapping, that nothing but its descriptor knows.
pub(crate) fn file(len: u64, pages: Pages) -> io::Result<(File, LargePages)> {
    if pages.are_huge() {
        return Ok((memfd(len, pages)?, LargePages::Always));
    }
    // Making a tmpfs takes a privilege (CAP_SYS_ADMIN), and large pages a kernel that has them.
    if let Ok(file) = on_own_tmpfs(len) {
        return Ok((file, LargePages::OnTouch));
    }
    Ok((memfd(len, pages)?, LargePages::OnRequest))
}

/// A file on a tmpfs that is mounted nowhere and goes with the file.
fn on_own_tmpfs(len: u64) -> io::Result<File> {
    // SAFETY: the name is a C string.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    let configure = |command: libc::c_uint, option: Option<(&CStr, &CStr)>| {
        let (key, value) = option
            .map_or((std::ptr::null(), std::ptr::null()), |(key, value)| (key.as_ptr(), value.as_ptr()));
        // SAFETY: key and value are C strings, or null where the command takes none.
        let done = unsafe {
            libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0 as libc::c_int)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // Large pages where they lie wholly inside the file; no limit beside that of the host's memory.
    configure(SET_STRING, Some((c"huge", c"within_size")))?;
    configure(SET_STRING, Some((c"size", c"0")))?;
    configure(CREATE, None)?;
    // SAFETY: plain numbers.
    let mount = owned(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0 as libc::c_uint)
    })?;
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: the path is a C string.
    let file = owned(unsafe { libc::openat(mount.as_raw_fd(), c".".as_ptr(), flags, 0o600) }.into())?;
    let file = File::from(file);
    file.set_len(len)?;
    Ok(file)
}

fn memfd(len: u64, pages: Pages) -> io::Result<File> {
    let huge = match pages {
        Pages::Default => 0,
        Pages::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        Pages::Huge1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge;
    // SAFETY: the name is a C string.
    let file = File::from(owned(unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) }.into())?);
    file.set_len(len)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: a plain fcntl on our own descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// The descriptor that a system call returned, or its error.
fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(returned) {
        // SAFETY: the kernel just gave us this descriptor, and nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn either_file_is_as_long_as_asked_and_reads_as_zeroes() {
        for file in [Ok(memfd(8192, Pages::Default).unwrap()), on_own_tmpfs(8192)].into_iter().flatten() {
            assert_eq!(file.metadata().unwrap().len(), 8192);
            let mut bytes = [1; 16];
            file.read_exact_at(&mut bytes, 8176).unwrap();
            assert_eq!(bytes, [0; 16]);
        }
    }
}
