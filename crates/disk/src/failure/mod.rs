//! What becomes of requests that the host fails.
//!
//! A layer between a disk's queues and its back end, once somebody has said what is to be done
//! ([`crate::Disk::answer_failures`]): a failed request is passed on to the guest as the error that it is, or held whole
//! until somebody wants it tried again, or passed off as done ([`OnError`]). Device models know nothing of it.
//!
//! - [`ErrorPolicy`] says what to do.
//! - [`Failure`] is what people are told, at a bounded rate.
//! - [`Failures`] is the place where all queues of a disk and the VM's owner meet.
//! - `FailureLayer` is the layer: one for each queue, which keeps that queue's held requests.

mod failed;
mod failures;
mod layer;
mod policy;
mod rate;

pub use failed::Failure;
pub(crate) use failures::Owner;
pub use failures::{Failures, TellFailure, Waiting};
pub(crate) use layer::{FailureLayer, FlushAgain};
pub use policy::{Answer, ErrorPolicy, OnError};
