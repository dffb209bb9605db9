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
//! # The family
//!
//! From the ground up; imports only point down, and no two folders import each other.
//!
//! | what | where | how |
//! | --- | --- | --- |
//! | guest RAM that the kernel has pinned once for all queues ([`BufferTable`]) | `registered` | a mirror of the memory map |
//! | the contract | `contract` | what a disk is, a request, an error, an event; what a back end is ([`Backend`], [`Engine`]) |
//! | a queue, as its user sees it | `queue` | checks, polls, sleeps |
//! | what becomes of failed requests | `failure` | a layer between the queues and any back end |
//! | work for threads beside the ring | `threads` | a pool for each disk |
//! | NVMe controllers | [`nvme`] | skep's own driver |
//! | servers by NBD | `nbd` | a socket that guest memory is sent to and filled from |
//! | what is asked for, and why it cannot be had | `options` | [`DiskOptions`], [`OpenError`] |
//! | block devices, raw files, memory | `kernel` | io_uring on guest memory itself |
//! | disks of which threads do a part, or all where io_uring is forbidden | `pooled` | each request to the ring or to the pool; small sectors on a disk of large ones, with a copy |
//! | qcow2, flat vmdk, throw-away changes | `image` | known places by io_uring, the rest by threads that ask the format |
//! | the back end for what is asked for | `opening` | |
//! | a disk | `disk`, `sizes` | back end, failure layer and counters together |

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod contract;
mod disk;
mod failure;
mod image;
mod kernel;
mod nbd;
pub mod nvme;
mod opening;
mod options;
mod pooled;
mod queue;
mod registered;
mod signature;
mod sizes;
mod threads;
mod uring;

pub use contract::{
    Access, AfterDiscard, Backend, Bounced, Counters, Discard, DiskError, Durability, Engine, Event,
    Geometry, Operation, Patience, Poll, QueueCounters, QueueError, Request, SectorRange, Sectors, Size,
    Unmap, WriteCache, WriteZeroes,
};
pub use disk::{Disk, Reading, Tally};
pub use failure::{Answer, ErrorPolicy, Failure, Failures, OnError, TellFailure, Waiting};
pub use kernel::lock_file;
pub use nbd::{BadNbdUrl, NbdError, NbdServer, NbdUrl};
pub use options::{
    Allocation, Allowed, Bounce, Changes, Claim, DiskOptions, Format, OpenError, Role, Source, UnknownFormat,
    Written,
};
pub use queue::{DiskQueue, PreparedQueue, Refused, WaitError};
pub use registered::{BufferTable, BufferTableError};
pub use sizes::SizeWatch;
