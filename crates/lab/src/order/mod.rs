//! The order of writes on a disk, and whether the disk kept it when its power was cut.
//!
//! A writer puts numbered records into the places of a [`Plan`], round and round, several at a time, and flushes every
//! few. Each record says how far the disk had been flushed when it was written. Whoever finds a record on the disk
//! afterwards therefore knows that flush to have been done, and with it what must be there: everything up to it,
//! whole, and nothing that is older ([`check`]).

mod check;
mod record;

pub use check::{Finding, Verdict, Wrong, check};
pub use record::{Plan, SECTOR, SLOT, mix};
