//! Disks that the guest has lost, until they are closed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::Disk;

/// How long closing a disk may take before the call returns that it is still in use.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// How often to look whether it is.
const LOOK: Duration = Duration::from_millis(5);

/// Waits a limited time until a disk that was removed is closed; its name, if it is still open then.
pub fn let_go(disk: Arc<Disk>) -> Option<String> {
    // Nothing repeats held requests from here on.
    disk.failures().give_up();
    disk.failures().tell_rest();
    let (name, tally, until) = (disk.name().to_owned(), disk.tally().clone(), Instant::now() + CLOSE_LIMIT);
    let weak = Arc::downgrade(&disk);
    drop(disk);
    while weak.strong_count() > 0 || tally.in_use() {
        if Instant::now() >= until {
            return Some(name);
        }
        std::thread::sleep(LOOK);
    }
    None
}
