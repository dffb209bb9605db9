//! Opening and claiming what is to be a guest's disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use host::{Host, Openers};

use super::facts::{self, Kind};
use super::file_options::{FileOptions, Named};
use super::handle::{CopyPolicy, Handle};
use super::lock::{lock, overridden};
use super::route::Route;
use crate::contract::{Access, Geometry, Sectors, WriteCache};
use crate::options::{Allocation, Bounce, Claim, OpenError};

/// A file or device that is open and claimed.
pub(crate) struct Opened {
    pub(crate) handle: Arc<Handle>,
    pub(crate) geometry: Geometry,
    /// What a person should know about how it was opened.
    pub(crate) remarks: Vec<String>,
}

/// Opens and claims a block device or file.
pub(crate) fn open(options: &FileOptions) -> Result<Opened, OpenError> {
    let path = || options.path.clone();
    // What it is, is asked of the very file that is then opened: a pipe would keep the caller waiting, and a name may lead
    // elsewhere a moment later.
    let place = Place::find(options).map_err(|cause| refusal(options, cause))?;
    let metadata = place.0.metadata().map_err(|cause| refusal(options, cause))?;
    let of = metadata.file_type();
    let kind = match () {
        () if of.is_file() => Kind::File,
        () if of.is_block_device() && options.named == Named::ByTheUser => Kind::BlockDevice,
        () => {
            let what = match () {
                () if of.is_dir() => "a directory",
                () if of.is_char_device() => "a character device",
                () if of.is_block_device() => {
                    "a block device, which only a path given with `chain` may lead to"
                }
                () if of.is_symlink() => "a symbolic link, which only a path given with `chain` may be",
                () if of.is_socket() => "a socket",
                () => "a pipe",
            };
            return Err(OpenError::NotADisk { path: path(), what });
        }
    };
    let mut remarks = Vec::new();
    // O_EXCL claims a block device against mounts, swap, md, dm and other claims; files have locks instead.
    let exclusive = if kind == Kind::BlockDevice { libc::O_EXCL } else { 0 };
    let (file, route) = match open_directly(&place, options, kind, exclusive) {
        Err(cause) if cause.raw_os_error() == Some(libc::EBUSY) && options.claim == Claim::Forced => {
            remarks.push(overridden(&options.path, &holders(&options.path)));
            open_directly(&place, options, kind, 0)
        }
        other => other,
    }
    .map_err(|cause| refusal(options, cause))?;
    remarks.extend(lock(&file, kind, options)?);
    let unreadable = |(what, cause): (_, io::Error)| match cause.raw_os_error() {
        Some(libc::EROFS) => refusal(options, cause),
        _ => OpenError::Unreadable { path: path(), what, cause },
    };
    let (geometry, alignment) = facts::read(&file, kind, options.access).map_err(unreadable)?;
    let all = options.allocation == Allocation::AtOnce && options.access == Access::ReadWrite;
    // Whoever opens a file without a block says so.
    if all && kind == Kind::File && geometry.capacity.0 > 0 {
        allocate(&file, &options.path, metadata.len())?;
    }
    let longest = facts::longest_transfer(&file, kind, geometry.logical_block);
    remarks.extend(route.remark(&file, &options.path, options.access, options.bounce));
    let copies = route.copies(options.bounce, alignment);
    Ok(Opened {
        handle: Arc::new(Handle { file, kind, copies, longest, untold: AtomicBool::default() }),
        geometry,
        remarks,
    })
}

/// Opens it past the page cache if that is asked for and possible.
fn open_directly(
    place: &Place,
    options: &FileOptions,
    kind: Kind,
    flags: libc::c_int,
) -> io::Result<(File, Route)> {
    if !options.direct {
        return Ok((place.open(options, flags)?, Route::CacheChosen));
    }
    match place.open(options, flags | libc::O_DIRECT) {
        Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) && kind == Kind::File => {
            Ok((place.open(options, flags)?, Route::DirectRefused))
        }
        other => Ok((other?, Route::Direct)),
    }
}

/// Gives a file all its room.
fn allocate(file: &File, path: &Path, bytes: u64) -> Result<(), OpenError> {
    // SAFETY: our own descriptor; no memory is involved.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as libc::off_t) } == 0 {
        return Ok(());
    }
    Err(OpenError::NoRoom { path: path.to_owned(), bytes, cause: io::Error::last_os_error() })
}

/// A phrase that names who holds a block device or its partitions.
fn holders(path: &Path) -> String {
    let unknown = || "another program has opened it exclusively (`fuser -v` shows which)".to_owned();
    let host = Host::here();
    let Ok(facts) = std::fs::metadata(path) else { return unknown() };
    let reasons = host.device_number_in_use(facts.rdev());
    let mut holders: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    if holders.is_empty() {
        // The device has another name here than the kernel's.
        let openers = host.openers(&facts, Openers::All);
        holders.extend(openers.into_iter().map(|opener| format!("{opener} has it open")));
    }
    if holders.is_empty() { unknown() } else { holders.join("; ") }
}

/// A file or device that was found and is not open yet.
struct Place(File);

impl Place {
    fn find(options: &FileOptions) -> io::Result<Place> {
        let links = match options.named {
            Named::ByTheUser => 0,
            Named::ByAnImage => libc::O_NOFOLLOW,
        };
        File::options().read(true).custom_flags(libc::O_PATH | links).open(&options.path).map(Place)
    }

    fn open(&self, options: &FileOptions, flags: libc::c_int) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(options.access == Access::ReadWrite)
            .custom_flags(flags)
            .open(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// The first bytes of what [`open`] would open, of a plain file or a block device that has so many. It goes the same way as
/// [`open`]: no other file is read because of a link, and no pipe is waited for.
pub(crate) fn first_bytes<const N: usize>(options: &FileOptions) -> Option<[u8; N]> {
    let place = Place::find(options).ok()?;
    let facts = place.0.metadata().ok()?;
    if !facts.is_file() && !facts.file_type().is_block_device() {
        return None;
    }
    let file = place.open(&FileOptions { access: Access::ReadOnly, ..options.clone() }, 0).ok()?;
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

fn refusal(options: &FileOptions, cause: io::Error) -> OpenError {
    let path = options.path.clone();
    match cause.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => OpenError::NotFound { path },
        Some(libc::EBUSY) => OpenError::Busy { holders: holders(&path), path },
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

/// A disk of the host's kernel in memory: a file that is in no folder.
pub(crate) fn in_memory(size: Sectors) -> io::Result<(Arc<Handle>, Geometry)> {
    // SAFETY: a constant name that ends in zero; a new descriptor is returned, which nobody else has.
    let file = unsafe {
        let fd = libc::memfd_create(c"skep-disk".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(size.bytes().ok_or(io::ErrorKind::FileTooLarge)?)?;
    let (mut geometry, _) = facts::read(&file, Kind::File, Access::ReadWrite).map_err(|(_, cause)| cause)?;
    // There is no storage that anything could be brought to, so there is nothing to be lost before that either.
    geometry.write_cache = WriteCache::WriteThrough;
    geometry.logical_block = Sectors::SIZE as u32;
    let handle = Handle {
        file,
        kind: Kind::File,
        copies: CopyPolicy::InPageCache,
        longest: u64::MAX,
        untold: AtomicBool::default(),
    };
    Ok((Arc::new(handle), geometry))
}

/// A temporary file of our own, and what a person should know of it.
pub(crate) fn temporary(
    file: File,
    name: &Path,
    bounce: Bounce,
) -> io::Result<(Arc<Handle>, Option<String>)> {
    let (geometry, alignment) =
        facts::read(&file, Kind::File, Access::ReadWrite).map_err(|(_, cause)| cause)?;
    let longest = facts::longest_transfer(&file, Kind::File, geometry.logical_block);
    let route = if set_direct(&file).is_ok() { Route::Direct } else { Route::DirectRefused };
    let remark = route.remark(&file, name, Access::ReadWrite, bounce);
    let copies = route.copies(bounce, alignment);
    Ok((Arc::new(Handle { file, kind: Kind::File, copies, longest, untold: AtomicBool::default() }), remark))
}

/// Goes past the page cache from now on, if the file system can.
fn set_direct(file: &File) -> io::Result<()> {
    // SAFETY: our own descriptor; no memory is involved.
    let status = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT)
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
