//! One request on its way: what the kernel is asked next, and what becomes of its answer.

use io_uring::{opcode, squeue, types};
use memory::Buffers;

use super::bounce::BounceBuffer;
use super::facts::Kind;
use super::handle::Handle;
use crate::contract::{
    Bounced, DiskError, Durability, Operation, QueueCounters, Request, SectorRange, Sectors, Unmap, cut,
};
use crate::registered::RingBuffers;

/// The kernel moves no more than this at once (MAX_RW_COUNT).
pub(super) const LONGEST_STEP: u64 = 0x7fff_f000;
/// The kernel takes no more pieces than this at once.
pub(super) const MOST_PIECES: usize = 1024;
/// So many parts of a long transfer are under way at once.
const MOST_PARTS: u16 = 8;
/// So often the kernel may say "again" to one request before that is its error.
const AGAIN_LIMIT: u8 = 32;

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | KEEP;

/// A way to discard or to zero a range. Kernels and disks differ; the ways are tried in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// `fallocate` with this mode.
    Fallocate(i32),
    /// The block layer's own io_uring command (Linux 6.12), or the ioctl of the same meaning.
    DiscardCommand,
}

pub(super) fn ways(operation: Operation, kind: Kind) -> &'static [Way] {
    use Way::{DiscardCommand, Fallocate};
    match (operation, kind) {
        (Operation::Discard(_), Kind::BlockDevice) => &[DiscardCommand],
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
    /// Ask again for this part: [`Slot::step`].
    Step(u16),
    /// Other parts are still under way.
    Wait,
    /// The request is done.
    Done(Result<(), DiskError>),
}

/// A piece of a transfer that the kernel is asked for on its own. Nearly every transfer is one part. A device
/// takes only so much at once; what is longer the kernel would cut up itself, but not without passing it to a
/// thread of its own first.
#[derive(Default)]
struct Part {
    /// First byte of the transfer that belongs to the part.
    start: u64,
    /// First byte that does not.
    end: u64,
    /// Bytes of the part that are done.
    done: u64,
    /// The pieces still to do, where they are not simply all of the request's.
    pieces: Vec<libc::iovec>,
    retries: u8,
    /// The kernel was last asked with a registered buffer.
    registered: bool,
}

/// How a request begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Start {
    /// At once, with so many parts to step.
    Now(u16),
    /// With [`Slot::lend`], when there is room for a bounce buffer of so many bytes.
    OnceThereIsRoom(usize),
}

/// A place for one request under way. It owns all memory that the kernel works on.
#[derive(Default)]
pub(super) struct Slot {
    request: Option<Request>,
    /// First byte of the transfer that is in no part yet.
    next: u64,
    parts: Vec<Part>,
    /// Parts that the kernel has been asked for and has not answered.
    under_way: u16,
    failure: Option<DiskError>,
    /// The kernel's number of that failure; 0 if it was not the kernel's.
    errno: i32,
    /// Why this transfer is copied, if it is.
    bounced: Option<Bounced>,
    /// Lent to this request, and gone with it.
    bounce: Option<BounceBuffer>,
    /// Which of the [`ways`] is being tried.
    way: usize,
    /// The request's file in the ring's table.
    file: u16,
}

// SAFETY: the raw pointers in the parts lead into the request's buffers, which are `Send` and travel along.
unsafe impl Send for Slot {}

impl Slot {
    /// The file in the ring's table that the request in this slot is for.
    pub(super) fn file(&self) -> usize {
        usize::from(self.file)
    }

    /// Takes a request in, for the file with the number `file` in the ring's table.
    pub(super) fn begin(&mut self, request: Request, file: u16, handle: &Handle) -> Start {
        self.file = file;
        let transfer = matches!(request.operation, Operation::Read { .. } | Operation::Write { .. });
        let pieces = request.buffers.iovecs();
        self.bounced = if transfer { handle.copies.for_pieces(pieces) } else { None };
        self.next = 0;
        self.way = 0;
        self.failure = None;
        self.errno = 0;
        self.under_way = 0;
        let total = if transfer { request.buffers.bytes() } else { 0 };
        self.request = Some(request);
        if self.copies() {
            return Start::OnceThereIsRoom(BounceBuffer::size_for(total));
        }
        while self.under_way == 0 || self.under_way < MOST_PARTS && self.next < total {
            let part = self.under_way;
            self.under_way += 1;
            self.assign(part, handle);
        }
        Start::Now(self.under_way)
    }

    /// Begins a transfer that is copied, through a new buffer of `size` bytes. Its parts follow each other, so
    /// there is one to step.
    pub(super) fn lend(&mut self, size: usize, handle: &Handle) {
        self.bounce = Some(BounceBuffer::new(size));
        self.under_way = 1;
        self.assign(0, handle);
    }

    /// Bytes of the bounce buffer that this request has.
    pub(super) fn lent(&self) -> usize {
        self.bounce.as_ref().map_or(0, BounceBuffer::len)
    }

    /// Gives a part the next bytes of the transfer.
    fn assign(&mut self, part: u16, handle: &Handle) {
        let total = self.request.as_ref().map_or(0, |request| request.buffers.bytes());
        let longest = match &self.bounce {
            Some(bounce) => bounce.len() as u64,
            None => handle.longest.min(LONGEST_STEP),
        };
        if self.parts.len() <= usize::from(part) {
            self.parts.push(Part::default());
        }
        let slot = &mut self.parts[usize::from(part)];
        (slot.start, slot.done, slot.retries) = (self.next, 0, 0);
        slot.end = total.min(self.next.saturating_add(longest));
        self.next = slot.end;
    }

    /// Parts that the kernel may have been asked for; some of them may have been answered.
    pub(super) fn parts_under_way(&self) -> std::ops::Range<u16> {
        let asked = self.request.is_some() && self.under_way > 0;
        0..if asked { self.parts.len() as u16 } else { 0 }
    }

    /// The kernel's number of the failure that the request has ended with.
    pub(super) fn errno(&self) -> Option<i32> {
        (self.errno != 0).then_some(self.errno)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.request.is_some()
    }

    /// Takes the request out, and frees its bounce buffer and the lists of its parts. Only once the kernel has
    /// answered for all parts.
    pub(super) fn finish(&mut self) -> Option<Request> {
        self.bounce = None;
        self.parts.iter_mut().for_each(|part| part.pieces = Vec::new());
        self.request.take()
    }

    /// Takes an answer after which nothing more is asked; the request goes with the last one. What the kernel
    /// moved arrives, and counts, all the same.
    pub(super) fn abandon(&mut self, part: u16, result: i32, counters: &QueueCounters) {
        if let Ok(moved @ 1..) = u64::try_from(result) {
            self.settle(part, moved, counters);
        }
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.finish();
        }
    }

    /// Brings what a step of a transfer moved to where it belongs, and counts it.
    fn settle(&mut self, part: u16, moved: u64, counters: &QueueCounters) {
        let Some(request) = &self.request else { return };
        let part = &mut self.parts[usize::from(part)];
        match (request.operation, &self.bounce) {
            (Operation::Read { .. }, Some(bounce)) => {
                request.buffers.write_at(part.start + part.done, &bounce.bytes()[..moved as usize]);
            }
            (Operation::Read { .. } | Operation::Write { .. }, _) => {}
            _ => return,
        }
        counters.moved(moved, self.bounced);
        if part.registered && self.bounced.is_none() {
            counters.registered(moved);
        }
        part.done += moved;
    }

    /// The next thing to ask of the kernel for a part. What the entry points to lies in this slot and must stay
    /// until the answer; `None` without a request.
    pub(super) fn step(
        &mut self,
        part: u16,
        handle: &Handle,
        registered: Option<&RingBuffers>,
    ) -> Option<squeue::Entry> {
        let request = self.request.as_ref()?;
        let file = types::Fixed(u32::from(self.file));
        Some(match request.operation {
            Operation::Read { at } => self.transfer(file, part, at, None, registered),
            Operation::Write { at, durability } => {
                self.transfer(file, part, at, Some(durability), registered)
            }
            Operation::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            Operation::Discard(range) | Operation::WriteZeroes(range, _) => {
                change_range(file, ways(request.operation, handle.kind)[self.way], range)
            }
        })
    }

    fn transfer(
        &mut self,
        file: types::Fixed,
        part: u16,
        at: Sectors,
        write: Option<Durability>,
        registered: Option<&RingBuffers>,
    ) -> squeue::Entry {
        let buffers = &self.request.as_ref().expect("step() found a request").buffers;
        let part = &mut self.parts[usize::from(part)];
        let from = part.start + part.done;
        let len = (part.end - from) as usize;
        let offset = at.0 * Sectors::SIZE + from;
        let flags = match write {
            Some(Durability::Stable) => libc::RWF_DSYNC,
            _ => 0,
        };
        part.registered = false;
        if let Some(bounce) = &mut self.bounce {
            if write.is_some() {
                buffers.read_at(from, &mut bounce.bytes_mut()[..len]);
            }
            let piece = [libc::iovec { iov_base: bounce.start().cast(), iov_len: len }];
            return Transfer { file, offset, write: write.is_some(), flags }.entry(&piece, None);
        }
        let pieces = if from == 0 && part.end == buffers.bytes() {
            buffers.iovecs()
        } else {
            cut(buffers.iovecs(), from, part.end, &mut part.pieces);
            &part.pieces
        };
        let pieces = &pieces[..pieces.len().min(MOST_PIECES)];
        let place = registered.and_then(|registered| registered.find(pieces));
        part.registered = place.is_some();
        Transfer { file, offset, write: write.is_some(), flags }.entry(pieces, place)
    }

    /// Whether this transfer goes through the bounce buffer.
    fn copies(&self) -> bool {
        matches!(self.bounced, Some(Bounced::Alignment | Bounced::Asked))
    }

    /// Takes the kernel's answer to the last step of a part.
    pub(super) fn answer(
        &mut self,
        part: u16,
        result: i32,
        handle: &Handle,
        counters: &QueueCounters,
    ) -> Next {
        let Some(request) = self.request.as_ref() else { return Next::Wait };
        if result < 0 {
            return self.failed(part, -result, request.operation, handle);
        }
        if !matches!(request.operation, Operation::Read { .. } | Operation::Write { .. }) {
            if request.operation == Operation::Flush {
                self.failure = handle.told_by_flush(Ok(())).err();
            }
            return self.ended();
        }
        let (moved, total) = (result as u64, request.buffers.bytes());
        if moved == 0 {
            // Inside the disk when it was checked, and nothing there now: it has shrunk.
            (self.failure, self.errno) = (Some(handle.kind_of(DiskError::OutOfRange)), 0);
            return self.ended();
        }
        self.settle(part, moved, counters);
        let slot = &self.parts[usize::from(part)];
        if slot.start + slot.done < slot.end {
            return Next::Step(part);
        }
        if self.failure.is_none() && self.next < total {
            self.assign(part, handle);
            return Next::Step(part);
        }
        self.ended()
    }

    /// A part needs nothing more.
    fn ended(&mut self) -> Next {
        self.under_way -= 1;
        match (self.under_way, self.failure) {
            (0, None) => Next::Done(Ok(())),
            (0, Some(error)) => Next::Done(Err(error)),
            _ => Next::Wait,
        }
    }

    fn failed(&mut self, part: u16, errno: i32, operation: Operation, handle: &Handle) -> Next {
        let slot = &mut self.parts[usize::from(part)];
        if matches!(errno, libc::EAGAIN | libc::EINTR) && slot.retries < AGAIN_LIMIT {
            slot.retries += 1;
            return Next::Step(part);
        }
        // A way that this kernel or disk does not know is answered with one of these.
        let unknown = matches!(errno, libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY | libc::ENOSYS);
        if unknown && self.way + 1 < ways(operation, handle.kind).len() {
            self.way += 1;
            return Next::Step(part);
        }
        let answer = Err(handle.kind_of(DiskError::from_errno(errno)));
        match operation {
            Operation::Write { durability: Durability::Stable, .. } => handle.note_stable_write(answer),
            // It tells now.
            Operation::Flush => drop(handle.take_untold()),
            _ => {}
        }
        (self.failure, self.errno) = (answer.err(), errno);
        self.ended()
    }
}

/// What the kernel is asked for with every form of a transfer.
#[derive(Clone, Copy)]
struct Transfer {
    file: types::Fixed,
    /// First byte in the file.
    offset: u64,
    write: bool,
    flags: i32,
}

impl Transfer {
    /// Moves these pieces, which lie in the registered buffer at `place` if there is one.
    fn entry(self, pieces: &[libc::iovec], place: Option<u16>) -> squeue::Entry {
        let Transfer { file, offset, write, flags } = self;
        macro_rules! ask {
            ($Operation:ident, $($argument:expr),*) => {
                opcode::$Operation::new(file, $($argument),*).offset(offset).rw_flags(flags).build()
            };
        }
        if let [piece] = pieces {
            let (start, len) = (piece.iov_base.cast::<u8>(), piece.iov_len as u32);
            return match (write, place) {
                (true, Some(place)) => ask!(WriteFixed, start, len, place),
                (true, None) => ask!(Write, start, len),
                (false, Some(place)) => ask!(ReadFixed, start, len, place),
                (false, None) => ask!(Read, start, len),
            };
        }
        let (start, count) = (pieces.as_ptr(), pieces.len() as u32);
        match (write, place) {
            (true, Some(place)) => ask!(WritevFixed, start, count, place),
            (true, None) => ask!(Writev, start, count),
            (false, Some(place)) => ask!(ReadvFixed, start, count, place),
            (false, None) => ask!(Readv, start, count),
        }
    }
}

/// The kernel is to discard or zero a range in this way.
pub(super) fn change_range(file: types::Fixed, way: Way, range: SectorRange) -> squeue::Entry {
    let (offset, len) = (range.start.0 * 512, range.count.0 * 512);
    match way {
        Way::Fallocate(mode) => opcode::Fallocate::new(file, len).offset(offset).mode(mode).build(),
        Way::DiscardCommand => {
            // BLOCK_URING_CMD_DISCARD = _IO(0x12, 0): start in `addr`, length in `addr3`, which is where the
            // command's own bytes begin.
            let mut command = [0; 16];
            command[..8].copy_from_slice(&len.to_ne_bytes());
            opcode::UringCmd16::new(file, 0x1200).addr(Some(offset)).cmd(command).build()
        }
    }
}

/// Which buffers a request in a slot has; for tests and messages.
impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let buffers: Option<&Buffers> = self.request.as_ref().map(|request| &request.buffers);
        f.debug_struct("Slot").field("buffers", &buffers).field("next", &self.next).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::facts::Alignment;
    use super::super::handle::CopyPolicy;
    use super::*;
    use memory::{Gpa, GpaRange, Ram};
    use proptest::prelude::*;

    /// A slot whose request the kernel has answered like this.
    fn answered(operation: Operation, result: i32, handle: &Handle) -> Result<(), DiskError> {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 4096).unwrap()]).unwrap());
        let mut buffers = Buffers::new(ram);
        buffers.push(Gpa(0), 512).unwrap();
        let mut slot = Slot::default();
        slot.begin(Request { tag: 0, operation, buffers }, 0, handle);
        let Next::Done(result) = slot.answer(0, result, handle, &QueueCounters::default()) else {
            panic!("there is one part")
        };
        result
    }

    #[test]
    fn that_the_page_cache_could_not_be_written_is_told_by_the_next_flush_as_well() {
        let file = tempfile::tempfile().unwrap();
        let mut handle = Handle {
            file,
            kind: Kind::File,
            copies: CopyPolicy::InPageCache,
            longest: u64::MAX,
            untold: AtomicBool::default(),
        };
        let write = |durability| Operation::Write { at: Sectors(0), durability };
        let lost = Err(DiskError::Media);
        let run = |operation, result| answered(operation, result, &handle);
        assert_eq!(run(write(Durability::Stable), -libc::EIO), lost);
        assert_eq!(run(Operation::Flush, 0), lost);
        assert_eq!(run(Operation::Flush, 0), Ok(()));
        assert_eq!(run(Operation::Flush, -libc::EIO), lost);
        assert_eq!(run(Operation::Flush, 0), Ok(()), "it was told");
        assert_eq!(run(write(Durability::Cached), -libc::EIO), lost);
        assert_eq!(run(write(Durability::Stable), -libc::ENOSPC), Err(DiskError::NoSpace));
        assert_eq!(run(Operation::Flush, 0), Ok(()), "neither is about what others wrote");
        // With direct I/O a write speaks for itself.
        handle.copies = CopyPolicy::Unless(Alignment { address: 1, length: 1 });
        assert_eq!(answered(write(Durability::Stable), -libc::EIO, &handle), lost);
        assert_eq!(answered(Operation::Flush, 0, &handle), Ok(()));
    }

    #[test]
    fn a_slot_keeps_no_list_of_a_request_that_is_done() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let options = crate::options::DiskOptions::new(file.path());
        let opened =
            super::super::open::open(&super::super::file_options::FileOptions::new(file.path(), &options))
                .unwrap();
        let mut handle = Arc::into_inner(opened.handle).unwrap();
        handle.longest = 4096;
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
        let mut buffers = Buffers::new(ram);
        (0..64).for_each(|page| buffers.push(Gpa(8192 * page), 4096).unwrap());
        let mut slot = Slot::default();
        let request = Request { tag: 0, operation: Operation::Read { at: Sectors(0) }, buffers };
        assert_eq!(slot.begin(request, 0, &handle), Start::Now(MOST_PARTS));
        (0..MOST_PARTS).for_each(|part| assert!(slot.step(part, &handle, None).is_some()));
        let room = |slot: &Slot| slot.parts.iter().map(|part| part.pieces.capacity()).sum::<usize>();
        assert!(room(&slot) >= usize::from(MOST_PARTS), "each part has a list of its own");
        slot.finish().unwrap();
        assert_eq!(room(&slot), 0);
    }

    proptest! {
        #[test]
        fn a_cut_holds_the_bytes_between_its_ends(
            lens in prop::collection::vec(1usize..50, 1..8), from in 0u64..300, len in 0u64..300
        ) {
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
            cut(&pieces, from, from + len, &mut rest);
            let all = bytes(&pieces);
            let (from, end) = ((from as usize).min(all.len()), ((from + len) as usize).min(all.len()));
            prop_assert_eq!(bytes(&rest), all[from..end].to_vec());
            prop_assert!(rest.iter().all(|piece| piece.iov_len > 0));
        }
    }
}
