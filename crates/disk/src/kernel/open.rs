//! Opening and claiming what is to be a guest's disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::disk::DiskOptions;
use crate::geometry::{Access, Geometry};
use crate::kernel::{Alignment, Kind, facts, holders};

/// Why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing is there.
    #[error(
        "disk {path}: there is no such file or device. Check the path; `lsblk` and `ls /dev/disk/by-id` show the disks of this host."
    )]
    NotFound {
        /// The path asked for.
        path: PathBuf,
    },
    /// The kernel refused access.
    #[error("disk {path}: {cause}. {hint}")]
    Denied {
        /// The path asked for.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
        /// What a person can do.
        hint: &'static str,
    },
    /// It is neither a block device nor a file.
    #[error("disk {path}: this is {what}, not a disk. Give a block device or a raw image file.")]
    NotADisk {
        /// The path asked for.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// There is no room on it.
    #[error(
        "disk {path}: it has {bytes} bytes, which is less than one block of {block}. Give the image a size first, for example with `truncate -s 10G`; a device without size may have no medium."
    )]
    Empty {
        /// The path asked for.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// Its block in bytes.
        block: u32,
    },
    /// Somebody else uses it.
    #[error(
        "disk {path}: it is in use: {holders}. Free it first (umount, swapoff, stop the array or the VM that uses it)."
    )]
    Busy {
        /// The path asked for.
        path: PathBuf,
        /// Who, as far as can be seen.
        holders: String,
    },
    /// Something about it could not be learned.
    #[error(
        "disk {path}: cannot read its {what}: {cause}. Look into the kernel's log (dmesg) for errors of the device."
    )]
    Unreadable {
        /// The path asked for.
        path: PathBuf,
        /// What was asked.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// It cannot be opened for another reason.
    #[error(
        "disk {path}: cannot open it: {cause}. Look into the kernel's log (dmesg) for errors of the device."
    )]
    Failed {
        /// The path asked for.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

pub(super) struct Opened {
    pub(super) file: File,
    pub(super) kind: Kind,
    pub(super) geometry: Geometry,
    /// `None` when there is no direct I/O.
    pub(super) alignment: Option<Alignment>,
    /// Longest transfer in bytes that the device takes at once.
    pub(super) longest: u64,
}

pub(super) fn open(options: &DiskOptions) -> Result<Opened, OpenError> {
    let path = || options.path.clone();
    let metadata = std::fs::metadata(&options.path).map_err(|cause| refusal(options, cause))?;
    let of = metadata.file_type();
    let kind = match () {
        () if of.is_block_device() => Kind::BlockDevice,
        () if of.is_file() => Kind::File,
        () => {
            let what = match () {
                () if of.is_dir() => "a directory",
                () if of.is_char_device() => "a character device",
                () if of.is_socket() => "a socket",
                () => "a pipe",
            };
            return Err(OpenError::NotADisk { path: path(), what });
        }
    };
    // O_EXCL claims a block device against mounts, swap, md, dm and other claims; files have a lock instead.
    let exclusive = if kind == Kind::BlockDevice { libc::O_EXCL } else { 0 };
    let (file, direct) = match open_file(options, exclusive | libc::O_DIRECT) {
        Ok(file) => (file, true),
        Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) && kind == Kind::File => {
            (open_file(options, exclusive).map_err(|cause| refusal(options, cause))?, false)
        }
        Err(cause) => return Err(refusal(options, cause)),
    };
    if kind == Kind::File {
        lock(&file, options)?;
    }
    let unreadable = |(what, cause)| OpenError::Unreadable { path: path(), what, cause };
    let (geometry, alignment) = facts::read(&file, kind, options.access).map_err(unreadable)?;
    if geometry.capacity.0 == 0 {
        let bytes = if kind == Kind::File { metadata.len() } else { 0 };
        return Err(OpenError::Empty { path: path(), bytes, block: geometry.logical_block });
    }
    let longest = facts::longest_transfer(&file, kind, geometry.logical_block);
    Ok(Opened { file, kind, geometry, alignment: direct.then_some(alignment), longest })
}

fn open_file(options: &DiskOptions, flags: libc::c_int) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(options.access == Access::ReadWrite)
        .custom_flags(flags)
        .open(&options.path)
}

fn refusal(options: &DiskOptions, cause: io::Error) -> OpenError {
    let path = options.path.clone();
    match cause.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => OpenError::NotFound { path },
        Some(libc::EBUSY) => OpenError::Busy { holders: holders::of(&path), path },
        Some(libc::EACCES) => OpenError::Denied {
            path,
            cause,
            hint: "Run as root or give this user access; a device that is itself read-only needs readonly=on.",
        },
        Some(libc::EPERM) => OpenError::Denied {
            path,
            cause,
            hint: "Run as root; a file with the immutable attribute (lsattr) or a read-only device needs readonly=on.",
        },
        Some(libc::EROFS | libc::ETXTBSY) => {
            OpenError::Denied { path, cause, hint: "Open it with readonly=on." }
        }
        Some(libc::ENOMEDIUM) => OpenError::Denied { path, cause, hint: "Insert a medium first." },
        _ => OpenError::Failed { path, cause },
    }
}

/// Locks a file against other users of the same kind of lock; several may read. The lock belongs to the open
/// file and goes with it.
fn lock(file: &File, options: &DiskOptions) -> Result<(), OpenError> {
    // SAFETY: flock is plain data; all zeroes mean "the whole file, from its start".
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = match options.access {
        Access::ReadWrite => libc::F_WRLCK as libc::c_short,
        Access::ReadOnly => libc::F_RDLCK as libc::c_short,
    };
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: our own descriptor and a valid flock for the duration of the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return Ok(());
    }
    let cause = io::Error::last_os_error();
    let path = options.path.clone();
    match cause.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => {
            Err(OpenError::Busy { path, holders: "another program holds a lock on the file".to_owned() })
        }
        // A file system without locks cannot be asked who else uses the file.
        Some(libc::EOPNOTSUPP | libc::ENOLCK | libc::ENOSYS) => Ok(()),
        _ => Err(OpenError::Failed { path, cause }),
    }
}
