//! DMA that fails: the watch for it, and what a fault does to the VM.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use assign::{Assigned, DomainPlan};
use config::{OnFault, OnRequest};
use dma::Domain;
use faults::{self, Classify, Fault, FaultReporter, Inputs, Place, Requester, Source, Tell, Watch, Watched};
use host::PciAddress;
use memory::{ChangeError, MemoryMap};

use crate::error::{StartError, host_address, system};
use crate::events::{Event, Events};

/// A burst that still grows so long after its device was reset, or the VM was resumed, is answered again. Reports before
/// that may be about earlier faults.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// What a fault of each device does, and what a request of the host for the device does.
#[derive(Debug)]
pub struct Policies {
    usual: OnFault,
    /// Those with an answer of their own.
    of: Vec<(Requester, OnFault)>,
    /// What is done when the host wants a device back.
    requests: Vec<(PciAddress, OnRequest)>,
    /// The bursts that were answered; a burst is reported several times, with a growing count.
    answered: u64,
    /// When a burst of each device was answered last, or the VM was resumed after that. One entry for each device of the VM.
    since: Vec<(Requester, Instant)>,
}

impl Policies {
    /// What is done when the host wants this device back.
    pub fn answer_request(&self, device: &str) -> OnRequest {
        let of = self.requests.iter().find(|(address, _)| address.to_string() == device);
        of.map_or(OnRequest::default(), |(_, on_request)| *on_request)
    }

    /// As the description says.
    pub fn new(config: &config::Vm) -> Result<Policies, StartError> {
        let (mut of, mut requests) = (Vec::new(), Vec::new());
        for device in &config.assigned {
            requests.push((host_address(device.address)?, device.on_request));
            if let Some(on_fault) = device.on_fault {
                of.push((requester(host_address(device.address)?), on_fault));
            }
        }
        Ok(Policies { usual: config.dma.on_fault, of, requests, answered: 0, since: Vec::new() })
    }

    /// What a fault that is reported at `now` asks for: only the report if it is of no device of this VM, or of
    /// a burst that was answered just before.
    pub fn answer(&mut self, fault: &Fault, now: Instant) -> OnFault {
        let Some(device) = fault.device.filter(|_| fault.domain.is_some()) else {
            return OnFault::Report;
        };
        let known = fault.burst != 0 && fault.burst <= self.answered;
        if known && !self.is_over(device, now) {
            return OnFault::Report;
        }
        self.answered = self.answered.max(fault.burst);
        self.since.retain(|(other, _)| *other != device);
        self.since.push((device, now));
        let own = self.of.iter().find(|(other, _)| other.may_be(device));
        own.map_or(self.usual, |(_, on_fault)| *on_fault)
    }

    /// The answer to a fault has taken effect now.
    pub fn took_effect(&mut self, fault: &Fault, now: Instant) {
        let of = self.since.iter_mut().filter(|(device, _)| Some(*device) == fault.device);
        of.for_each(|(_, since)| *since = now);
    }

    /// The VM runs again: what grew during the pause is no reason to pause it again at once.
    pub fn runs_on(&mut self, now: Instant) {
        self.since.iter_mut().for_each(|(_, since)| *since = now);
    }

    /// Whether the answer to the device's faults had time to take effect.
    fn is_over(&self, device: Requester, now: Instant) -> bool {
        let since = self.since.iter().find(|(other, _)| *other == device);
        since.is_none_or(|(_, since)| now.duration_since(*since) >= AFTERWARDS)
    }
}

/// Starts the watch for faults of the devices in these domains.
pub fn watch(
    plans: &[DomainPlan],
    domains: &[Arc<Domain>],
    map: &Arc<MemoryMap>,
    inputs: Inputs,
    events: &Events,
) -> Result<Watch, StartError> {
    let watched = plans.iter().flat_map(|plan| {
        let of = |address: &PciAddress| Watched { device: requester(*address), domain: plan.name.clone() };
        plan.devices.iter().map(of)
    });
    let places = map.clone();
    // The watch keeps no domain.
    let domains: Vec<Weak<Domain>> = domains.iter().map(Arc::downgrade).collect();
    let classify: Classify = Box::new(move |name, iova| {
        let domain = domains.iter().filter_map(Weak::upgrade).find(|domain| domain.name() == name);
        Place::of(iova, domain.as_deref(), &places.contents())
    });
    let events = events.clone();
    let tell: Tell = Box::new(move |fault| events.send(Event::Fault(fault)));
    Watch::start(inputs, watched.collect(), classify, tell).map_err(system("listen for DMA faults"))
}

/// Passes on VFIO's signals about a device. An error of the device is a fault: no rate limit may suppress it. A request of
/// the host for the device is no fault, because nothing failed.
pub fn tell_alarm(event: &assign::Event, reporter: &FaultReporter, events: &Events) {
    match event {
        assign::Event::DeviceError { device } => {
            let reason = "the device reports an error that it cannot recover from";
            reporter.tell(Fault { device: device.parse().ok(), ..Fault::new(Source::Vfio, reason) });
        }
        assign::Event::Requested { device } => events.send(Event::Requested(device.clone())),
        warning @ assign::Event::Warning { .. } => events.trouble(warning.to_string()),
    }
}

/// A change of the memory map that failed, and then how any mirror differs from the map: what could not be
/// undone must be reported at once.
pub fn of_failed_change(map: &MemoryMap, error: &ChangeError) -> Vec<Fault> {
    std::iter::once(Fault::new(Source::Ledger, error.to_string())).chain(differences(map)).collect()
}

/// How any mirror differs from the memory map.
fn differences(map: &MemoryMap) -> impl Iterator<Item = Fault> {
    let differences = map.audit().into_iter().filter_map(|(_, equal)| equal.err());
    differences.map(|difference| Fault::new(Source::Ledger, difference.to_string()))
}

/// The device as the IOMMU names it.
pub fn requester(address: PciAddress) -> Requester {
    address.to_string().parse().expect("the address of a function on a host")
}

/// What else a reset of the device `name` did, which only the user can judge; `None` when it did nothing else.
pub fn also_reset(name: &str, others: &[PciAddress]) -> Option<String> {
    if others.is_empty() {
        return None;
    }
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    Some(format!(
        "{name} was reset after a fault, by a reset of its bus, which also reset {}: the guest's drivers of those do not \
         know. Have the guest load them anew, or give {name} another on-fault",
        others.join(", ")
    ))
}

/// The assigned device that a fault is of.
pub fn device_of<'a>(devices: &'a [Arc<Assigned>], fault: &Fault) -> Option<&'a Arc<Assigned>> {
    let device = fault.device?;
    devices.iter().find(|assigned| assigned.name().parse().is_ok_and(|other| device.may_be(other)))
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use memory::{Change, Contents, DeviceMemory, Difference, Gpa, GpaRange, Mirror, MirrorError, Ram};
    use std::ptr::NonNull;

    /// Takes everything, takes nothing back, or refuses.
    struct Obstinate {
        held: Mutex<usize>,
        refuses: bool,
    }

    impl Obstinate {
        fn new(refuses: bool) -> Arc<Obstinate> {
            Arc::new(Obstinate { held: Mutex::new(0), refuses })
        }
    }

    impl Mirror for Obstinate {
        fn name(&self) -> String {
            "mirror".to_owned()
        }
        fn prepare(&self, change: &Change) -> Result<(), MirrorError> {
            match change {
                _ if self.refuses => Err("it refuses".into()),
                Change::AddDevice(_) => {
                    *self.held.lock() += 1;
                    Ok(())
                }
                _ => Err("it gives nothing back".into()),
            }
        }
        fn audit(&self, contents: &Contents) -> Result<(), Difference> {
            let held = *self.held.lock();
            let differences = vec![format!("it holds {held} of {}", contents.devices.len())];
            let equal = held == contents.devices.len();
            if equal { Ok(()) } else { Err(Difference { mirror: self.name(), differences }) }
        }
    }

    #[test]
    fn a_mirror_that_is_stuck_after_a_failed_change_is_a_fault_of_its_own() {
        let map = MemoryMap::new(Arc::new(Ram::new(&[]).unwrap()));
        map.attach(Obstinate::new(false)).unwrap();
        map.attach(Obstinate::new(true)).unwrap();
        let range = GpaRange::new(Gpa(0x1000), 0x1000).unwrap();
        // SAFETY: no mirror of this test touches it.
        let memory = unsafe { DeviceMemory::new("BAR", range, NonNull::dangling()) };
        let error = map.apply(&Change::AddDevice(memory)).unwrap_err();
        let faults = of_failed_change(&map, &error);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].reason.contains("it refuses"), "{faults:?}");
        assert!(faults[1].reason.contains("it holds 1 of 0"), "{faults:?}");
    }

    fn policies(usual: OnFault) -> Policies {
        Policies { usual, of: Vec::new(), requests: Vec::new(), answered: 0, since: Vec::new() }
    }

    fn told(device: &str, burst: u64) -> Fault {
        let domain = Some("guest".into());
        Fault { burst, device: device.parse().ok(), domain, ..Fault::new(Source::Log, "") }
    }

    #[test]
    fn a_burst_that_goes_on_after_a_resume_pauses_again_and_not_at_once() {
        let (mut policies, start) = (policies(OnFault::Pause), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let burst = told("02:00.0", 1);
        assert_eq!(policies.answer(&burst, at(0)), OnFault::Pause);
        assert_eq!(policies.answer(&burst, at(900)), OnFault::Report);
        policies.runs_on(at(5000));
        assert_eq!(policies.answer(&burst, at(5500)), OnFault::Report);
        assert_eq!(policies.answer(&burst, at(6000)), OnFault::Pause);
        assert_eq!(policies.answer(&burst, at(6100)), OnFault::Report);
    }

    #[test]
    fn each_device_that_goes_on_after_its_reset_is_reset_again() {
        let (mut policies, start) = (policies(OnFault::Reset), Instant::now());
        let mut resets = [0, 0];
        for tick in 0..30 {
            let now = start + Duration::from_millis(tick * 100);
            for (device, count) in ["02:00.0", "03:00.0"].iter().zip(&mut resets) {
                let burst = told(device, if *device == "02:00.0" { 1 } else { 2 });
                *count += u32::from(policies.answer(&burst, now) == OnFault::Reset);
            }
        }
        assert_eq!((resets, policies.since.len()), ([3, 3], 2));
    }

    #[test]
    fn a_burst_is_answered_again_only_a_while_after_a_reset_that_took_long() {
        let (mut policies, start) = (policies(OnFault::Reset), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let burst = told("02:00.0", 1);
        assert_eq!(policies.answer(&burst, at(0)), OnFault::Reset);
        policies.took_effect(&burst, at(1500));
        assert_eq!(policies.answer(&burst, at(1600)), OnFault::Report);
        assert_eq!(policies.answer(&burst, at(2500)), OnFault::Reset);
    }

    #[test]
    fn a_reset_of_a_bus_names_the_others_that_it_reset() {
        let others = ["02:00.1", "02:00.2"].map(|text| text.parse().unwrap());
        let text = also_reset("0000:02:00.0", &others).unwrap();
        assert!(text.contains("also reset 0000:02:00.1, 0000:02:00.2:"), "{text}");
        assert_eq!(also_reset("0000:02:00.0", &[]), None);
    }

    #[test]
    fn a_new_burst_is_answered_at_once_and_one_of_no_device_of_the_vm_never() {
        let (mut policies, now) = (policies(OnFault::Stop), Instant::now());
        assert_eq!(policies.answer(&told("02:00.0", 1), now), OnFault::Stop);
        assert_eq!(policies.answer(&told("02:00.0", 2), now), OnFault::Stop);
        let strange = Fault { domain: None, ..told("02:00.0", 3) };
        assert_eq!(policies.answer(&strange, now), OnFault::Report);
    }
}
