//! Steps of a VM's end and of its resets. If one takes long, a message says so.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::events::notice::{Notice, Reporter};

/// A step that takes longer is reported.
const SLOW_AFTER: Duration = Duration::from_secs(5);

/// Takes a step on this thread. If it takes long, the VM's owner gets one message that says what the step waits for.
pub fn wait_for<T>(what: &str, report: &Reporter, step: impl FnOnce() -> T) -> T {
    tell_after(SLOW_AFTER, what, report, step)
}

fn tell_after<T>(patience: Duration, what: &str, report: &Reporter, step: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (done, over) = channel::<()>();
        let tell = move || {
            if over.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                let waiting = format!("still waiting for {what}. See the host's log for what keeps it");
                report(&Notice::Trouble(waiting));
            }
        };
        // Without a thread the step is taken without a message.
        drop(thread::Builder::new().name("ending".into()).spawn_scoped(scope, tell));
        let outcome = step();
        drop(done);
        outcome
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    fn told(patience: Duration, takes: Duration) -> Vec<String> {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = lines.clone();
        let report: Reporter = Box::new(move |notice| sink.lock().push(notice.to_string()));
        let here = thread::current().id();
        let step = || {
            thread::sleep(takes);
            thread::current().id()
        };
        assert_eq!(tell_after(patience, "its disks", &report, step), here);
        let lines = lines.lock();
        lines.clone()
    }

    #[test]
    fn a_step_that_takes_long_is_told_of_once_and_another_is_not() {
        assert_eq!(told(Duration::from_secs(60), Duration::ZERO), [""; 0]);
        let lines = told(Duration::from_millis(20), Duration::from_secs(2));
        assert!(lines.len() == 1 && lines[0].contains("still waiting for its disks"), "{lines:?}");
    }
}
