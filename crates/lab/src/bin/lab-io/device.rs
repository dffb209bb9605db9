//! A disk, opened past the page cache.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// An open disk.
pub struct Device {
    file: File,
    path: String,
    /// Its size in bytes.
    pub size: u64,
}

impl Device {
    /// Opens a disk, or a file, by O_DIRECT.
    pub fn open(path: &str, writable: bool) -> Result<Device, String> {
        let open = || {
            let mut file =
                File::options().read(true).write(writable).custom_flags(libc::O_DIRECT).open(path)?;
            let size = file.seek(SeekFrom::End(0))?;
            Ok::<_, io::Error>((file, size))
        };
        let (file, size) = open().map_err(|error| format!("cannot open {path}: {error}"))?;
        Ok(Device { file, path: path.to_owned(), size })
    }

    /// Opens a disk, or a file, for reading: by O_DIRECT where its file system knows that.
    pub fn open_anyhow(path: &str) -> Result<Device, String> {
        let open = || {
            let mut file = File::open(path)?;
            let size = file.seek(SeekFrom::End(0))?;
            Ok::<_, io::Error>(Device { file, path: path.to_owned(), size })
        };
        Device::open(path, false).or_else(|_| open().map_err(|error| format!("cannot open {path}: {error}")))
    }

    /// Its descriptor.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Reads from a place; the memory is whole pages.
    pub fn read_at(&self, bytes: &mut [u8], at: u64) -> Result<(), String> {
        let read = self.file.read_exact_at(bytes, at);
        read.map_err(|error| format!("cannot read {} at {at}: {error}", self.path))
    }

    /// Writes to a place; the memory is whole pages.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), String> {
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|error| format!("cannot write {} at {at}: {error}", self.path))
    }

    /// Waits until the data that was written lasts.
    pub fn flush_data(&self) -> Result<(), String> {
        self.file.sync_data().map_err(|error| format!("cannot flush {}: {error}", self.path))
    }

    /// Waits until all that was written lasts.
    pub fn flush(&self) -> Result<(), String> {
        self.file.sync_all().map_err(|error| format!("cannot flush {}: {error}", self.path))
    }
}
