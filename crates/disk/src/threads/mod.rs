//! Requests that threads carry out: where the kernel has no ring for us, or where a disk needs more for a request
//! than to be asked for it.
//!
//! A [`Pool`] is the threads of one disk, [`Work`] what they do for it, and a [`Mailbox`] the place where a queue finds
//! what they have done.

mod mailbox;
mod pool;
mod waiter;
mod work;

pub(crate) use mailbox::{Done, Mailbox};
pub(crate) use pool::{Job, Pool};
pub(crate) use waiter::Waiter;
pub(crate) use work::{Direct, Moved, Work};
