//! The steps of a start, each of which can be made to fail, to see that a failure leaves the host as it was.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::error::StartError;

/// The environment variable that names the step to fail at.
pub const VARIABLE: &str = "SKEP_TEST_FAIL_BEFORE";

/// The steps in their order (DESIGN: order of start, and its undo).
pub const STEPS: [&str; 11] = [
    "claim devices",
    "RAM",
    "map RAM for devices",
    "VM",
    "assign devices",
    "disks",
    "console",
    "TPM",
    "vCPUs",
    "load",
    "run",
];

/// So often a step that waits for somebody looks whether the start is cancelled.
const LOOK: Duration = Duration::from_millis(50);

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

    /// Waits for somebody. Once the start is cancelled, `abort` is called until the wait has ended.
    pub fn wait<T>(&self, wait: impl FnOnce() -> T, abort: impl Fn() + Sync) -> io::Result<T> {
        let (waits, ended) = channel::<()>();
        let (cancelled, abort) = (&self.cancelled, &abort);
        std::thread::scope(|scope| {
            let watch = move || {
                while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                    if cancelled.load(Ordering::SeqCst) {
                        abort();
                    }
                }
            };
            std::thread::Builder::new().name("cancel".into()).spawn_scoped(scope, watch)?;
            let result = wait();
            drop(waits);
            Ok(result)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(cancelled: &Arc<AtomicBool>) -> Steps {
        Steps { fail_before: None, cancelled: cancelled.clone() }
    }

    #[test]
    fn a_step_that_waits_is_aborted_when_the_start_is_cancelled_and_else_never() {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (abort, aborted) = channel();
        let waited = steps(&cancelled).wait(|| std::thread::sleep(LOOK * 3), || abort.send(()).unwrap());
        waited.unwrap();
        assert!(aborted.try_recv().is_err());
        let wait = || {
            assert!(aborted.recv_timeout(LOOK * 3).is_err(), "not before");
            cancelled.store(true, Ordering::SeqCst);
            aborted.recv_timeout(Duration::from_secs(10))
        };
        assert_eq!(steps(&cancelled).wait(wait, || abort.send(()).unwrap()).unwrap(), Ok(()));
    }
}
