//! Disks on NVMe controllers that skep drives itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use config::{DiskSource, Writes};
use disk::nvme::{Direction, NvmeController, NvmeOptions, NvmeTrouble, TroubleKind};
use disk::{Disk, Poll};
use dma::fault::{self, Fault, Source, Witness};

use crate::assigned::Claimed;
use crate::disks::{CheckedDisk, OpenDisk, queues};
use crate::error::{StartError, host_address};
use crate::events::Events;
use crate::faults;

/// What drivers need of the VM, which has devices to drive.
pub struct Drivers<'a> {
    /// The devices.
    pub claimed: &'a Claimed,
    /// Who is told of DMA that failed.
    pub witness: &'a Witness,
    /// Who is told of other troubles.
    pub events: &'a Events,
}

/// Opens the disks that are not open yet; all that are on one controller share it.
pub fn open(
    disks: Vec<CheckedDisk>,
    drivers: Option<&Drivers<'_>>,
    cpus: config::Cpus,
) -> Result<Vec<OpenDisk>, StartError> {
    let mut wanted = BTreeMap::<String, u16>::new();
    for disk in &disks {
        if let CheckedDisk::Driven(disk) = disk
            && let DiskSource::Nvme { address, .. } = &disk.source
        {
            *wanted.entry(address.to_string()).or_default() += queues(disk, cpus);
        }
    }
    let mut controllers = BTreeMap::<String, NvmeController>::new();
    let mut open = Vec::new();
    for disk in disks {
        let disk = match disk {
            CheckedDisk::Open(disk) => {
                open.push(disk);
                continue;
            }
            CheckedDisk::Driven(disk) => disk,
        };
        let (DiskSource::Nvme { address, namespace, poll }, Some(drivers)) = (&disk.source, drivers) else {
            continue;
        };
        let key = address.to_string();
        if !controllers.contains_key(&key) {
            let queues = wanted[&key];
            let options = NvmeOptions { queues, ..NvmeOptions::new(drivers.report()) };
            controllers.insert(key.clone(), drivers.claimed.drive_nvme(host_address(*address)?, options)?);
        }
        let backend = controllers[&key].namespace(namespace.get().get())?.polled(match poll {
            config::Poll::Off => Poll::Off,
            config::Poll::Adaptive => Poll::Adaptive,
            config::Poll::On => Poll::On,
        });
        let backend = if disk.writes == Writes::Kept { backend } else { backend.read_only() };
        let name = format!("{address} namespace {namespace}");
        let opened = Disk::new(name, Box::new(backend));
        open.push(OpenDisk::new(opened, &address.to_string(), &disk, cpus)?);
    }
    Ok(open)
}

impl Drivers<'_> {
    /// What goes wrong with a controller becomes an event of the VM: DMA that failed or was not answered a fault,
    /// anything else a trouble.
    fn report(&self) -> Arc<dyn Fn(&NvmeTrouble) + Send + Sync> {
        let (witness, events) = (self.witness.clone(), self.events.clone());
        Arc::new(move |trouble| {
            let (iova, direction) = match trouble.kind {
                TroubleKind::BlockedDma { iova, direction, .. } => (iova, Some(direction)),
                TroubleKind::TimedOut { iova, .. } => (iova, None),
                _ => return events.trouble(trouble.to_string()),
            };
            witness.tell(Fault {
                device: trouble.device.parse().ok(),
                direction: direction.map(|direction| match direction {
                    Direction::FromMemory => fault::Direction::Read,
                    Direction::ToMemory => fault::Direction::Write,
                }),
                iova: Some(iova),
                ..faults::nameless(Source::HostDriver, trouble.to_string())
            });
        })
    }
}
