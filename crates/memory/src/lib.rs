//! Guest RAM: what it is made of, and the only ways to access it.
//!
//! Guest RAM is host memory for the whole life of a VM: every segment is a shared mapping of a file in
//! memory that any host driver can reach by DMA, whether or not devices are assigned to the guest. The guest and its devices
//! change this memory at any moment, so nothing here ever hands out `&[u8]` or `&mut [u8]`: access is by
//! copies that the compiler may neither split nor repeat ([`GuestSlice`]), by atomics for ring indices, or by
//! address for the kernel and for devices ([`Buffers`]).

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod address;
mod available;
mod backing;
mod buffers;
mod loss;
mod lost;
mod map;
mod numa;
mod placement;
mod pool;
mod ram;
mod registers;
mod segment;
mod slice;
mod wiring;

pub use address::{AMD_HOLE, Gpa, GpaRange, HIGH_RAM_START, LOW_RAM_END, ram_ranges, ram_ranges_around};
pub use buffers::Buffers;
pub use loss::{Cause, Loss};
pub use lost::{Losses, Touch, any_stopped, is_stopped};
pub use map::{
    Audited, Change, ChangeError, Contents, DeviceMemory, Difference, MemoryMap, Mirror, MirrorError, Place,
    Stuck,
};
pub use placement::{Node, Pages, Placement};
pub use pool::{PoolError, PoolShort};
pub use ram::{OutsideRam, Ram};
pub use registers::RegisterPages;
pub use segment::{RamError, Segment};
pub use slice::GuestSlice;
