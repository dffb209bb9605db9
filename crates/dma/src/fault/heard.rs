//! Faults that parts of skep itself met: a host driver, VFIO's alarms, a change of a domain.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::event::{Fault, Sort};

/// Sorts of faults that wait for the watch at most; of others only their source and their number are known.
const SORTS: usize = 64;

/// A way to report faults to a [`Watch`](super::Watch), from any thread and at any rate: those of one kind are only
/// counted until the watch has taken them.
#[derive(Clone, Debug)]
pub struct Witness(Arc<Heard>);

#[derive(Debug)]
pub(super) struct Heard {
    waiting: Mutex<Vec<(Fault, u64)>>,
    wake: EventFd,
}

impl Heard {
    pub fn new() -> io::Result<Heard> {
        Ok(Heard { waiting: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Readable when there is something to take.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// What was reported since the last call, with the number of times.
    pub fn take(&self) -> Vec<(Fault, u64)> {
        // Nothing to read means that nobody wrote.
        drop(self.wake.read());
        std::mem::take(&mut *self.waiting())
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(Fault, u64)>> {
        self.waiting.lock().expect("no code panics with this lock held")
    }
}

impl Witness {
    pub(super) fn new(heard: Arc<Heard>) -> Witness {
        Witness(heard)
    }

    /// Reports one fault.
    pub fn tell(&self, fault: Fault) {
        let mut waiting = self.0.waiting();
        let known = |fault: &Fault| waiting.iter().position(|other| Sort::of(&other.0) == Sort::of(fault));
        let fault = match known(&fault) {
            None if waiting.len() >= SORTS => fault.without_details(),
            _ => fault,
        };
        match known(&fault) {
            Some(at) => waiting[at].1 = waiting[at].1.saturating_add(1),
            None => waiting.push((fault, 1)),
        }
        drop(waiting);
        // A counter that is full wakes as well.
        drop(self.0.wake.write(1));
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Source;
    use super::*;
    use std::time::SystemTime;

    fn fault(device: &str, reason: &str, source: Source) -> Fault {
        Fault {
            time: SystemTime::UNIX_EPOCH,
            device: device.parse().ok(),
            direction: None,
            iova: None,
            pasid: None,
            reason: reason.into(),
            source,
        }
    }

    fn told(faults: impl IntoIterator<Item = Fault>) -> Vec<(Option<String>, String, u64)> {
        let heard = Arc::new(Heard::new().unwrap());
        let witness = Witness::new(heard.clone());
        faults.into_iter().for_each(|fault| witness.tell(fault));
        let taken = heard.take().into_iter();
        taken.map(|(fault, count)| (fault.device.map(|it| it.to_string()), fault.reason, count)).collect()
    }

    #[test]
    fn changes_that_failed_for_other_reasons_are_each_told_in_their_own_words() {
        let ledger = |reason| fault("", reason, Source::Ledger);
        let told = told([ledger("cannot map A"), ledger("cannot unmap B"), ledger("cannot map A")]);
        assert_eq!(told, [(None, "cannot map A".into(), 2), (None, "cannot unmap B".into(), 1)]);
    }

    #[test]
    fn a_device_that_tells_the_same_in_other_words_is_one_sort() {
        let driver = |reason| fault("0000:01:00.0", reason, Source::HostDriver);
        assert_eq!(told([driver("command 1 timed out"), driver("command 2 timed out")])[0].2, 2);
    }

    #[test]
    fn what_is_one_sort_too_many_is_counted_and_put_on_nobodys_account() {
        let many = (0..3 * SORTS).map(|at| {
            fault(&format!("0000:{:02x}:00.0", at % 256), &format!("reason {at}"), Source::HostDriver)
        });
        let told = told(many.chain([fault("", "cannot map A", Source::Ledger)]));
        assert_eq!(told.len(), SORTS + 2);
        assert!(told[..SORTS].iter().all(|(device, _, count)| device.is_some() && *count == 1));
        assert_eq!((&told[SORTS].0, told[SORTS].2), (&None, 2 * SORTS as u64));
        assert_eq!(told[SORTS + 1].2, 1);
    }
}
