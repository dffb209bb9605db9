//! The count: what all observers together prove.
//!
//! The log, the probe and the tracepoint each see a fault or miss it; none invents one. So the largest count of one
//! observer is a lower bound for a device's faults. And a host had at least as many faults as its IOMMU had
//! fault interrupts; those that no observer can explain are known to have happened, and no more.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::fault::Source;
use crate::interrupts::Calls;
use crate::requester::Requester;

/// An interrupt may be counted a moment before its report can be read. If the report does not come in this
/// time, it will not come.
pub(super) const SETTLED: Duration = Duration::from_millis(40);

/// A report withheld by VT-d's handler stands for three calls of the log at most: the interrupt, the fault, and
/// the look whether there is another.
const CALLS_OF_A_FAULT: u64 = 3;

/// What was seen, and what was reported of it.
#[derive(Debug, Default)]
pub struct Account {
    devices: HashMap<Requester, HashMap<Source, u64>>,
    intel: Intel,
    amd: Amd,
    settling: Option<(u64, Instant)>,
    told: u64,
}

#[derive(Debug, Default)]
struct Intel {
    first: Option<u64>,
    interrupts: u64,
    /// Interrupts that the probe saw, and those of which a report is in the log.
    probed: u64,
    reported: u64,
    /// The log announced an interrupt, and no report followed yet.
    announced: bool,
    withheld: u64,
}

#[derive(Debug, Default)]
struct Amd {
    first: Option<u64>,
    interrupts: u64,
    reported: u64,
    withheld: u64,
    traced: u64,
}

impl Account {
    /// An observer saw a fault of this device of the VM. Returns whether no other observer reported it.
    pub fn is_new(&mut self, device: Requester, observer: Source) -> bool {
        let seen = self.devices.entry(device).or_default();
        let most = seen.values().copied().max().unwrap_or(0);
        let by = seen.entry(observer).or_default();
        *by += 1;
        *by > most
    }

    /// Forgets the devices that are none of the VM's any more.
    pub fn keep(&mut self, is_watched: impl Fn(Requester) -> bool) {
        self.devices.retain(|device, _| is_watched(*device));
    }

    /// The log announced an interrupt of VT-d.
    pub fn announced(&mut self) {
        self.intel.announced = true;
    }

    /// The log reported a fault of any device behind VT-d.
    pub fn intel_reported(&mut self) {
        self.intel.reported += u64::from(std::mem::take(&mut self.intel.announced));
    }

    /// The log says that so many calls were withheld.
    pub fn intel_withheld(&mut self, calls: u64) {
        self.intel.withheld = self.intel.withheld.saturating_add(calls);
    }

    /// The probe saw an interrupt of VT-d, with or without records of faults.
    pub fn probed(&mut self) {
        self.intel.probed += 1;
    }

    /// The log reported a fault of any device behind AMD's IOMMU.
    pub fn amd_reported(&mut self) {
        self.amd.reported += 1;
    }

    /// The log says that so many reports were withheld.
    pub fn amd_withheld(&mut self, reports: u64) {
        self.amd.withheld = self.amd.withheld.saturating_add(reports);
    }

    /// The tracepoint fired, for any device.
    pub fn traced(&mut self) {
        self.amd.traced += 1;
    }

    /// The interrupts counted since boot. Those of the first call belong to nobody.
    pub fn interrupts(&mut self, calls: Calls) {
        self.intel.interrupts = calls.intel.saturating_sub(*self.intel.first.get_or_insert(calls.intel));
        self.amd.interrupts = calls.amd.saturating_sub(*self.amd.first.get_or_insert(calls.amd));
    }

    /// Faults that happened without a name since last asked. To be asked after every round of the sources; those
    /// of the last moment wait for the next.
    pub fn unattributed(&mut self, now: Instant) -> u64 {
        let nameless = self.intel.nameless().saturating_add(self.amd.nameless());
        // A name came late: reports that did not count for it must not hide the next fault.
        self.told = self.told.min(nameless);
        match self.settling {
            Some((waiting, since)) if now.duration_since(since) >= SETTLED => {
                self.settling = Some((nameless, now));
                let sure = waiting.min(nameless);
                let new = sure.saturating_sub(self.told);
                self.told += new;
                new
            }
            Some(_) => 0,
            None => {
                self.settling = Some((nameless, now));
                0
            }
        }
    }

    /// Whether something waits for [`Account::unattributed`].
    pub fn is_settling(&self) -> bool {
        self.settling.is_some_and(|(waiting, _)| waiting > self.told)
            || self.intel.nameless().saturating_add(self.amd.nameless()) > self.told
    }
}

impl Intel {
    fn nameless(&self) -> u64 {
        let counted = self.interrupts.saturating_sub(self.reported.max(self.probed));
        if self.first.is_some() { counted } else { self.withheld / CALLS_OF_A_FAULT }
    }
}

impl Amd {
    fn nameless(&self) -> u64 {
        let happened = self.reported.saturating_add(self.withheld).max(self.interrupts);
        happened.saturating_sub(self.reported.max(self.traced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn intel(intel: u64) -> Calls {
        Calls { intel, amd: 0 }
    }

    /// Two rounds, far enough apart.
    fn settled(account: &mut Account, now: &mut Instant) -> u64 {
        (0..2)
            .map(|_| {
                *now += SETTLED;
                account.unattributed(*now)
            })
            .sum()
    }

    #[test]
    fn a_fault_seen_by_two_witnesses_is_one_fault() {
        let mut account = Account::default();
        let device = "0000:00:09.0".parse().unwrap();
        let seen = [Source::Log, Source::Probe, Source::Probe, Source::Log, Source::Log]
            .map(|observer| account.is_new(device, observer));
        assert_eq!(seen, [true, false, true, false, true]);
    }

    #[test]
    fn interrupts_whose_reports_were_withheld_happened_without_a_name() {
        let mut account = Account::default();
        let mut now = Instant::now();
        account.interrupts(intel(100));
        assert_eq!(settled(&mut account, &mut now), 0);
        for _ in 0..3 {
            account.announced();
            account.intel_reported();
        }
        // The fourth is announced and then withheld, the other six are withheld altogether.
        account.announced();
        account.interrupts(intel(110));
        assert_eq!(settled(&mut account, &mut now), 7);
        account.intel_withheld(22);
        assert_eq!(settled(&mut account, &mut now), 0);
    }

    #[test]
    fn an_interrupt_that_is_counted_before_its_report_is_readable_is_not_nameless() {
        let mut account = Account::default();
        let mut now = Instant::now();
        account.interrupts(intel(0));
        settled(&mut account, &mut now);
        account.interrupts(intel(1));
        now += SETTLED;
        assert_eq!(account.unattributed(now), 0);
        account.announced();
        account.intel_reported();
        assert_eq!(settled(&mut account, &mut now), 0);
        account.interrupts(intel(2));
        assert_eq!(settled(&mut account, &mut now), 1);
    }

    #[test]
    fn without_interrupt_counts_a_third_of_the_withheld_calls_is_what_is_sure() {
        let mut account = Account::default();
        let mut now = Instant::now();
        account.intel_withheld(23);
        account.unattributed(now);
        assert_eq!(settled(&mut account, &mut now), 7);
    }

    #[test]
    fn amds_withheld_reports_are_faults_unless_the_tracepoint_saw_them() {
        let mut account = Account::default();
        let mut now = Instant::now();
        account.interrupts(Calls::default());
        account.unattributed(now);
        for _ in 0..10 {
            account.amd_reported();
        }
        account.interrupts(Calls { intel: 0, amd: 300 });
        assert_eq!(settled(&mut account, &mut now), 290);
        account.amd_withheld(990);
        assert_eq!(settled(&mut account, &mut now), 700);
        for _ in 0..1000 {
            account.traced();
        }
        assert_eq!(settled(&mut account, &mut now), 0);
    }

    proptest! {
        /// A model of VT-d's handler: ten calls of the log in five seconds, three for each single fault.
        #[test]
        fn counts_are_never_above_the_truth_and_every_interrupt_is_counted(
            faults in prop::collection::vec((0u64..3000, any::<bool>(), any::<bool>()), 0..60)
        ) {
            let ours: Requester = "0000:00:09.0".parse().unwrap();
            let (mut account, start) = (Account::default(), Instant::now());
            account.interrupts(intel(5));
            account.unattributed(start);
            let (mut time, mut window, mut calls) = (0, 0, 0);
            let (mut truth, mut known, mut nameless, mut others) = (0, 0, 0, 0);
            for (pause, mine, probe) in faults {
                time += pause;
                if time - window >= 5000 {
                    (window, calls) = (time, 0);
                }
                let mut call = || { calls += 1; calls <= 10 };
                let (announce, report, _) = (call(), call(), call());
                truth += 1;
                account.interrupts(intel(5 + truth));
                if announce { account.announced(); }
                if report { account.intel_reported(); }
                if probe { account.probed(); }
                let seen = [(report, Source::Log), (probe, Source::Probe)];
                for (_, observer) in seen.into_iter().filter(|(seen, _)| *seen) {
                    if mine { known += u64::from(account.is_new(ours, observer)); }
                }
                others += u64::from(!mine && (report || probe));
                nameless += account.unattributed(start + Duration::from_millis(time));
            }
            let mut now = start + Duration::from_millis(time);
            nameless += settled(&mut account, &mut now);
            prop_assert!(known <= truth && nameless <= truth);
            // Unless the two observers saw different faults, each of which hides behind the other.
            let hidden = account.intel.probed.min(account.intel.reported);
            prop_assert!(known + nameless + others + hidden >= truth, "{known} {nameless} {others} of {truth}");
        }
    }
}
