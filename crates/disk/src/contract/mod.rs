//! What a disk is, what it can be asked for, and what every back end fulfils.

mod backend;
mod capacity;
mod counters;
mod geometry;
mod request;

pub use backend::{Backend, Engine, Event, Patience, Poll, QueueError};
pub(crate) use capacity::Capacity;
pub use capacity::Size;
pub use counters::{Bounced, Counters, QueueCounters};
pub use geometry::{Access, AfterDiscard, Discard, Geometry, SectorRange, Sectors, WriteCache, WriteZeroes};
pub use request::{DiskError, Durability, Operation, Request, Unmap};
pub(crate) use request::{check, cut};
