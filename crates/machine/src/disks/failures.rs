//! Disks that fail: what the VM does about held requests, and when failures are reported to people.

use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::{Disk, ErrorPolicy, Failure, OnError, Waiting};

use crate::events::{Event, Events};

/// How long the VM stays paused for requests that are tried again. Its clocks ran during the pause, so drivers should see
/// the results before they see the time. But a disk that hangs must not hang the VM.
const TRY: Duration = Duration::from_millis(700);
/// Time in which requests that are given up must reach their device.
const GIVE_UP: Duration = Duration::from_secs(1);

/// From now on, skep does what the description says when a disk fails, and failures are events of the VM.
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

/// Why a VM is paused that must wait for the request.
pub fn why(failure: &Failure) -> String {
    format!("{}. {} `skep resume` tries it again", failure.what(), failure.error.hint())
}

/// The disks' requests for which the VM must be paused.
pub fn pause(disks: &[Arc<Disk>]) -> Vec<Failure> {
    disks.iter().filter_map(|disk| disk.failures().pause()).collect()
}

/// What waits to be tried again, of any of the disks.
pub fn waiting(disks: &[Arc<Disk>]) -> Option<Waiting> {
    disks.iter().find_map(|disk| disk.failures().waiting())
}

/// Tries everything that is held again, and waits a limited time for the results. Returns what has failed
/// again, which is reported to the VM's owner like any failure.
pub fn retry(disks: &[Arc<Disk>]) -> Option<Waiting> {
    disks.iter().for_each(|disk| disk.failures().retry());
    settle(disks, TRY);
    waiting(disks)
}

/// Ends everything that is held, and what fails from now on, with an error: before their devices are reset or
/// dropped, which waits for them.
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

/// When [`tell_due`] may have something to report.
pub fn due(disks: &[Arc<Disk>]) -> Option<Instant> {
    disks.iter().filter_map(|disk| disk.failures().due()).min()
}

/// Reports, for each disk that is due, how many requests have failed since the last report.
pub fn tell_due(disks: &[Arc<Disk>]) {
    let now = Instant::now();
    disks.iter().for_each(|disk| disk.failures().tell_due(now));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::events;
    use disk::{Answer, DiskError, DiskOptions, Durability, Operation, Request, Sectors};
    use memory::{Buffers, Gpa, GpaRange, Ram};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    const WHOLE: u64 = 1 << 20;

    #[test]
    fn a_request_that_fails_is_an_event_and_waits_until_it_goes_well_or_is_given_up() {
        let file = std::env::temp_dir().join(format!("skep-failures-{}", std::process::id()));
        let resize =
            |bytes| std::fs::File::options().write(true).open(&file).unwrap().set_len(bytes).unwrap();
        std::fs::write(&file, vec![7; WHOLE as usize]).unwrap();
        let disks = [Arc::new(Disk::open(&DiskOptions::new(&file)).unwrap())];
        let (sender, inbox) = events(Box::new(|_| {}));
        watch(&disks[0], Some(config::OnError::Pause), &sender);
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 4096).unwrap()]).unwrap());
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let (prepared, bell) = (disks[0].prepare_queue(4).unwrap(), kick.try_clone().unwrap());
        // What a device model does with one read after the other, and how they end.
        let (asks, asked) = std::sync::mpsc::channel::<()>();
        let (ends, ended) = std::sync::mpsc::channel();
        let model = std::thread::spawn(move || {
            let (mut queue, mut events) = (prepared.start().unwrap(), Vec::new());
            queue.watch(&bell).unwrap();
            while asked.recv().is_ok() {
                let mut buffers = Buffers::new(ram.clone());
                buffers.push(Gpa(0), 4096).unwrap();
                let operation = Operation::Read { at: Sectors::in_bytes(WHOLE / 2) };
                queue.submit(Request { tag: 1, operation, buffers }).unwrap();
                while queue.under_way() > 0 {
                    queue.wait(&mut events).unwrap();
                }
                for event in events.drain(..) {
                    if let disk::Event::Done { result, .. } = event {
                        ends.send(result).unwrap();
                    }
                }
            }
        });
        let failure = || match inbox.next(Some(Instant::now() + Duration::from_secs(10))) {
            Ok(Event::Disk(failure)) => failure,
            other => panic!("{other:?}"),
        };
        resize(WHOLE / 2);
        asks.send(()).unwrap();
        let first = failure();
        assert_eq!((first.answer, first.error), (Answer::Held, DiskError::OutOfRange));
        assert_eq!((pause(&disks), pause(&disks)), (vec![first], vec![]));
        assert_eq!(retry(&disks).unwrap().count, 1);
        let why = why(&failure());
        assert!(
            why.contains("read of 4096 bytes at sector 1024 failed") && why.contains("`skep resume`"),
            "{why}"
        );
        resize(WHOLE);
        assert_eq!(retry(&disks), None);
        assert_eq!(ended.recv().unwrap(), Ok(()));
        resize(WHOLE / 2);
        asks.send(()).unwrap();
        failure();
        give_up(&disks);
        assert_eq!(ended.recv().unwrap(), Err(DiskError::OutOfRange));
        // As with a reset before the VM could stand still: it does not, and is told what became of the request.
        assert_eq!((pause(&disks), failure().answer), (vec![], Answer::Reported));
        drop(asks);
        model.join().unwrap();
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn without_a_word_only_a_lack_of_space_pauses() {
        let write = Operation::Write { at: Sectors(0), durability: Durability::Cached };
        let answers = |on_error| {
            [DiskError::NoSpace, DiskError::Media].map(|error| policy(on_error).answer(write, error))
        };
        assert_eq!(answers(None), [Answer::Held, Answer::Reported]);
        assert_eq!(answers(Some(config::OnError::Report)), [Answer::Reported; 2]);
        assert_eq!(answers(Some(config::OnError::Pause)), [Answer::Held; 2]);
        assert_eq!(answers(Some(config::OnError::Ignore)), [Answer::Ignored; 2]);
    }
}
