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
//! - *No copy is silent.* Data passes between guest RAM and disk without a copy. Where one cannot be avoided it
//!   is counted with its reason ([`Counters`]).
//! - *Flush is honest.* A flush completes when everything that had completed before it is on stable storage.

mod backend;
mod counters;
mod disk;
mod geometry;
mod kernel;
pub mod nvme;
mod queue;
mod request;
mod spin;

pub use backend::{Backend, Engine, Patience};
pub use counters::{Bounced, Counters, QueueCounters};
pub use disk::{Disk, DiskOptions, QueueError, Tally};
pub use geometry::{Access, AfterDiscard, Discard, Geometry, SectorRange, Sectors, WriteCache, WriteZeroes};
pub use kernel::{Bounce, OpenError};
pub use queue::{DiskQueue, Event, PreparedQueue, Refused, WaitError};
pub use request::{DiskError, Durability, Failure, Operation, Request, Unmap};
pub use spin::Poll;
