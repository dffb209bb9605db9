//! Disks that fail: what the VM does about the requests that are held, and when people are told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::{Disk, ErrorPolicy, Failure, OnError, Waiting};

use crate::events::{Event, Events};

/// So long the VM stands still for what is tried again. Its clocks have gone on meanwhile, so drivers should see what
/// they wait for before they see the time; but a disk that hangs must not hang the VM.
const TRY: Duration = Duration::from_millis(700);
/// So long what is given up has to get to its device.
const GIVE_UP: Duration = Duration::from_secs(1);

/// From now on failures of a disk are answered as its description says, and are events of the VM.
pub fn watch(disk: &Disk, on_error: Option<config::OnError>, events: &Events) {
    let events = events.clone();
    disk.answer_failures(policy(on_error), Box::new(move |failure| events.send(Event::Disk(failure))));
}

fn policy(on_error: Option<config::OnError>) -> ErrorPolicy {
    let on_error = match on_error {
        None => return ErrorPolicy::default(),
        Some(config::OnError::Report) => OnError::Report,
        Some(config::OnError::Pause) => OnError::Pause,
        Some(config::OnError::Ignore) => OnError::Ignore,
    };
    on_error.into()
}

/// Why a VM stands still that has to wait for the request.
pub fn why(failure: &Failure) -> String {
    format!("{}. {} `skep resume` tries it again", failure.what(), failure.error.hint())
}

/// What waits to be tried again, of any of the disks.
pub fn waiting(disks: &[Arc<Disk>]) -> Option<Waiting> {
    disks.iter().find_map(|disk| disk.failures().waiting())
}

/// Has everything that is held tried again, and waits for what becomes of it, but not for long. Returns what has failed
/// again; the VM's owner is told of it as of any failure.
pub fn retry(disks: &[Arc<Disk>]) -> Option<Waiting> {
    disks.iter().for_each(|disk| disk.failures().retry());
    settle(disks, TRY);
    waiting(disks)
}

/// Ends everything that is held, and what fails from now on, with an error: before their devices are reset or taken
/// apart, which wait for them.
pub fn give_up(disks: &[Arc<Disk>]) {
    disks.iter().for_each(|disk| disk.failures().give_up());
    settle(disks, GIVE_UP);
}

/// After the reset, what fails may be held again.
pub fn hold_again(disks: &[Arc<Disk>]) {
    disks.iter().for_each(|disk| disk.failures().hold_again());
}

fn settle(disks: &[Arc<Disk>], patience: Duration) {
    let deadline = Instant::now() + patience;
    for disk in disks {
        // What has not settled by then hangs with its disk, and comes back as any other request does.
        let _settled = disk.failures().settle(deadline);
    }
}

/// When [`tell_due`] may have something to tell.
pub fn due(disks: &[Arc<Disk>]) -> Option<Instant> {
    disks.iter().filter_map(|disk| disk.failures().due()).min()
}

/// Tells how many requests have failed since the last that was told, of each disk whose turn it is.
pub fn tell_due(disks: &[Arc<Disk>]) {
    let now = Instant::now();
    disks.iter().for_each(|disk| disk.failures().tell_due(now));
}
