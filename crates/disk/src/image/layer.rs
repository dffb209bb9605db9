//! A file of an image, as the image library sees it.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;

use super::tables::Tables;
use crate::kernel::Handle;

/// A file of an image. The library reads and writes its tables through it, in memory of its own; guests' data goes
/// past it.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) handle: Arc<Handle>,
    /// The file's number among those of the image.
    pub(super) number: u16,
    pub(super) path: PathBuf,
    /// Where the library's writes go, if not straight to the file.
    tables: Option<Arc<Tables>>,
    helper: CommonStorageHelper,
}

impl Layer {
    pub(super) fn new(handle: Arc<Handle>, number: u16, path: PathBuf) -> Layer {
        Layer { handle, number, path, tables: None, helper: CommonStorageHelper::default() }
    }

    /// The same, whose tables go to the file by way of these.
    pub(super) fn through(self, tables: Arc<Tables>) -> Layer {
        Layer { tables: Some(tables), ..self }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl imago::Storage for Layer {
    fn mem_align(&self) -> usize {
        match &self.tables {
            Some(_) => 1,
            None => self.handle.alignment().map_or(1, |alignment| alignment.address as usize),
        }
    }

    fn req_align(&self) -> usize {
        match &self.tables {
            Some(_) => 1,
            None => self.handle.alignment().map_or(1, |alignment| alignment.length as usize),
        }
    }

    fn size(&self) -> io::Result<u64> {
        self.handle.bytes()
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        let relative = relative.as_ref();
        let folder = self.path.canonicalize()?;
        Ok(folder.parent().unwrap_or(Path::new("/")).join(relative))
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        if let Some(tables) = &self.tables {
            return tables.read(bufv, offset);
        }
        for mut buffer in bufv.into_inner() {
            self.handle.get(offset, &mut buffer)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        if let Some(tables) = &self.tables {
            return tables.write(bufv, offset);
        }
        for buffer in bufv.into_inner() {
            self.handle.put(offset, &buffer)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: our own descriptor; no memory is involved.
        let status =
            unsafe { libc::fallocate(self.handle.file.as_raw_fd(), mode, offset as i64, length as i64) };
        match (status, io::Error::last_os_error()) {
            (0, _) => Ok(()),
            // A file system that cannot do this keeps the room.
            (_, error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            (_, error) => Err(error),
        }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, _: PreallocateMode) -> io::Result<()> {
        self.handle.file.set_len(new_size)
    }
}
