//! Faults that parts of skep itself met: a host driver, VFIO's alarms, a change of a domain.

use std::io;
use std::sync::Arc;

use dma::{Domain, Remark};
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::fault::{Fault, Sort, Source};

/// Sorts of faults that wait for the watch at most; of others only their source and their number are known.
const SORTS: usize = 64;

/// A way to report faults to a [`Watch`](crate::Watch), from any thread and at any rate: those of one kind are only
/// counted until the watch has taken them.
#[derive(Clone, Debug)]
pub struct FaultReporter(Arc<Inbox>);

#[derive(Debug)]
pub(super) struct Inbox {
    waiting: Mutex<Vec<Fault>>,
    wake: EventFd,
}

impl Inbox {
    pub fn new() -> io::Result<Inbox> {
        Ok(Inbox { waiting: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Readable when there is something to take.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// What was reported since the last call.
    pub fn take(&self) -> Vec<Fault> {
        // Nothing to read means that nobody wrote.
        drop(self.wake.read());
        std::mem::take(&mut *self.waiting.lock())
    }
}

impl FaultReporter {
    pub(super) fn new(inbox: Arc<Inbox>) -> FaultReporter {
        FaultReporter(inbox)
    }

    /// Reports a fault.
    pub fn tell(&self, fault: Fault) {
        let mut waiting = self.0.waiting.lock();
        let known = |fault: &Fault| waiting.iter().position(|other| Sort::of(other) == Sort::of(fault));
        let fault = match known(&fault) {
            None if waiting.len() >= SORTS => fault.without_details(),
            _ => fault,
        };
        match known(&fault) {
            Some(at) => waiting[at].count = waiting[at].count.plus(fault.count),
            None => waiting.push(fault),
        }
        drop(waiting);
        // A counter that is full wakes as well.
        drop(self.0.wake.write(1));
    }

    /// Reports what fails in a domain without a caller that gets the error, from now on and before.
    pub fn listen_to(&self, domain: &Domain) {
        let reporter = self.clone();
        domain.tell(move |Remark { time, reason }| {
            reporter.tell(Fault { time, ..Fault::new(Source::Ledger, reason) });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dma::Kind;
    use dma::fake::FakeIommu;

    fn fault(device: &str, reason: &str, source: Source) -> Fault {
        Fault { device: device.parse().ok(), ..Fault::new(source, reason) }
    }

    fn told(faults: impl IntoIterator<Item = Fault>) -> Vec<(Option<String>, String, u64)> {
        let inbox = Arc::new(Inbox::new().unwrap());
        let reporter = FaultReporter::new(inbox.clone());
        faults.into_iter().for_each(|fault| reporter.tell(fault));
        let taken = inbox.take().into_iter();
        taken.map(|it| (it.device.map(|device| device.to_string()), it.reason, it.count.known)).collect()
    }

    #[test]
    fn changes_that_failed_for_other_reasons_are_each_told_in_their_own_words() {
        let ledger = |reason| fault("", reason, Source::Ledger);
        let told = told([ledger("cannot map A"), ledger("cannot unmap B"), ledger("cannot map A")]);
        assert_eq!(told, [(None, "cannot map A".into(), 2), (None, "cannot unmap B".into(), 1)]);
    }

    #[test]
    fn what_fails_in_a_domain_without_a_caller_is_a_fault_of_its_ledger() {
        let inbox = Arc::new(Inbox::new().unwrap());
        let domain = FakeIommu::failing(&[1]).domain("host", Kind::Host);
        drop(domain.map_own("queues", 1).unwrap());
        FaultReporter::new(inbox.clone()).listen_to(&domain);
        let taken = inbox.take();
        assert_eq!((taken.len(), taken[0].source, taken[0].count.known), (1, Source::Ledger, 1));
        assert!(taken[0].reason.contains("DMA domain host"), "{taken:?}");
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
