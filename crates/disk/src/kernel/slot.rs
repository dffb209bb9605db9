//! One request on its way: what the kernel is asked next, and what becomes of its answer.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use io_uring::{opcode, squeue, types};
use memory::Buffers;

use crate::counters::{Bounced, QueueCounters};
use crate::geometry::SectorRange;
use crate::kernel::{Handle, Kind};
use crate::request::{DiskError, Durability, Operation, Request, Unmap};

/// The disk's file in the ring's table.
pub(super) const FILE: types::Fixed = types::Fixed(0);
/// The kernel moves no more than this at once (MAX_RW_COUNT).
const LONGEST_STEP: usize = 0x7fff_f000;
/// The kernel takes no more pieces than this at once.
const MOST_PIECES: usize = 1024;
/// A bounced request goes through a buffer of this size, however long it is.
const BOUNCE_SIZE: usize = 256 << 10;
/// So often the kernel may say "again" to one request before that is its error.
const PATIENCE: u8 = 32;

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | KEEP;
/// Kernels before the discard command take this (FALLOC_FL_NO_HIDE_STALE) for "discard, whatever it reads as".
const STALE: i32 = PUNCH | 0x04;

/// A way to discard or to zero a range. Kernels and disks differ; the ways are tried in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// `fallocate` with this mode.
    Fallocate(i32),
    /// The block layer's own io_uring command (Linux 6.12).
    DiscardCommand,
}

fn ways(operation: Operation, kind: Kind) -> &'static [Way] {
    use Way::{DiscardCommand, Fallocate};
    match (operation, kind) {
        (Operation::Discard(_), Kind::BlockDevice) => &[DiscardCommand, Fallocate(STALE)],
        (Operation::Discard(_), Kind::File) => &[Fallocate(PUNCH)],
        (Operation::WriteZeroes(_, Unmap::Allowed), _) => &[Fallocate(PUNCH), Fallocate(ZERO)],
        (Operation::WriteZeroes(_, Unmap::Forbidden), Kind::BlockDevice) => &[Fallocate(ZERO)],
        // Some file systems can only punch; the range reads as it must, but may run out of space later.
        (Operation::WriteZeroes(_, Unmap::Forbidden), Kind::File) => &[Fallocate(ZERO), Fallocate(PUNCH)],
        _ => &[],
    }
}

/// What follows an answer of the kernel.
pub(super) enum Next {
    /// Ask again: [`Slot::step`].
    Step,
    /// The request is done.
    Done(Result<(), DiskError>),
}

/// A place for one request under way. It owns all memory that the kernel works on.
#[derive(Default)]
pub(super) struct Slot {
    request: Option<Request>,
    /// Bytes done of a transfer.
    done: u64,
    /// Why this transfer is copied, if it is.
    bounced: Option<Bounced>,
    /// Kept for the next request that needs one.
    bounce: Option<BounceBuffer>,
    /// The pieces still to do, once a transfer was cut short.
    rest: Vec<libc::iovec>,
    /// Which of the [`ways`] is being tried.
    way: usize,
    retries: u8,
}

// SAFETY: the raw pointers in `rest` lead into the request's buffers, which are `Send` and travel along.
unsafe impl Send for Slot {}

impl Slot {
    pub(super) fn begin(&mut self, request: Request, handle: &Handle) {
        self.done = 0;
        self.way = 0;
        self.retries = 0;
        self.bounced = match request.operation {
            Operation::Read { .. } | Operation::Write { .. } => {
                handle.copies.for_pieces(request.buffers.iovecs())
            }
            _ => None,
        };
        self.request = Some(request);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.request.is_some()
    }

    /// Takes the request out. Only once the kernel has answered for it.
    pub(super) fn finish(&mut self) -> Option<Request> {
        self.request.take()
    }

    /// The next thing to ask of the kernel. What the entry points to lies in this slot and must stay until the
    /// answer; `None` without a request.
    pub(super) fn step(&mut self, handle: &Handle) -> Option<squeue::Entry> {
        let request = self.request.as_ref()?;
        Some(match request.operation {
            Operation::Read { at } => self.transfer(at.0 * 512 + self.done, None),
            Operation::Write { at, durability } => self.transfer(at.0 * 512 + self.done, Some(durability)),
            Operation::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            Operation::Discard(range) | Operation::WriteZeroes(range, _) => {
                change_range(ways(request.operation, handle.kind)[self.way], range)
            }
        })
    }

    fn transfer(&mut self, offset: u64, write: Option<Durability>) -> squeue::Entry {
        let buffers = &self.request.as_ref().expect("step() found a request").buffers;
        let flags = match write {
            Some(Durability::Stable) => libc::RWF_DSYNC,
            _ => 0,
        };
        if self.copies() {
            let bounce = self.bounce.get_or_insert_with(BounceBuffer::new);
            let left = usize::try_from(buffers.bytes() - self.done).unwrap_or(usize::MAX);
            let len = left.min(BOUNCE_SIZE);
            if write.is_some() {
                buffers.read_at(self.done, &mut bounce.bytes_mut()[..len]);
            }
            return entry(bounce.start.as_ptr(), len, offset, write.is_some(), flags);
        }
        let pieces = if self.done == 0 {
            buffers.iovecs()
        } else {
            skip(buffers.iovecs(), self.done, &mut self.rest);
            &self.rest
        };
        if let [piece] = pieces {
            return entry(
                piece.iov_base.cast(),
                piece.iov_len.min(LONGEST_STEP),
                offset,
                write.is_some(),
                flags,
            );
        }
        let (start, count) = (pieces.as_ptr(), pieces.len().min(MOST_PIECES) as u32);
        if write.is_some() {
            opcode::Writev::new(FILE, start, count).offset(offset).rw_flags(flags).build()
        } else {
            opcode::Readv::new(FILE, start, count).offset(offset).rw_flags(flags).build()
        }
    }

    /// Whether this transfer goes through the bounce buffer.
    fn copies(&self) -> bool {
        matches!(self.bounced, Some(Bounced::Alignment | Bounced::Asked))
    }

    /// Takes the kernel's answer to the last step.
    pub(super) fn answer(&mut self, result: i32, handle: &Handle, counters: &QueueCounters) -> Next {
        let Some(request) = self.request.as_ref() else { return Next::Done(Err(DiskError::Gone)) };
        if result < 0 {
            return self.failed(-result, request.operation, handle);
        }
        if !matches!(request.operation, Operation::Read { .. } | Operation::Write { .. }) {
            return Next::Done(Ok(()));
        }
        let moved = result as u64;
        if moved == 0 {
            // Inside the disk when it was checked, and nothing there now: it has shrunk.
            return Next::Done(Err(DiskError::OutOfRange));
        }
        if let (Operation::Read { .. }, true, Some(bounce)) = (request.operation, self.copies(), &self.bounce)
        {
            request.buffers.write_at(self.done, &bounce.bytes()[..result as usize]);
        }
        counters.moved(moved, self.bounced);
        self.done += moved;
        if self.done < request.buffers.bytes() { Next::Step } else { Next::Done(Ok(())) }
    }

    fn failed(&mut self, errno: i32, operation: Operation, handle: &Handle) -> Next {
        if matches!(errno, libc::EAGAIN | libc::EINTR) && self.retries < PATIENCE {
            self.retries += 1;
            return Next::Step;
        }
        // A way that this kernel or disk does not know is answered with one of these.
        let unknown = matches!(errno, libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY | libc::ENOSYS);
        if unknown && self.way + 1 < ways(operation, handle.kind).len() {
            self.way += 1;
            return Next::Step;
        }
        Next::Done(Err(DiskError::from_errno(errno)))
    }
}

fn entry(start: *mut u8, len: usize, offset: u64, write: bool, flags: i32) -> squeue::Entry {
    if write {
        opcode::Write::new(FILE, start, len as u32).offset(offset).rw_flags(flags).build()
    } else {
        opcode::Read::new(FILE, start, len as u32).offset(offset).rw_flags(flags).build()
    }
}

fn change_range(way: Way, range: SectorRange) -> squeue::Entry {
    let (offset, len) = (range.start.0 * 512, range.count.0 * 512);
    match way {
        Way::Fallocate(mode) => opcode::Fallocate::new(FILE, len).offset(offset).mode(mode).build(),
        Way::DiscardCommand => {
            // BLOCK_URING_CMD_DISCARD = _IO(0x12, 0): start in `addr`, length in `addr3`, which is where the
            // command's own bytes begin.
            let mut command = [0; 16];
            command[..8].copy_from_slice(&len.to_ne_bytes());
            opcode::UringCmd16::new(FILE, 0x1200).addr(Some(offset)).cmd(command).build()
        }
    }
}

/// The pieces without their first `done` bytes.
fn skip(pieces: &[libc::iovec], done: u64, rest: &mut Vec<libc::iovec>) {
    rest.clear();
    let mut left = usize::try_from(done).unwrap_or(usize::MAX);
    for piece in pieces {
        let cut = left.min(piece.iov_len);
        left -= cut;
        if cut < piece.iov_len {
            let iov_base = piece.iov_base.cast::<u8>().wrapping_add(cut).cast();
            rest.push(libc::iovec { iov_base, iov_len: piece.iov_len - cut });
        }
    }
}

/// Memory on a page boundary, for transfers that cannot be direct.
struct BounceBuffer {
    start: NonNull<u8>,
}

// SAFETY: plain memory that the buffer alone owns.
unsafe impl Send for BounceBuffer {}

impl BounceBuffer {
    const LAYOUT: Layout = match Layout::from_size_align(BOUNCE_SIZE, 4096) {
        Ok(layout) => layout,
        Err(_) => panic!("the size is a multiple of the alignment"),
    };

    fn new() -> BounceBuffer {
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(Self::LAYOUT) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(Self::LAYOUT));
        BounceBuffer { start }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: BOUNCE_SIZE initialised bytes that this buffer owns; the kernel writes to them only between
        // a step and its answer, and nobody holds this borrow then.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), BOUNCE_SIZE) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), BOUNCE_SIZE) }
    }
}

impl Drop for BounceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout; a slot drops it only when the kernel has answered.
        unsafe { dealloc(self.start.as_ptr(), Self::LAYOUT) };
    }
}

/// Which buffers a request in a slot has; for tests and messages.
impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let buffers: Option<&Buffers> = self.request.as_ref().map(|request| &request.buffers);
        f.debug_struct("Slot").field("buffers", &buffers).field("done", &self.done).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_left_of_the_pieces_is_what_was_not_done(lens in prop::collection::vec(1usize..50, 1..8), done in 0u64..300) {
            let mut at = 0x1000usize;
            let pieces: Vec<libc::iovec> = lens.iter().map(|len| {
                let piece = libc::iovec { iov_base: at as *mut _, iov_len: *len };
                at += len + 7;
                piece
            }).collect();
            let bytes = |pieces: &[libc::iovec]| pieces.iter().flat_map(|p| {
                (0..p.iov_len).map(|i| p.iov_base as usize + i)
            }).collect::<Vec<_>>();
            let mut rest = Vec::new();
            skip(&pieces, done, &mut rest);
            let all = bytes(&pieces);
            prop_assert_eq!(bytes(&rest), all[(done as usize).min(all.len())..].to_vec());
            prop_assert!(rest.iter().all(|piece| piece.iov_len > 0));
        }
    }
}
