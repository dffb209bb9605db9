//! A VM's RAM by the files behind it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use control::Client;
use control::api::MemoryFiles;

use crate::ask::Failure;

/// A VM's RAM: its segments, by rising guest address. It stays readable when the VM ends, and then is what it was.
pub struct Image {
    segments: Vec<Segment>,
}

/// A piece of RAM.
pub struct Segment {
    /// Its first guest address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    file: File,
    offset: u64,
}

/// A piece of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where in the segment it begins.
    pub from: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl Image {
    /// Asks the VM for its RAM.
    pub fn of(client: &mut Client) -> Result<Image, Failure> {
        let MemoryFiles { memory, files } = client.memory_fds()?;
        let segments = memory.segments.into_iter().zip(files).map(|(segment, fd)| Segment {
            start: segment.gpa.first.0,
            len: segment.gpa.bytes(),
            file: fd.into(),
            offset: segment.offset.0,
        });
        Ok(Image { segments: segments.collect() })
    }

    /// Its segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The pieces of segments that make up a range of guest addresses; an error when not all of it is RAM.
    pub fn pieces(&self, address: u64, length: u64) -> Result<Vec<(&Segment, Piece)>, Failure> {
        let (mut pieces, mut at, mut left) = (Vec::new(), address, length);
        while left > 0 {
            let inside = |segment: &&Segment| at >= segment.start && at - segment.start < segment.len;
            let Some(segment) = self.segments.iter().find(inside) else { return Err(self.no_ram(at)) };
            let from = at - segment.start;
            let len = left.min(segment.len - from);
            pieces.push((segment, Piece { from, len }));
            left -= len;
            // Past the last address there is no RAM, which the next search says.
            at = at.saturating_add(len);
        }
        Ok(pieces)
    }

    fn no_ram(&self, at: u64) -> Failure {
        let ranges = self
            .segments
            .iter()
            .map(|segment| format!("{:#x}-{:#x}", segment.start, segment.start + (segment.len - 1)));
        let ranges: Vec<String> = ranges.collect();
        Failure::other(format_args!("{at:#x} is not RAM of the VM. Its RAM is at {}.", ranges.join(", ")))
    }
}

impl Segment {
    /// Reads all of `bytes` from `from` on.
    pub fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        self.file.read_exact_at(bytes, self.offset + from).map_err(|cause| {
            let at = self.start + from;
            Failure::other(format_args!(
                "cannot read the VM's RAM at {at:#x}: {cause}. Has it been taken away from the VM?"
            ))
        })
    }

    /// The pieces, by rising address, that may hold anything but zeroes.
    pub fn data(&self) -> Vec<Piece> {
        let (mut pieces, mut at) = (Vec::new(), 0);
        while at < self.len {
            let Some(from) = self.seek(at, libc::SEEK_DATA) else { break };
            let to = self.seek(from, libc::SEEK_HOLE).unwrap_or(self.len);
            if from >= self.len || to <= from {
                break;
            }
            pieces.push(Piece { from, len: to.min(self.len) - from });
            at = to;
        }
        pieces
    }

    /// Where the next data or hole is in the segment. `None` where there is no more data. Files that do not tell
    /// (hugetlbfs) hold data everywhere.
    fn seek(&self, at: u64, whence: libc::c_int) -> Option<u64> {
        let place = libc::off_t::try_from(self.offset + at).ok()?;
        // SAFETY: a plain call on our own descriptor. Nobody uses the position that it changes: all that share it
        // read and write at places they name.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), place, whence) };
        match u64::try_from(found) {
            Ok(found) => Some(found.saturating_sub(self.offset)),
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => None,
            Err(_) if whence == libc::SEEK_DATA => Some(at),
            Err(_) => Some(self.len),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// RAM of 8 KiB at 0 and at 8 KiB, and of 1 MiB at 4 MiB, all zero.
    pub fn image() -> Image {
        image_of(&[(0, 0x2000), (0x2000, 0x2000), (0x40_0000, 0x10_0000)])
    }

    /// RAM at these addresses with these lengths, all zero.
    pub fn image_of(ranges: &[(u64, u64)]) -> Image {
        let segment = |&(start, len)| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len).unwrap();
            Segment { start, len, file, offset: 0 }
        };
        Image { segments: ranges.iter().map(segment).collect() }
    }

    impl Segment {
        /// Writes RAM.
        pub fn write(&self, from: u64, bytes: &[u8]) {
            self.file.write_all_at(bytes, self.offset + from).unwrap();
        }
    }

    #[test]
    fn a_range_may_span_segments_but_not_a_hole() {
        let image = image();
        let pieces = |address, length| -> Result<Vec<(u64, Piece)>, Failure> {
            Ok(image
                .pieces(address, length)?
                .into_iter()
                .map(|(segment, piece)| (segment.start, piece))
                .collect())
        };
        let both = vec![(0, Piece { from: 0x1fff, len: 1 }), (0x2000, Piece { from: 0, len: 2 })];
        assert_eq!(pieces(0x1fff, 3).unwrap(), both);
        assert_eq!(pieces(0, 0).unwrap(), []);
        assert!(pieces(0x3fff, 1).is_ok());
        for (address, length, at) in
            [(0x3fff, 2, "0x4000"), (0x5000, 1, "0x5000"), (u64::MAX, 2, "0xffffffffffffffff")]
        {
            let Err(Failure::Other(text)) = pieces(address, length) else { panic!() };
            let wanted = format!(
                "{at} is not RAM of the VM. Its RAM is at 0x0-0x1fff, 0x2000-0x3fff, 0x400000-0x4fffff."
            );
            assert_eq!(text, wanted);
        }
    }

    #[test]
    fn only_what_was_written_is_data() {
        let image = image();
        let segment = &image.segments()[2];
        assert_eq!(segment.data(), []);
        segment.write(0x8_0000, &[1]);
        let data = segment.data();
        assert!(data.len() <= 1 && data.iter().all(|piece| piece.from <= 0x8_0000), "{data:?}");
        assert!(data.iter().any(|piece| piece.from + piece.len > 0x8_0000), "{data:?}");
    }
}
