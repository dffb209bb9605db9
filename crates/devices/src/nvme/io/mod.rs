//! I/O queues, each on threads of its own.
//!
//! A submission queue has one thread, which takes commands and itself drives the first namespace's disk: guest and
//! disk wake it by the same system call. Commands for further namespaces go to a thread each ([`namespace_worker`]), started
//! with the first command for that namespace, which drives its disk and posts completions by itself. So a thread
//! never waits for two disks, and a slow disk holds up no other.

mod executor;
mod job;
mod namespace_worker;
mod obedience;
mod queue;

pub(super) use queue::{IoQueue, Setup};
