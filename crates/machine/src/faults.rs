//! DMA that fails: listening for it, and what a fault does to the VM.

use std::sync::Arc;
use std::time::SystemTime;

use assign::{Assigned, DomainPlan};
use config::OnFault;
use dma::fault::{self, Classify, Fault, Inputs, Requester, Source, Tell, Watch, Watched, Witness};
use host::PciAddress;
use memory::{Gpa, MemoryMap};

use crate::error::{StartError, host_address, system};
use crate::events::{Event, Events};

/// What a fault of each device does.
#[derive(Debug)]
pub struct Policies {
    usual: OnFault,
    /// Those with an answer of their own.
    of: Vec<(Requester, OnFault)>,
    /// The bursts that were answered; a burst is told several times, with a growing count.
    answered: u64,
}

impl Policies {
    /// As the description says.
    pub fn new(config: &config::Vm) -> Result<Policies, StartError> {
        let mut of = Vec::new();
        for device in &config.assigned {
            if let Some(on_fault) = device.on_fault {
                of.push((requester(host_address(device.address)?), on_fault));
            }
        }
        Ok(Policies { usual: config.dma.on_fault, of, answered: 0 })
    }

    /// What a fault asks for now: nothing more than to be told if it is no device's of this VM, or of a burst that
    /// was answered before.
    pub fn answer(&mut self, event: &fault::Event) -> OnFault {
        let Some(device) = event.fault.device.filter(|_| event.domain.is_some()) else {
            return OnFault::Report;
        };
        if event.burst != 0 && event.burst <= self.answered {
            return OnFault::Report;
        }
        self.answered = self.answered.max(event.burst);
        let own = self.of.iter().find(|(other, _)| other.may_be(device));
        own.map_or(self.usual, |(_, on_fault)| *on_fault)
    }
}

/// Begins to listen for faults of the devices in these domains.
pub fn watch(
    plans: &[DomainPlan],
    map: &Arc<MemoryMap>,
    inputs: Inputs,
    events: &Events,
) -> Result<Watch, StartError> {
    let watched = plans.iter().flat_map(|plan| {
        let of = |address: &PciAddress| Watched { device: requester(*address), domain: plan.name.clone() };
        plan.devices.iter().map(of)
    });
    // A domain's IOVAs are guest addresses.
    let places = map.clone();
    let classify: Classify = Box::new(move |_, iova| places.contents().place(Gpa(iova.0)));
    let events = events.clone();
    let tell: Tell = Box::new(move |event| events.send(Event::Fault(event)));
    Watch::start(inputs, watched.collect(), classify, tell).map_err(system("listen for DMA faults"))
}

/// Says what VFIO has said of a device. What it says by itself is a fault: no rate limit may keep it back.
pub fn tell_alarm(event: &assign::Event, witness: &Witness, events: &Events) {
    match event {
        assign::Event::DeviceError { device } => {
            let reason = "the device reports an error that it cannot recover from".to_owned();
            witness.tell(Fault { device: device.parse().ok(), ..nameless(Source::Vfio, reason) });
        }
        assign::Event::Requested { device } => {
            let reason =
                "this host wants the device back. Stop the VM, or remove the device from it".to_owned();
            witness.tell(Fault { device: device.parse().ok(), ..nameless(Source::Vfio, reason) });
        }
        warning @ assign::Event::Warning { .. } => events.trouble(warning.to_string()),
    }
}

/// A fault of which nothing more is known.
pub fn nameless(source: Source, reason: String) -> Fault {
    let time = SystemTime::now();
    Fault { time, device: None, direction: None, iova: None, pasid: None, reason, source }
}

/// The device as the IOMMU names it.
pub fn requester(address: PciAddress) -> Requester {
    address.to_string().parse().expect("the address of a function on a host")
}

/// The assigned device that a fault is of.
pub fn device_of<'a>(devices: &'a [Arc<Assigned>], event: &fault::Event) -> Option<&'a Arc<Assigned>> {
    let device = event.fault.device?;
    devices.iter().find(|assigned| assigned.name().parse().is_ok_and(|other| device.may_be(other)))
}
