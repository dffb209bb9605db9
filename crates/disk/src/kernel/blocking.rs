//! Operations on a block device or file by a thread that waits for them.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use memory::Buffers;

use super::bounce::{BOUNCE_SIZE, BounceBuffer};
use super::facts::Kind;
use super::handle::Handle;
use super::slot::{LONGEST_STEP, MOST_PIECES, Way, ways};
use crate::contract::{Bounced, DiskError, Durability, Operation, SectorRange, Sectors, cut};
use crate::threads::{Moved, Work};

/// `linux/fs.h`
const BLKDISCARD: libc::c_ulong = 0x1277;

impl Work for Handle {
    fn execute(&self, operation: Operation, buffers: &Buffers, tally: &mut Moved) -> Result<(), DiskError> {
        match operation {
            Operation::Read { at } => {
                self.transfer(Transfer::read(at.0 * Sectors::SIZE, buffers), PastEnd::IsAnError, tally)
            }
            Operation::Write { at, durability } => {
                let transfer = Transfer::write(at.0 * Sectors::SIZE, buffers, durability);
                let answer = self.transfer(transfer, PastEnd::IsAnError, tally);
                if durability == Durability::Stable {
                    self.note_stable_write(answer);
                }
                answer
            }
            Operation::Flush => self.flush(),
            Operation::Discard(range) | Operation::WriteZeroes(range, _) => {
                self.change_range(operation, range)
            }
        }
    }
}

/// What to do where a file has already ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PastEnd {
    /// The disk must have shrunk.
    IsAnError,
    /// What was never written reads as zeroes.
    ReadsAsZeroes,
}

/// Bytes to move between a file and guest memory.
#[derive(Clone, Copy)]
pub(crate) struct Transfer<'a> {
    /// Where in the file, in bytes.
    pub(crate) at: u64,
    /// The request's memory.
    pub(crate) buffers: &'a Buffers,
    /// The first byte of that memory to move.
    pub(crate) from: u64,
    /// How many bytes.
    pub(crate) len: u64,
    /// `None` to read.
    pub(crate) write: Option<Durability>,
}

impl<'a> Transfer<'a> {
    fn read(at: u64, buffers: &'a Buffers) -> Transfer<'a> {
        Transfer { at, buffers, from: 0, len: buffers.bytes(), write: None }
    }

    fn write(at: u64, buffers: &'a Buffers, durability: Durability) -> Transfer<'a> {
        Transfer { at, buffers, from: 0, len: buffers.bytes(), write: Some(durability) }
    }
}

impl Handle {
    /// Moves all of it, or says why not.
    pub(crate) fn transfer(
        &self,
        transfer: Transfer<'_>,
        past_end: PastEnd,
        tally: &mut Moved,
    ) -> Result<(), DiskError> {
        let Transfer { at, buffers, from, len, write } = transfer;
        let mut pieces = Vec::new();
        cut(buffers.iovecs(), from, from + len, &mut pieces);
        let bounced = self.copies.for_pieces(&pieces);
        let mut bounce = matches!(bounced, Some(Bounced::Alignment | Bounced::Asked))
            .then(|| BounceBuffer::new(BounceBuffer::size_for(len)));
        let mut done = 0;
        while done < len {
            let moved = match &mut bounce {
                None => {
                    let step = (len - done).min(LONGEST_STEP);
                    cut(buffers.iovecs(), from + done, from + done + step, &mut pieces);
                    pieces.truncate(MOST_PIECES);
                    self.step(at + done, &pieces, write)
                }
                Some(bounce) => {
                    let step = (len - done).min(BOUNCE_SIZE as u64) as usize;
                    if write.is_some() {
                        buffers.read_at(from + done, &mut bounce.bytes_mut()[..step]);
                    }
                    let piece = libc::iovec { iov_base: bounce.start().cast(), iov_len: step };
                    let moved = self.step(at + done, &[piece], write);
                    if let (Ok(moved), None) = (&moved, write) {
                        buffers.write_at(from + done, &bounce.bytes()[..*moved as usize]);
                    }
                    moved
                }
            };
            match moved {
                Ok(0) if past_end == PastEnd::ReadsAsZeroes && write.is_none() => {
                    return fill_with_zeroes(buffers, from + done, len - done, tally);
                }
                // Inside the disk when it was checked, and nothing there now: it has shrunk.
                Ok(0) => return Err(self.kind_of(DiskError::OutOfRange)),
                Ok(moved) => {
                    tally.moved(moved, bounced);
                    done += moved;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.kind_of(kind_of(&error))),
            }
        }
        Ok(())
    }

    /// Moves what the kernel takes at once.
    pub(super) fn step(&self, at: u64, pieces: &[libc::iovec], write: Option<Durability>) -> io::Result<u64> {
        let (fd, start, count) = (self.file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int);
        let at = at as libc::off_t;
        // SAFETY: the pieces lead into guest RAM or a bounce buffer that the caller holds, and the kernel is done
        // with them when the call returns.
        let moved = unsafe {
            match write {
                None => libc::preadv2(fd, start, count, at, 0),
                Some(Durability::Cached) => libc::pwritev2(fd, start, count, at, 0),
                Some(Durability::Stable) => libc::pwritev2(fd, start, count, at, libc::RWF_DSYNC),
            }
        };
        let moved = u64::try_from(moved).map_err(|_| io::Error::last_os_error())?;
        #[cfg(test)]
        if write.is_some() {
            super::recorder::wrote(&self.file, at as u64, moved);
        }
        Ok(moved)
    }

    /// Reads into memory of our own, aligned as [`Handle::alignment`] says. Behind the file's end there are zeroes.
    pub(crate) fn get(&self, mut at: u64, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            match self.file.read_at(into, at) {
                Ok(0) => {
                    into.fill(0);
                    break;
                }
                Ok(moved) => {
                    into = &mut into[moved..];
                    at += moved as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes from memory of our own, aligned as [`Handle::alignment`] says.
    pub(crate) fn put(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, at)?;
        #[cfg(test)]
        super::recorder::wrote(&self.file, at, from.len() as u64);
        Ok(())
    }

    /// Brings what was written to stable storage, for skep's own sake. The kernel tells of a failure once, so that the next
    /// flush has to tell of it, too.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.try_sync().inspect_err(|_| self.keep_untold())
    }

    fn try_sync(&self) -> io::Result<()> {
        #[cfg(test)]
        super::recorder::may_sync()?;
        self.file.sync_data()?;
        #[cfg(test)]
        super::recorder::synced(&self.file);
        Ok(())
    }

    /// The next flush has to tell that something may be lost.
    fn keep_untold(&self) {
        self.untold.store(true, Ordering::Release);
    }

    /// Whether a flush has to tell that something may be lost; it does.
    pub(crate) fn take_untold(&self) -> bool {
        self.untold.swap(false, Ordering::AcqRel)
    }

    /// What a flush says that the kernel has answered like this.
    pub(super) fn told_by_flush(&self, answer: Result<(), DiskError>) -> Result<(), DiskError> {
        let untold = self.take_untold();
        answer.and(if untold { Err(self.kind_of(DiskError::Media)) } else { Ok(()) })
    }

    /// Notes what a write that is to last by itself was answered. Of a file in the page cache it may be about what others
    /// wrote.
    pub(super) fn note_stable_write(&self, answer: Result<(), DiskError>) {
        if answer == Err(DiskError::Media) && !self.flush_can_be_repeated() {
            self.keep_untold();
        }
    }

    /// As [`Handle::sync`], for a request.
    pub(crate) fn flush(&self) -> Result<(), DiskError> {
        self.told_by_flush(self.try_sync().map_err(|error| self.kind_of(kind_of(&error))))
    }

    /// Discards or zeroes a range, in the first way that the kernel knows for it.
    pub(crate) fn change_range(&self, operation: Operation, range: SectorRange) -> Result<(), DiskError> {
        let mut answer = Err(DiskError::Unsupported);
        for way in ways(operation, self.kind) {
            answer = self.change_range_by(*way, range).map_err(|error| self.kind_of(kind_of(&error)));
            // A way that this kernel or disk does not know is answered with one of these.
            if !matches!(answer, Err(DiskError::Unsupported | DiskError::Other(libc::EINVAL))) {
                break;
            }
        }
        answer
    }

    fn change_range_by(&self, way: Way, range: SectorRange) -> io::Result<()> {
        let (start, len) = (range.start.0 * Sectors::SIZE, range.count.0 * Sectors::SIZE);
        let fd = self.file.as_raw_fd();
        let status = match way {
            // SAFETY: our own descriptor; no memory is involved.
            Way::Fallocate(mode) => unsafe { libc::fallocate(fd, mode, start as i64, len as i64) },
            Way::DiscardCommand if self.kind == Kind::BlockDevice => {
                let range = [start, len];
                // SAFETY: BLKDISCARD reads two 64-bit numbers.
                unsafe { libc::ioctl(fd, BLKDISCARD, range.as_ptr()) }
            }
            Way::DiscardCommand => return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Fills `len` bytes of the buffers behind their first `from`. Nothing is copied from anywhere.
pub(crate) fn fill_with_zeroes(
    buffers: &Buffers,
    from: u64,
    len: u64,
    tally: &mut Moved,
) -> Result<(), DiskError> {
    const ZEROES: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < len {
        let step = (len - done).min(ZEROES.len() as u64) as usize;
        buffers.write_at(from + done, &ZEROES[..step]);
        done += step as u64;
    }
    tally.moved(len, None);
    Ok(())
}

/// The kind behind an error of a system call or of the image library.
pub(crate) fn kind_of(error: &io::Error) -> DiskError {
    match error.raw_os_error() {
        Some(errno) => DiskError::from_errno(errno),
        None => match error.kind() {
            io::ErrorKind::Unsupported => DiskError::Unsupported,
            io::ErrorKind::TimedOut => DiskError::TimedOut,
            io::ErrorKind::StorageFull => DiskError::NoSpace,
            io::ErrorKind::UnexpectedEof => DiskError::OutOfRange,
            _ => DiskError::Media,
        },
    }
}
