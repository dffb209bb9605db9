//! The guest's side, for tests of queues and device models.

mod guest;
mod ring;

pub use guest::Guest;
pub use ring::{Driver, Layout};
