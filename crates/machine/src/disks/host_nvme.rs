//! Disks on NVMe controllers that skep drives itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::{DiskSource, Writes};
use disk::Disk;
use disk::nvme::{Direction, NvmeController, NvmeError, NvmeOptions, Refusal, ReportTrouble, TroubleKind};
use faults::{Fault, FaultReporter, Source};
use host::{Host, PciDevice};

use crate::assigned::Claimed;
use crate::disks::{self, CheckedDisk, OpenDisk, queues};
use crate::error::{StartError, host_address};
use crate::events::Events;

/// Class and subclass of NVMe controllers (NVMe over PCIe Transport 1.1, 3.2).
const NVME_CLASS: u32 = 0x0108;

/// How long queues of a controller that was shut down may take to notice that.
const QUEUE_END_LIMIT: Duration = Duration::from_secs(2);
/// How often to look whether they have.
const LOOK: Duration = Duration::from_millis(5);

/// What is known to prevent skep from driving the controllers of disks, found without a change: functions that are
/// something else, namespaces that the kernel does not know of a controller that it drives now.
pub fn check(host: &Host, disks: &[config::Disk]) -> Vec<StartError> {
    let mut found = Vec::new();
    for disk in disks {
        let DiskSource::Nvme { address, namespace, .. } = &disk.source else { continue };
        // Whether there is such a function at all is checked with those that are assigned.
        let Ok(device) = host_address(*address).map(|address| PciDevice::open(host, address)) else {
            continue;
        };
        let Ok(device) = device else { continue };
        if device.class >> 8 != NVME_CLASS {
            found.push(StartError::NotNvme(device.to_string()));
            continue;
        }
        let wanted = namespace.get().get();
        if host.nvme_namespaces(&device).is_some_and(|there| !there.contains(&wanted)) {
            let (device, why) = (address.to_string(), Refusal::Absent);
            found.push(NvmeError::Namespace { device, namespace: wanted, why }.into());
        }
    }
    found
}

/// What drivers need of the VM, which has devices to drive.
pub struct Drivers<'a> {
    /// The devices.
    pub claimed: &'a Claimed,
    /// Gets reports of DMA that failed.
    pub reporter: &'a FaultReporter,
    /// Gets other troubles.
    pub events: &'a Events,
}

/// Disks that are open, and what skep drives for them.
pub struct Driven {
    /// All disks.
    pub disks: Vec<OpenDisk>,
    /// The controllers, to be shut down when no disk uses them any more.
    pub controllers: Vec<Arc<NvmeController>>,
}

/// A controller, and how many queues each of its disks that is not open yet has, in the disks' order.
struct InUse {
    controller: Arc<NvmeController>,
    queues: std::vec::IntoIter<u16>,
}

/// Opens the disks that are not open yet; all that are on one controller share it.
pub fn open(
    disks: Vec<CheckedDisk>,
    drivers: Option<&Drivers<'_>>,
    cpus: config::Cpus,
) -> Result<Driven, StartError> {
    let mut controllers =
        drivers.map_or_else(|| Ok(BTreeMap::new()), |drivers| drivers.take(&disks, cpus))?;
    let mut open = Vec::new();
    for disk in disks {
        let disk = match disk {
            CheckedDisk::Open(disk) => {
                open.push(disk);
                continue;
            }
            CheckedDisk::Driven(disk) => disk,
        };
        let DiskSource::Nvme { address, namespace, poll } = &disk.source else { continue };
        let Some(InUse { controller, queues }) = controllers.get_mut(&address.to_string()) else { continue };
        let Some(queues) = queues.next() else { continue };
        let backend = controller.namespace(namespace.get().get())?.polled(disks::poll(*poll));
        let backend = if disk.writes == Writes::Kept { backend } else { backend.read_only() };
        let name = format!("{address} namespace {namespace}");
        let opened = Disk::new(name, Box::new(backend));
        open.push(OpenDisk::new(opened, &address.to_string(), &disk, queues)?);
    }
    let controllers = controllers.into_values().map(|in_use| in_use.controller).collect();
    Ok(Driven { disks: open, controllers })
}

impl Drivers<'_> {
    /// Takes the controllers that disks are on into use, by address.
    fn take(&self, disks: &[CheckedDisk], cpus: config::Cpus) -> Result<BTreeMap<String, InUse>, StartError> {
        let mut asked = BTreeMap::<String, (config::PciAddress, Vec<Ask>)>::new();
        for disk in disks {
            if let CheckedDisk::Driven(disk) = disk
                && let DiskSource::Nvme { address, .. } = &disk.source
            {
                let ask = if disk.model.queues().is_some() { Ask::Exactly } else { Ask::UpTo };
                let (_, asks) = asked.entry(address.to_string()).or_insert((*address, Vec::new()));
                asks.push(ask(queues(disk, cpus)));
            }
        }
        let take = |(key, (address, asks)): (String, (config::PciAddress, Vec<Ask>))| {
            let wanted = asks.iter().fold(0, |sum: u16, ask| sum.saturating_add(ask.most()));
            let options =
                NvmeOptions { queues: wanted, ..NvmeOptions::new(report(self.reporter, self.events)) };
            let controller = Arc::new(self.claimed.drive_nvme(host_address(address)?, options)?);
            let granted = controller.queues();
            let queues = share(granted, &asks).map_err(|least| StartError::Queues {
                device: key.clone(),
                granted,
                least,
            })?;
            if granted < wanted {
                self.events.trouble(format!(
                    "NVMe controller {key}: it grants {granted} I/O queues, so its disks have not {wanted} but {}",
                    queues.iter().sum::<u16>()
                ));
            }
            Ok((key, InUse { controller, queues: queues.into_iter() }))
        };
        asked.into_iter().map(take).collect()
    }
}

/// Shuts a controller down that no disk is to use any more. If a disk's thread was left behind with something under way
/// there, that ends now, and is waited for a moment: as long as the thread has the device open it cannot be given back.
pub fn shut_down(controller: &NvmeController) -> Result<(), NvmeError> {
    let outcome = controller.shut_down();
    let until = Instant::now() + QUEUE_END_LIMIT;
    while controller.is_in_use() && Instant::now() < until {
        std::thread::sleep(LOOK);
    }
    outcome
}

/// What goes wrong with a controller becomes an event of the VM: DMA that failed or was not answered is a fault, and
/// so is a controller that is lost; anything else is a trouble.
pub fn report(reporter: &FaultReporter, events: &Events) -> ReportTrouble {
    let (reporter, events) = (reporter.clone(), events.clone());
    Arc::new(move |trouble| {
        let (iova, direction) = match trouble.kind {
            TroubleKind::BlockedDma { iova, direction, .. } => (Some(iova), Some(direction)),
            TroubleKind::TimedOut { iova, .. } => (Some(iova), None),
            TroubleKind::Lost { .. } => (None, None),
            _ => return events.trouble(trouble.to_string()),
        };
        reporter.tell(Fault {
            device: trouble.device.parse().ok(),
            direction: direction.map(|direction| match direction {
                Direction::FromMemory => faults::Direction::Read,
                Direction::ToMemory => faults::Direction::Write,
            }),
            iova,
            ..Fault::new(Source::HostDriver, trouble.to_string())
        });
    })
}

/// How many queues a disk asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ask {
    /// The description asks for this number.
    Exactly(u16),
    /// This number is usual; fewer are enough, at least one.
    UpTo(u16),
}

impl Ask {
    fn most(self) -> u16 {
        match self {
            Ask::Exactly(count) | Ask::UpTo(count) => count,
        }
    }

    fn least(self) -> u16 {
        match self {
            Ask::Exactly(count) => count,
            Ask::UpTo(_) => 1,
        }
    }
}

/// Distributes the queues that a controller grants, evenly except where the description gives a number. If they are not
/// enough, the error is the number that would be.
fn share(granted: u16, asks: &[Ask]) -> Result<Vec<u16>, u32> {
    let least: u32 = asks.iter().map(|ask| u32::from(ask.least())).sum();
    let mut left = u32::from(granted).checked_sub(least).ok_or(least)?;
    let mut shares: Vec<u16> = asks.iter().map(|ask| ask.least()).collect();
    loop {
        let before = left;
        for (share, ask) in shares.iter_mut().zip(asks) {
            if *share < ask.most() && left > 0 {
                *share += 1;
                left -= 1;
            }
        }
        if left == before {
            return Ok(shares);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn namespaces_of_a_controller_that_grants_few_queues_share_them() {
        use Ask::{Exactly, UpTo};
        assert_eq!(share(8, &[UpTo(4), UpTo(4)]), Ok(vec![4, 4]));
        assert_eq!(share(5, &[UpTo(4), UpTo(4)]), Ok(vec![3, 2]));
        assert_eq!(share(5, &[UpTo(8), Exactly(3), UpTo(1)]), Ok(vec![1, 3, 1]));
        assert_eq!(share(7, &[UpTo(8), Exactly(3), UpTo(1)]), Ok(vec![3, 3, 1]));
    }

    #[test]
    fn too_few_queues_for_what_is_asked_for_is_an_error_with_the_number() {
        assert_eq!(share(4, &[Ask::Exactly(4), Ask::UpTo(2)]), Err(5));
        assert_eq!(share(1, &[Ask::UpTo(2), Ask::UpTo(2)]), Err(2));
    }

    fn ask() -> impl Strategy<Value = Ask> {
        prop_oneof![(1u16..65).prop_map(Ask::UpTo), (1u16..65).prop_map(Ask::Exactly)]
    }

    proptest! {
        #[test]
        fn shares_are_never_more_than_granted_nor_less_than_asked(granted in 0u16..300, asks in prop::collection::vec(ask(), 1..8)) {
            let Ok(shares) = share(granted, &asks) else { return Ok(()) };
            let all: u16 = shares.iter().sum();
            prop_assert!(all <= granted);
            for (share, ask) in shares.iter().zip(&asks) {
                prop_assert!((ask.least()..=ask.most()).contains(share));
            }
            let wanted: u16 = asks.iter().map(|ask| ask.most()).sum();
            prop_assert_eq!(all, granted.min(wanted));
        }
    }
}
