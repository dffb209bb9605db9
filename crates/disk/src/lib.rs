//! Disks of the host: one contract, and the back ends that fulfil it.
//!
//! # The contract
//!
//! A [`Disk`] is opened once, claims what lies behind it, and says what it is ([`Geometry`]). Every queue of a
//! device model prepares a queue of its own ([`Disk::prepare_queue`]), starts it on its own thread
//! ([`PreparedQueue::start`]) and from then on shares nothing with the other queues.
//!
//! - *Submit, then wait.* [`DiskQueue::submit`] only notes a request down. [`DiskQueue::wait`] and
//!   [`DiskQueue::poll`] hand everything noted to the back end in one step and bring back what has completed,
//!   in whatever order. `wait` also wakes for an eventfd ([`DiskQueue::watch`]), so that a queue's thread needs
//!   a single system call for guest and disk together.
//! - *Checked once.* Whether a request lies inside the disk, in whole blocks, and may be written at all is
//!   decided in one place, before any back end sees it.
//! - *Owned until completion.* A request takes its [`memory::Buffers`] along, and the completion brings them
//!   back. Dropping a queue waits for everything under way: no back end ever holds memory that its owner has
//!   already given up, whatever the guest resets.
//! - *Whole or an error.* A transfer that the host ends early is continued; success means every byte.
//! - *Errors keep their kind* ([`DiskError`]), in terms that a guest understands.
//!   What is done about them is the disk's own affair, not that of device models ([`OnError`]): they go to the guest,
//!   or wait until somebody has mended what was wrong, and people are told.
//! - *No copy is silent.* Data passes between guest RAM and disk without a copy. Where one cannot be avoided it
//!   is counted with its reason ([`Counters`]).
//! - *Sizes are live.* A disk that grows or shrinks on the host has its new size for every queue once somebody
//!   has looked ([`Disk::look_again`], [`SizeWatch`]).
//! - *Flush is honest.* A flush completes when everything that had completed before it is on stable storage. Where
//!   that cannot be known any more, as after a server was gone, the next flush fails.
//!
//! # The back ends
//!
//! | what | where | how |
//! | --- | --- | --- |
//! | block devices, raw files, memory | `kernel` | io_uring on guest memory itself; threads where that is forbidden |
//! | small sectors on a disk of large ones | `emulation` | whole blocks as above, the rest by threads with a copy |
//! | qcow2, flat vmdk, throw-away changes | `image` | known places by io_uring, the rest by threads that ask the format |
//! | servers by NBD | `nbd` | a socket that guest memory is sent to and filled from |
//! | NVMe controllers | [`nvme`] | skep's own driver |
//!
//! `failure` lies between the queues and any of these. `registered` is guest RAM that the kernel has pinned once for all
//! queues, where that is wanted ([`BufferTable`]). `threads` is what those share that need threads beside the ring: a crew
//! for each disk, and the engine that gives a
//! request to the ring or to the crew.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod backend;
mod capacity;
mod counters;
mod crewed;
mod disk;
mod emulation;
mod failure;
mod geometry;
mod hints;
mod image;
mod kernel;
mod nbd;
pub mod nvme;
mod opening;
mod options;
mod queue;
mod registered;
mod request;
mod signature;
mod sizes;
mod spin;
mod threads;

pub use backend::{Backend, Engine, Patience};
pub use capacity::Size;
pub use counters::{Bounced, Counters, QueueCounters};
pub use disk::{Disk, QueueError, Reading, Tally};
pub use failure::{Answer, ErrorPolicy, Failure, Failures, OnError, TellFailure, Waiting};
pub use geometry::{Access, AfterDiscard, Discard, Geometry, SectorRange, Sectors, WriteCache, WriteZeroes};
pub use hints::Written;
pub use image::Role;
pub use kernel::{Bounce, OpenError};
pub use nbd::{BadNbdUrl, NbdError, NbdServer, NbdUrl};
pub use options::{Allocation, Allowed, Changes, Claim, DiskOptions, Format, Source, UnknownFormat};
pub use queue::{DiskQueue, Event, PreparedQueue, Refused, WaitError};
pub use registered::{BufferTable, BufferTableError};
pub use request::{DiskError, Durability, Operation, Request, Unmap};
pub use sizes::SizeWatch;
pub use spin::Poll;
