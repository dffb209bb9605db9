//! Whether queues may touch guest memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bus mastering as the driver allows it: while the gate is shut, queues take no chains and show no used ones.
/// All queues of a device share one.
#[derive(Clone, Debug)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// A gate that stands open.
    pub fn open() -> Gate {
        Gate(Arc::new(AtomicBool::new(true)))
    }

    /// Opens or shuts the gate; returns whether it was open. Whoever opens it kicks the queues afterwards, for
    /// their threads may be asleep with work to do.
    pub fn set(&self, open: bool) -> bool {
        self.0.swap(open, Ordering::SeqCst)
    }

    /// Whether the gate is open.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
