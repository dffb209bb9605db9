//! initramfs archives: uncompressed `newc` cpio, several of which may follow each other in one file.

use std::collections::BTreeSet;
use std::io::{self, Write};

use cpio::newc;

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;

/// An archive in the making. Folders come into being with what lies in them.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Archive::default()
    }

    /// Adds a file with its permission bits; `path` has no leading slash.
    ///
    /// # Errors
    /// Never in practice: the archive grows in memory.
    pub fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(path, 0o100_000 | permissions, contents)
    }

    /// Adds a folder.
    ///
    /// # Errors
    /// As for [`Archive::file`].
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        if self.folders.insert(path.to_owned()) { self.entry(path, DIRECTORY, &[]) } else { Ok(()) }
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As for [`Archive::file`].
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK, target.as_bytes())
    }

    /// The whole archive, padded so that another may follow.
    ///
    /// # Errors
    /// As for [`Archive::file`].
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        newc::trailer(&mut self.bytes)?;
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder)?;
        }
        let length = u32::try_from(contents.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut writer = newc::Builder::new(path).mode(mode).write(&mut self.bytes, length);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// Name, mode and contents of everything in `bytes` up to the trailer; and what follows it.
    fn list(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut rest = bytes;
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).unwrap();
            found.push((reader.entry().name().to_owned(), reader.entry().mode(), contents));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn folders_come_before_what_lies_in_them_and_once() {
        let mut archive = Archive::new();
        archive.file("lab/deep/a", 0o644, b"abc").unwrap();
        archive.file("lab/deep/b", 0o755, b"").unwrap();
        archive.link("bin/sh", "busybox").unwrap();
        let entries = list(&archive.finish().unwrap());
        let names: Vec<_> = entries.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        assert_eq!(
            names,
            [
                ("lab", 0o040_755),
                ("lab/deep", 0o040_755),
                ("lab/deep/a", 0o100_644),
                ("lab/deep/b", 0o100_755),
                ("bin", 0o040_755),
                ("bin/sh", 0o120_777)
            ]
        );
        assert_eq!(entries[2].2, b"abc");
        assert_eq!(entries[5].2, b"busybox");
    }

    #[test]
    fn an_archive_ends_where_another_may_begin() {
        for length in 0..9 {
            let mut archive = Archive::new();
            archive.file("x", 0o644, &vec![7; length]).unwrap();
            assert_eq!(archive.finish().unwrap().len() % 512, 0);
        }
    }
}
