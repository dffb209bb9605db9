//! A guest's driver, the model of a virtio block device and a disk over a file, in one process and without a VM: what
//! the way of a request costs on this machine.
//!
//! The model has its own thread, as in a VM, and is driven through the queue in guest RAM that it always has. The
//! driver's side is a thing for tests, and is not counted.

mod clock;
mod guest;
mod load;
mod steps;

pub use clock::Clock;
pub use guest::{Memory, Rig, Way};
pub use load::Load;
pub use steps::{Stepped, Steps};
