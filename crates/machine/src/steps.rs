//! The steps of a start, each of which can be made to fail, to see that a failure leaves the host as it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::StartError;

/// The environment variable that names the step to fail at.
pub const VARIABLE: &str = "SKEP_TEST_FAIL_BEFORE";

/// The steps in their order (DESIGN: order of start, and its undo).
pub const STEPS: [&str; 10] = [
    "claim devices",
    "RAM",
    "map RAM for devices",
    "VM",
    "assign devices",
    "disks",
    "console",
    "vCPUs",
    "load",
    "run",
];

/// Goes through the steps.
pub struct Steps {
    fail_before: Option<String>,
    cancelled: Arc<AtomicBool>,
}

impl Steps {
    /// Fails before the step that the environment names, and before any step after `cancelled` was set.
    pub fn new(cancelled: Arc<AtomicBool>) -> Steps {
        Steps { fail_before: std::env::var(VARIABLE).ok(), cancelled }
    }

    /// The next step begins.
    pub fn begin(&self, step: &'static str) -> Result<(), StartError> {
        debug_assert!(STEPS.contains(&step));
        if self.cancelled.load(Ordering::SeqCst) {
            return Err(StartError::Cancelled);
        }
        if self.fail_before.as_deref() == Some(step) { Err(StartError::Injected(step)) } else { Ok(()) }
    }
}
