//! Opening and claiming what is to be a guest's disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use host::{Host, Openers};

use crate::geometry::{Access, Geometry};
use crate::hints::{allowing, as_in_a_flag};
use crate::image::Role;
use crate::kernel::lock::lock;
use crate::kernel::route::Route;
use crate::kernel::{Bounce, Handle, Kind, facts};
use crate::options::{Allocation, Claim, DiskOptions};

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
    /// There is no room for all of it on its file system.
    #[error(
        "disk {path}: there is no room for its {bytes} bytes: {cause}. Free some on that file system, {}",
        OpenError::ROOM_LATER
    )]
    NoRoom {
        /// The path asked for.
        path: PathBuf,
        /// The file's size.
        bytes: u64,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// It looks like an image, and nobody said that it is one.
    #[error("disk {path}: the file looks like {looks}, and no format was given. {hint}")]
    Unsaid {
        /// The path asked for.
        path: PathBuf,
        /// What it looks like, with an article.
        looks: &'static str,
        /// What a person can do.
        hint: &'static str,
    },
    /// It is not what its format says, or of a kind that cannot be used.
    #[error("disk {path}: {what}. {hint}")]
    Format {
        /// The path asked for.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What a person can do.
        hint: &'static str,
    },
    /// An image names another file, which nobody but the image asked for.
    #[error(
        "disk {}: its header says that {role} is {name:?}, and no file is opened only because an image names it. If it is \
         the right one, add this to the disk: {}",
        image.display(),
        allowing(*beside, target, &as_in_a_flag)
    )]
    NotAllowed {
        /// The image.
        image: PathBuf,
        /// What it wants the file for.
        role: Role,
        /// The file, as the image names it.
        name: String,
        /// Whether it is in the folder of the image.
        beside: bool,
        /// The file's own path.
        target: PathBuf,
    },
    /// An image names something that is no file.
    #[error(
        "disk {}: its header says that {role} is {name:?}, which is an address for a driver of QEMU and no path of a file. \
         If it is on this host, {}.",
        image.display(),
        role.rename()
    )]
    Driver {
        /// The image.
        image: PathBuf,
        /// What it wants it for.
        role: Role,
        /// What the image names.
        name: String,
    },
    /// A file that belongs to an image is not there.
    #[error(
        "disk {}: {role} is lost: there is no such file as {}. Put it there, or {}.",
        image.display(),
        path.display(),
        role.rename()
    )]
    Lost {
        /// The image.
        image: PathBuf,
        /// What it wants the file for.
        role: Role,
        /// Where it is looked for.
        path: PathBuf,
    },
    /// An image stands on itself, by way of others or none.
    #[error(
        "disk {}: it stands on itself: {role} is {}, which is part of the same chain already. If that is a mistake, {}.",
        image.display(),
        path.display(),
        role.rename()
    )]
    Loop {
        /// The image.
        image: PathBuf,
        /// What it wants the file for.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// Another file, which belongs to an image, cannot be opened.
    #[error("disk {}: {role} cannot be used: {cause}", image.display())]
    Wanted {
        /// The image.
        image: PathBuf,
        /// What it wants the file for.
        role: Role,
        /// Why not.
        #[source]
        cause: Box<OpenError>,
    },
    /// The options do not go with this disk.
    #[error("disk {disk}: {what}. {hint}")]
    Options {
        /// The disk asked for.
        disk: String,
        /// What does not fit.
        what: String,
        /// What a person can do.
        hint: &'static str,
    },
    /// A server did not give it.
    #[error(transparent)]
    Nbd(#[from] crate::nbd::NbdError),
    /// It cannot be opened for another reason.
    #[error("disk {path}: cannot open it: {cause}.{}", hint(cause))]
    Failed {
        /// The path asked for.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

impl OpenError {
    /// What a person can do when a file has no room for all of it.
    pub(crate) const ROOM_LATER: &str = "or let the file get its room as the guest writes: preallocate=off.";
}

/// At whose word a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Named {
    /// The user has given this path; it may lead anywhere, and be a device.
    ByTheUser,
    /// An image has this name in it: it must be a file, and no link to one.
    ByAnImage,
}

/// How to open one file or device.
#[derive(Clone, Debug)]
pub(crate) struct FileOptions {
    pub(crate) path: PathBuf,
    pub(crate) named: Named,
    pub(crate) access: Access,
    pub(crate) bounce: Bounce,
    pub(crate) allocation: Allocation,
    pub(crate) claim: Claim,
    /// Whether to go past the host's page cache where that is possible.
    pub(crate) direct: bool,
}

impl FileOptions {
    pub(crate) fn new(path: &Path, options: &DiskOptions) -> FileOptions {
        FileOptions {
            path: path.to_owned(),
            named: Named::ByTheUser,
            access: options.access,
            bounce: options.bounce,
            allocation: options.allocation,
            claim: options.claim,
            direct: true,
        }
    }
}

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

pub(super) fn overridden(path: &Path, holders: &str) -> String {
    format!(
        "disk {}: force=on overrides that it is in use: {holders}. What both write is lost or mixed up",
        path.display()
    )
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

/// What a person can do about a cause of [`OpenError::Failed`]. The kernel's log has something only about devices that
/// fail.
fn hint(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EIO | libc::ENXIO | libc::ENODEV | libc::EREMOTEIO | libc::ETIMEDOUT) => {
            " Look into the kernel's log (dmesg) for errors of the device."
        }
        Some(libc::EMFILE | libc::ENFILE) => " Raise the limit of open files (`ulimit -n`).",
        Some(libc::ENOSPC | libc::EDQUOT) => " Make room on its file system.",
        Some(libc::ELOOP) => " Give the path of the file itself, without links that lead in a circle.",
        Some(libc::ENAMETOOLONG) => " Write a shorter path.",
        _ => "",
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_that_fails_sends_people_to_the_kernels_log() {
        let said = |cause: io::Error| OpenError::Failed { path: "/d".into(), cause }.to_string();
        assert!(said(io::Error::from_raw_os_error(libc::EIO)).contains("dmesg"));
        let others = [libc::ENOENT, libc::ENOTDIR, libc::EMFILE, libc::ENOSPC, libc::EINVAL];
        for cause in others.map(io::Error::from_raw_os_error) {
            let text = said(cause);
            assert!(!text.contains("dmesg"), "{text}");
        }
        let no_folder = io::Error::new(io::ErrorKind::NotFound, "no folder /t. Make it");
        assert_eq!(said(no_folder), "disk /d: cannot open it: no folder /t. Make it.");
    }
}
