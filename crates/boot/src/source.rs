//! Where an image comes from: a file, or bytes in memory (an embedded kernel, a test, a fuzzer).

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memory::{Gpa, Ram};

use crate::firmware::Part;

/// An image's bytes and the name by which errors speak of it.
#[derive(Debug)]
pub(crate) struct Source {
    name: PathBuf,
    bytes: Bytes,
    len: u64,
}

enum Bytes {
    File(File),
    Memory(Vec<u8>),
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bytes::File(file) => file.fmt(f),
            Bytes::Memory(bytes) => write!(f, "{} bytes", bytes.len()),
        }
    }
}

/// A file that could not be read. `what` is its part in the boot: "kernel", "initrd".
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It could not be opened.
    #[error("cannot open the {what} {}: {cause}. Check the path, and that you may read the file.", .path.display())]
    Open {
        /// Its part in the boot.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// It is a directory, a pipe, a device …
    #[error("the {what} {} is not a regular file. Give the path of the file itself.", .path.display())]
    NotAFile {
        /// Its part in the boot.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// It could not be read, or ended early.
    #[error(
        "cannot read {len} bytes at offset {offset} of {}: {cause}. The file may have changed while it was read; try again.",
        .path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// First byte wanted.
        offset: u64,
        /// How many.
        len: u64,
        /// The kernel's answer.
        cause: io::Error,
    },
}

impl Source {
    /// Opens a regular file.
    pub(crate) fn open(what: &'static str, path: &Path) -> Result<Source, SourceError> {
        let failed = |cause| SourceError::Open { what, path: path.to_path_buf(), cause };
        // Looked at before it is opened, for opening a pipe would wait for its writer.
        let facts = std::fs::metadata(path).map_err(failed)?;
        if !facts.is_file() {
            return Err(SourceError::NotAFile { what, path: path.to_path_buf() });
        }
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        Ok(Source { name: path.to_path_buf(), bytes: Bytes::File(file), len })
    }

    /// Bytes in memory.
    pub(crate) fn from_bytes(name: &str, bytes: Vec<u8>) -> Source {
        let len = bytes.len() as u64;
        Source { name: PathBuf::from(name), bytes: Bytes::Memory(bytes), len }
    }

    /// What is in this image, unpacked.
    pub(crate) fn unpacked(&self, bytes: Vec<u8>) -> Source {
        let len = bytes.len() as u64;
        Source { name: self.name.clone(), bytes: Bytes::Memory(bytes), len }
    }

    /// A file with these bytes; one in memory if they are no file's.
    fn to_file(&self) -> io::Result<File> {
        match &self.bytes {
            Bytes::File(file) => file.try_clone(),
            Bytes::Memory(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The bytes from `start` to `end`, as a part of the file, for firmware that reads it. It has less than 4 GiB.
    pub(crate) fn part(&self, start: u64, end: u64) -> io::Result<Part> {
        let len = u32::try_from(end - start).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(Part { file: self.to_file()?, offset: start, len })
    }

    /// The path.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether the image has all of `len` bytes from `offset` on.
    pub(crate) fn has(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// Reads exactly `bytes.len()` bytes.
    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), SourceError> {
        let len = bytes.len() as u64;
        let read = match &self.bytes {
            Bytes::File(file) => file.read_exact_at(bytes, offset),
            Bytes::Memory(image) => piece(image, offset, len).map(|from| bytes.copy_from_slice(from)),
        };
        read.map_err(|cause| self.unreadable(offset, len, cause))
    }

    /// Reads the first bytes, as many as `bytes` takes and the image has; returns how many.
    pub(crate) fn read_start(&self, bytes: &mut [u8]) -> Result<usize, SourceError> {
        let len = self.len.min(bytes.len() as u64) as usize;
        self.read_at(0, &mut bytes[..len])?;
        Ok(len)
    }

    /// Reads `len` bytes straight into guest RAM.
    pub(crate) fn read_into(&self, ram: &Ram, gpa: Gpa, offset: u64, len: u64) -> Result<(), SourceError> {
        let read = match &self.bytes {
            Bytes::File(file) => ram.read_file(gpa, file, offset, len),
            Bytes::Memory(image) => piece(image, offset, len).and_then(|bytes| {
                ram.write(gpa, bytes).map_err(|outside| io::Error::other(outside.to_string()))
            }),
        };
        read.map_err(|cause| self.unreadable(offset, len, cause))
    }

    fn unreadable(&self, offset: u64, len: u64, cause: io::Error) -> SourceError {
        SourceError::Read { path: self.name.clone(), offset, len, cause }
    }
}

fn piece(image: &[u8], offset: u64, len: u64) -> io::Result<&[u8]> {
    let (offset, len) = (usize::try_from(offset), usize::try_from(len));
    let end = offset.ok().zip(len.ok()).and_then(|(offset, len)| Some((offset, offset.checked_add(len)?)));
    end.and_then(|(offset, end)| image.get(offset..end)).ok_or(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_a_pipe_or_a_missing_file_is_an_error_that_names_it() {
        let error = Source::open("kernel", Path::new("/")).unwrap_err();
        assert!(matches!(&error, SourceError::NotAFile { .. }), "{error}");
        let error = Source::open("initrd", Path::new("/no/such/initrd")).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot open the initrd /no/such/initrd: No such file"),
            "{error}"
        );
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let source = Source::from_bytes("test", vec![1, 2, 3]);
        assert!(source.has(0, 3) && !source.has(1, 3) && !source.has(u64::MAX, 2));
        assert!(source.read_at(2, &mut [0; 2]).is_err());
        assert!(source.read_at(u64::MAX, &mut [0; 1]).is_err());
        let mut start = [0; 8];
        assert_eq!((source.read_start(&mut start).unwrap(), &start[..4]), (3, &[1, 2, 3, 0][..]));
    }
}
