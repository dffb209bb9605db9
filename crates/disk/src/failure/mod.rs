//! What becomes of requests that the host fails.
//!
//! A layer between a disk's queues and its back end, once somebody has said what is to be done
//! ([`crate::Disk::answer_failures`]): a failed request is passed on to the guest as the error that it is, or held whole
//! until somebody wants it tried again, or passed off as done ([`OnError`]). Device models know nothing of it.
//!
//! - [`ErrorPolicy`] says what to do.
//! - [`Failure`] is what people are told, at a bounded rate.
//! - [`Failures`] is the place where all queues of a disk and the VM's owner meet.
//! - `Guard` is the layer: one for each queue, which keeps that queue's held requests.

mod desk;
mod guard;
mod policy;
mod rate;
mod told;

pub(crate) use desk::Owner;
pub use desk::{Failures, TellFailure, Waiting};
pub(crate) use guard::{FlushAgain, Guard};
pub use policy::{Answer, ErrorPolicy, OnError};
pub use told::Failure;
