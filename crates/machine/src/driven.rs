//! Disks on NVMe controllers that skep drives itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use config::DiskSource;
use disk::nvme::{NvmeController, NvmeOptions, NvmeTrouble};
use disk::{Disk, Poll};

use crate::assigned::Claimed;
use crate::check::{CheckedDisk, OpenDisk, queues};
use crate::error::{StartError, host_address};
use crate::events::Events;

/// Opens the disks that are not open yet; all that are on one controller share it.
pub fn open(
    disks: Vec<CheckedDisk>,
    claimed: Option<&Claimed>,
    cpus: config::Cpus,
    events: &Events,
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
        let (DiskSource::Nvme { address, namespace, poll }, Some(claimed)) = (&disk.source, claimed) else {
            continue;
        };
        let key = address.to_string();
        if !controllers.contains_key(&key) {
            let queues = wanted[&key];
            let options = NvmeOptions { queues, ..NvmeOptions::new(report(events)) };
            controllers.insert(key.clone(), claimed.drive_nvme(host_address(*address)?, options)?);
        }
        let backend = controllers[&key].namespace(namespace.get().get())?.polled(match poll {
            config::Poll::Off => Poll::Off,
            config::Poll::Adaptive => Poll::Adaptive,
            config::Poll::On => Poll::On,
        });
        let backend = if disk.readonly { backend.read_only() } else { backend };
        let name = format!("{address} namespace {namespace}");
        let opened = Disk::new(name, Box::new(backend));
        open.push(OpenDisk::new(opened, &address.to_string(), &disk, cpus)?);
    }
    Ok(open)
}

/// What goes wrong with a controller becomes an event of the VM.
fn report(events: &Events) -> Arc<dyn Fn(&NvmeTrouble) + Send + Sync> {
    let events = events.clone();
    Arc::new(move |trouble| events.trouble(trouble.to_string()))
}
