//! Devices that killed VMs left bound are given back at the next start, which waits a limited time for that.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use host::{BindError, Host, Leftover};

use crate::events::notice::{Notice, Reporter};

/// How long a start waits for all of them. Most drivers take a device in well under a second, and a disk of this VM may be
/// behind one; but a driver may also take a minute, and then this VM does not wait.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(5);

/// Gives back what no process uses. A failure concerns this VM only if it wants such a device, and then claiming the device
/// says why.
pub fn give_back(host: &Host, report: &Reporter) {
    give_back_within(GIVE_BACK_LIMIT, host, report);
}

fn give_back_within(patience: Duration, host: &Host, report: &Reporter) {
    let (left, errors): (Vec<_>, Vec<_>) = host.try_leftovers().into_iter().partition(Result::is_ok);
    for error in errors.into_iter().filter_map(Result::err) {
        // Other users cannot read what root's VMs left, and do not need to.
        if !matches!(&error, BindError::Records { cause } if cause.is_denied()) {
            report(&Notice::Trouble(error.to_string()));
        }
    }
    let until = Instant::now() + patience;
    // All at the same time: a slow device must not use up the time of the others.
    let under_way: Vec<_> =
        left.into_iter().flatten().map(|left| (begin(Builder::new(), host, left.clone()), left)).collect();
    for (begun, left) in under_way {
        let outcome = match begun {
            Ok(outcome) => awaited(&outcome, until),
            Err(cause) => Outcome::NotBegun(cause),
        };
        report(&Notice::Trouble(said(&left, patience, &outcome)));
    }
}

/// The result of giving one back.
enum Outcome {
    GivenBack,
    Failed(BindError),
    /// This host has no thread for it.
    NotBegun(io::Error),
    /// The thread has ended without a result.
    Broken,
    StillUnderWay,
}

/// Gives one back on a thread for which the start need not wait. If the process ends first, its record is still there.
fn begin(thread: Builder, host: &Host, left: Leftover) -> io::Result<Receiver<Result<(), BindError>>> {
    let (done, outcome) = channel();
    let host = host.clone();
    thread.name("leftover".into()).spawn(move || {
        // After a time-out nobody waits for it.
        drop(done.send(host.give_back_leftover(&left)));
    })?;
    Ok(outcome)
}

fn awaited(outcome: &Receiver<Result<(), BindError>>, until: Instant) -> Outcome {
    match outcome.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(Ok(())) => Outcome::GivenBack,
        Ok(Err(error)) => Outcome::Failed(error),
        Err(RecvTimeoutError::Timeout) => Outcome::StillUnderWay,
        Err(RecvTimeoutError::Disconnected) => Outcome::Broken,
    }
}

fn said(left: &Leftover, patience: Duration, outcome: &Outcome) -> String {
    let Leftover { address, pid, .. } = left;
    let device = format!("PCI device {address}, which a killed VM (process {pid}) had left");
    match outcome {
        Outcome::GivenBack => format!("gave {address} back, which a killed VM (process {pid}) had left"),
        Outcome::Failed(error) => error.to_string(),
        Outcome::NotBegun(cause) => format!(
            "{device}, was not given back: no thread could be started for it: {cause}. Raise the limits of processes and of \
             memory, and give it back with: skep host give-back {address}"
        ),
        Outcome::Broken => format!(
            "{device}, was perhaps not given back: an error of skep's own ended the attempt. Give it back with: skep host \
             give-back {address}"
        ),
        Outcome::StillUnderWay => format!(
            "{device}, was not given back within {} s. This VM does not wait for it. To see the result, run: skep host \
             give-back {address}",
            patience.as_secs()
        ),
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::Arc;
    use std::thread;

    /// A host on which a process that is gone left these devices, which are gone, too.
    fn host(records: &[&str]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run/skep")).unwrap();
        for address in records {
            let record = format!(
                "{{\"address\":\"{address}\",\"driver\":\"nvme\",\"driver_override\":null,\"pid\":7,\"started\":1}}"
            );
            fs::write(record_of(root.path(), address), record).unwrap();
        }
        let host = Host::at(root.path());
        (root, host)
    }

    fn record_of(root: &Path, address: &str) -> std::path::PathBuf {
        root.join(format!("run/skep/vfio-{address}.json"))
    }

    fn told(host: &Host) -> (Vec<String>, Duration) {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = lines.clone();
        let report: Reporter = Box::new(move |notice| sink.lock().push(notice.to_string()));
        let begin = Instant::now();
        give_back_within(Duration::from_secs(1), host, &report);
        let lines = lines.lock().clone();
        (lines, begin.elapsed())
    }

    #[test]
    fn all_that_is_left_is_given_back_and_said() {
        let (root, host) = host(&["0000:01:00.0", "0000:02:00.0"]);
        let (lines, _) = told(&host);
        assert_eq!(
            lines,
            ["0000:01:00.0", "0000:02:00.0"]
                .map(|address| format!("gave {address} back, which a killed VM (process 7) had left"))
        );
        assert!(!record_of(root.path(), "0000:01:00.0").exists());
        assert_eq!(told(&host).0, [""; 0]);
    }

    #[test]
    fn a_start_waits_neither_for_one_that_takes_long_nor_keeps_the_others_waiting() {
        let (root, host) = host(&["0000:01:00.0", "0000:02:00.0"]);
        let lock = root.path().join("run/skep/vfio-0000:01:00.0.lock");
        fs::write(&lock, "").unwrap();
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o600)).unwrap();
        let at_work = fs::File::open(&lock).unwrap();
        at_work.lock().unwrap();
        let (lines, took) = told(&host);
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert!(
            lines[0].contains("was not given back within 1 s") && lines[0].contains("skep host give-back"),
            "{lines:?}"
        );
        assert!(lines[1].contains("gave 0000:02:00.0 back"), "{lines:?}");
        // And it goes on by itself.
        drop(at_work);
        let until = Instant::now() + Duration::from_secs(20);
        while record_of(root.path(), "0000:01:00.0").exists() {
            assert!(Instant::now() < until);
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_device_for_which_there_is_no_thread_was_not_given_back_and_nobody_waits_for_it() {
        let (root, host) = host(&["0000:01:00.0"]);
        let left = host.try_leftovers().into_iter().find_map(Result::ok).unwrap();
        // No address space has room for such a stack.
        let cause = begin(Builder::new().stack_size(1 << 48), &host, left.clone()).err().unwrap();
        let text = said(&left, GIVE_BACK_LIMIT, &Outcome::NotBegun(cause));
        assert!(text.contains("no thread could be started") && !text.contains("within"), "{text}");
        assert!(text.ends_with("skep host give-back 0000:01:00.0"), "{text}");
        assert!(record_of(root.path(), "0000:01:00.0").exists());
    }

    #[test]
    fn records_that_anybody_may_have_written_are_said_and_not_obeyed() {
        let (root, host) = host(&["0000:01:00.0"]);
        let record = record_of(root.path(), "0000:01:00.0");
        fs::set_permissions(&record, fs::Permissions::from_mode(0o666)).unwrap();
        let (lines, _) = told(&host);
        assert!(lines.len() == 1 && lines[0].contains("mode 0666"), "{lines:?}");
        assert!(record.exists());
    }
}
