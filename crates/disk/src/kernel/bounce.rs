//! Memory of our own, for transfers that cannot go to guest RAM as they are.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A bounced request goes through a buffer of this size at most, however long it is.
pub(super) const BOUNCE_SIZE: usize = 256 << 10;

/// Bytes that all queues of a disk share for bounce buffers, beside [`BOUNCE_SIZE`] that each queue has of its own: a guest
/// chooses how its memory lies and how many queues it uses, and must not thereby choose how much the host spends.
const SHARED: usize = 4 << 20;

/// What is left of the bytes that a disk's queues share.
#[derive(Debug)]
pub(crate) struct BounceRoom(AtomicUsize);

impl Default for BounceRoom {
    fn default() -> BounceRoom {
        BounceRoom(AtomicUsize::new(SHARED))
    }
}

/// The bounce buffers of one queue. It can always have one, so it never waits for another queue.
pub(super) struct Loans {
    room: Arc<BounceRoom>,
    lent: usize,
}

impl Loans {
    pub(super) fn new(room: Arc<BounceRoom>) -> Loans {
        Loans { room, lent: 0 }
    }

    /// Whether a request may have a buffer of `size` bytes now. If not, one of this queue is under way.
    pub(super) fn lend(&mut self, size: usize) -> bool {
        let more = of_the_room(self.lent + size) - of_the_room(self.lent);
        let room = &self.room.0;
        let granted =
            room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(more)).is_ok();
        if granted {
            self.lent += size;
        }
        granted
    }

    /// A request that had a buffer of `size` bytes has ended.
    pub(super) fn end(&mut self, size: usize) {
        let less = of_the_room(self.lent) - of_the_room(self.lent - size);
        self.lent -= size;
        self.room.0.fetch_add(less, Ordering::Relaxed);
    }
}

impl Drop for Loans {
    fn drop(&mut self) {
        self.end(self.lent);
    }
}

/// How much of so many lent bytes comes out of the shared room.
fn of_the_room(lent: usize) -> usize {
    lent.saturating_sub(BOUNCE_SIZE)
}

/// Memory on a page boundary, for transfers that cannot be direct.
pub(super) struct BounceBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory that the buffer alone owns.
unsafe impl Send for BounceBuffer {}

impl BounceBuffer {
    const PAGE: usize = 4096;

    /// Bytes of the buffer for a transfer of `total` bytes: whole pages, and no more than [`BOUNCE_SIZE`].
    pub(super) fn size_for(total: u64) -> usize {
        let most = total.clamp(1, BOUNCE_SIZE as u64) as usize;
        most.next_multiple_of(Self::PAGE)
    }

    /// `size` is one that [`BounceBuffer::size_for`] gives.
    pub(super) fn new(size: usize) -> BounceBuffer {
        let layout = Layout::from_size_align(size, Self::PAGE).expect("a few pages on a page boundary");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        BounceBuffer { start, layout }
    }

    /// Bytes of the buffer.
    pub(super) fn len(&self) -> usize {
        self.layout.size()
    }

    /// Where it starts, for the kernel.
    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: as many initialised bytes that this buffer owns; the kernel writes to them only between
        // a step and its answer, and nobody holds this borrow then.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for BounceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout; a slot drops it only when the kernel has answered.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
