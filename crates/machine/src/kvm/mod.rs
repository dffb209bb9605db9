//! What KVM is asked for: VMs, memory slots, interrupts, doorbells.

mod hypervisor;
pub mod interrupts;
pub mod irqchip;
pub mod services;
pub mod slots;

pub(crate) use hypervisor::failed;
pub use hypervisor::{Hypervisor, KvmError};
