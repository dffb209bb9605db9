//! Why a disk could not be opened.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::nbd::NbdError;

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
    Nbd(#[from] NbdError),
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
    pub(super) const ROOM_LATER: &str = "or let the file get its room as the guest writes: preallocate=off.";
}

/// What another file is for an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// What is not in the image is read from there.
    Backing,
    /// All of the disk's data is there.
    Data,
    /// A part of the disk's data is there.
    Extent,
}

/// In the middle of a sentence.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Backing => "the image that it stands on (its backing file)",
            Role::Data => "the file that holds its data (its data file)",
            Role::Extent => "a file that holds a part of its data (an extent)",
        })
    }
}

impl Role {
    /// How another name gets into an image, in the middle of a sentence.
    fn rename(self) -> &'static str {
        match self {
            Role::Backing => {
                "write the right name into the image with `qemu-img rebase -u -F FORMAT -b FILE IMAGE`"
            }
            Role::Data => {
                "write the right name into the image with `qemu-img amend -o data_file=FILE --image-opts \
                 driver=qcow2,file.filename=IMAGE,data-file.driver=file,data-file.filename=FILE`"
            }
            Role::Extent => "write the right name into the image, which is a text",
        }
    }
}

/// How a setting is written: `readonly=on` as it is to be shown.
pub type Written<'a> = &'a dyn Fn(&str) -> String;

/// A setting as it is written in a flag.
pub(super) fn as_in_a_flag(setting: &str) -> String {
    setting.to_owned()
}

/// What allows an image to lead to the file `target`, which may be `beside` it.
pub(super) fn allowing(beside: bool, target: &Path, written: Written<'_>) -> String {
    let this = written(&format!("chain={}", target.display()));
    match beside {
        true => format!("{} (any file beside the image) or {this}", written("chain=follow")),
        false => this,
    }
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
