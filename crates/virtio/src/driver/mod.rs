//! The guest's side, for tests of queues and device models.

mod guest;
mod packed;
mod ring;
mod split;

pub use guest::Guest;
pub use packed::PackedDriver;
pub use ring::{Driver, Layout};
pub use split::SplitDriver;
