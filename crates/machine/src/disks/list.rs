//! The disks of a VM as they are at one moment, of which SATA disks and discs come and go.

use std::sync::{Arc, Weak};

use config::{ControllerName, ModelName, OnError};
use devices::ahci::AhciPort;
use disk::{Disk, Reading, Tally};
use parking_lot::{Mutex, MutexGuard};

use super::controllers::{Attached, controllers};
use super::drives::{Drive, DriveError, DriveReading};
use super::plug::{PlugError, UnplugError};
use super::resizes::{Sizes, tell_people};
use super::sata_port::{SataController, SataPort};
use super::{Model, OpenDisk, Place};
use crate::disks::failures;
use crate::disks::registered::Registered;
use crate::error::StartError;
use crate::events::{Event, Events};
use crate::uefi::Bootable;

/// Disks that were unplugged whose tallies are kept.
const KEPT: usize = 64;

/// The disks of a VM. They are closed with this, even while another thread looks at them from outside.
pub struct Disks(Arc<DiskList>);

/// What the owner and those outside share.
pub(super) struct DiskList {
    inner: Mutex<Inner>,
    pub events: Events,
}

/// The disks, and what those that come need. The lock over it is held for moments only.
#[derive(Default)]
pub(super) struct Inner {
    // First, for they use the disks.
    sizes: Sizes,
    entries: Vec<Entry>,
    /// Where disks are plugged in; `None` while the VM ends.
    sata: Option<Vec<SataController>>,
    registered: Registered,
}

/// What the guest has, or had.
enum Entry {
    /// As long as the VM runs.
    Fixed { disk: Arc<Disk>, model: ModelName },
    /// Until it is unplugged.
    Sata { disk: Arc<Disk>, at: SataPort },
    /// As long as the VM runs, with a disc that may be changed.
    Drive(Arc<Drive>),
    /// A disk that was there. Its port is free when none of its queues counts any more.
    Gone { tally: Tally, at: SataPort },
}

impl Disks {
    /// Makes controllers of disks and puts them on the bus, at the first addresses that are free. Each disk and drive can be
    /// booted; they are in the order of `disks`, and behind them the ports where others may be plugged in.
    pub fn put_on(
        mut disks: Vec<OpenDisk>,
        place: Place<'_>,
        registered: Registered,
    ) -> Result<(Disks, Vec<Bootable>), StartError> {
        // Before any of their queues is prepared.
        disks.iter().for_each(|disk| failures::watch(&disk.disk, disk.on_error, place.events));
        name_drives(&mut disks);
        let planned: Vec<Planned> = disks.iter().map(Planned::of).collect();
        let mut attached = Attached::default();
        for controller in controllers(disks) {
            attached.add(controller.put_on(place)?);
        }
        let Attached { listeners, sata_ports, sata, mut bootable } = attached;
        bootable.sort_by_key(|(nth, _)| *nth);
        let mut sizes = Sizes::default();
        let watched: Vec<Arc<Disk>> = planned.iter().map(|planned| planned.disk.clone()).collect();
        sizes.add(&watched, listeners)?;
        let entries = planned.into_iter().map(|planned| planned.entry(&sata_ports, place.events)).collect();
        let inner = Mutex::new(Inner { sizes, entries, sata: Some(sata), registered });
        let disks = Disks(Arc::new(DiskList { inner, events: place.events.clone() }));
        Ok((disks, bootable.into_iter().map(|(_, bootable)| bootable).collect()))
    }

    /// Those that there are now: disks, and discs that are in drives.
    pub fn now(&self) -> Vec<Arc<Disk>> {
        self.0.inner().disks().collect()
    }

    /// What went through them, and through those that are gone.
    pub fn tallies(&self) -> Vec<Tally> {
        let inner = self.0.inner();
        let tallies = inner.entries.iter().flat_map(|entry| match entry {
            Entry::Fixed { disk, .. } | Entry::Sata { disk, .. } => vec![disk.tally().clone()],
            Entry::Drive(drive) => drive.tallies(),
            Entry::Gone { tally, .. } => vec![tally.clone()],
        });
        tallies.collect()
    }

    /// From now on no disk is plugged in, because the VM ends.
    pub fn close(&self) {
        self.0.inner().sata = None;
    }

    /// The way to them from outside.
    pub fn outside(&self) -> DisksOutside {
        DisksOutside(Arc::downgrade(&self.0))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        // Not with the lock held: threads that end may have to take it.
        let inner = std::mem::take(&mut *self.0.inner());
        drop(inner);
    }
}

/// The disks of a VM, for users that must not keep a disk open.
#[derive(Clone)]
pub struct DisksOutside(Weak<DiskList>);

impl DisksOutside {
    /// What went through those that there are now, and what waits.
    pub fn read(&self) -> Vec<Reading> {
        let Some(list) = self.list() else { return Vec::new() };
        list.inner().disks().map(|disk| disk.read()).collect()
    }

    /// The CD drives and what is in them.
    pub fn drives(&self) -> Vec<DriveReading> {
        self.all_drives().iter().map(|drive| drive.read()).collect()
    }

    /// The CD drive of this name, or with the disc of this name in it.
    pub fn drive(&self, name: &str) -> Result<Arc<Drive>, DriveError> {
        let drives = self.all_drives();
        let named = drives.iter().find(|drive| drive.name() == name);
        let drive = named.or_else(|| drives.iter().find(|drive| drive.holds(name))).cloned();
        drive.ok_or_else(|| DriveError::Missing { name: name.to_owned(), drives: self.drives() })
    }

    /// `None` after the VM has ended.
    pub(super) fn list(&self) -> Option<Arc<DiskList>> {
        self.0.upgrade()
    }

    fn all_drives(&self) -> Vec<Arc<Drive>> {
        self.list().map_or_else(Vec::new, |list| list.inner().drives().cloned().collect())
    }
}

impl DiskList {
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

impl Inner {
    fn disks(&self) -> impl Iterator<Item = Arc<Disk>> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Fixed { disk, .. } | Entry::Sata { disk, .. } => Some(disk.clone()),
            Entry::Drive(drive) => drive.disc(),
            Entry::Gone { .. } => None,
        })
    }

    fn drives(&self) -> impl Iterator<Item = &Arc<Drive>> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Drive(drive) => Some(drive),
            Entry::Fixed { .. } | Entry::Sata { .. } | Entry::Gone { .. } => None,
        })
    }

    /// The first free port of the controller of this name, or of any.
    pub fn free_port(&self, wanted: Option<&ControllerName>) -> Result<SataPort, PlugError> {
        let all = self.sata.as_ref().ok_or(PlugError::Ending)?;
        let is_meant = |one: &&SataController| wanted.is_none_or(|name| one.name.as_ref() == Some(name));
        let meant: Vec<&SataController> = all.iter().filter(is_meant).collect();
        let names = |those: &[&SataController]| those.iter().map(ToString::to_string).collect();
        match (wanted, meant.is_empty()) {
            (None, true) => return Err(PlugError::NoController),
            (Some(name), true) => {
                let there = names(&all.iter().collect::<Vec<_>>());
                return Err(PlugError::OtherControllers { name: name.clone(), there });
            }
            (_, false) => {}
        }
        let free = meant.iter().flat_map(|one| one.ports()).find(|at| self.is_free(at));
        free.ok_or_else(|| PlugError::Full(names(&meant)))
    }

    fn is_free(&self, wanted: &SataPort) -> bool {
        !self.entries.iter().any(|entry| match entry {
            Entry::Fixed { .. } => false,
            Entry::Sata { at, .. } => at == wanted,
            Entry::Drive(drive) => drive.at() == wanted,
            Entry::Gone { tally, at } => at == wanted && tally.in_use(),
        })
    }

    /// Plugs an open disk in, and informs guest and people.
    pub fn plug(&mut self, open: OpenDisk, events: &Events) -> Result<SataPort, PlugError> {
        let at = self.free_port(open.controller.as_ref())?;
        self.registered.give(&open)?;
        let OpenDisk { disk, model, .. } = open;
        let model = match model {
            Model::Ahci(AhciPort::Disk(model)) => model,
            other => return Err(PlugError::Model(other.name())),
        };
        let listener = tell_people(&disk, events.clone())?;
        self.sizes.add(std::slice::from_ref(&disk), vec![listener])?;
        at.controller.plug_disk(at.number, model).map_err(StartError::from)?;
        events.send(Event::DisksChanged(format!("disk {} was plugged in ({at})", disk.name())));
        self.entries.push(Entry::Sata { disk, at: at.clone() });
        Ok(at)
    }

    /// Removes the SATA disk of this name from the list. Its port is not free before its queue has ended.
    pub fn take(&mut self, name: &str) -> Result<(Arc<Disk>, SataPort), UnplugError> {
        for entry in &mut self.entries {
            if let Entry::Sata { disk, at } = entry
                && disk.name() == name
            {
                let (disk, at) = (disk.clone(), at.clone());
                *entry = Entry::Gone { tally: disk.tally().clone(), at: at.clone() };
                self.forget();
                return Ok((disk, at));
            }
        }
        Err(self.why_not(name))
    }

    /// Forgets the disks that were removed first, if there are many.
    fn forget(&mut self) {
        let is_gone = |entry: &Entry| matches!(entry, Entry::Gone { .. });
        if self.entries.iter().filter(|entry| is_gone(entry)).count() > KEPT
            && let Some(first) = self.entries.iter().position(is_gone)
        {
            self.entries.remove(first);
        }
    }

    /// Why no disk of this name can be unplugged.
    fn why_not(&self, name: &str) -> UnplugError {
        let name = name.to_owned();
        if let Some(drive) = self.drives().find(|drive| drive.name() == name || drive.holds(&name)) {
            return UnplugError::Disc { name, drive: drive.name().to_owned() };
        }
        let fixed = self.entries.iter().find_map(|entry| match entry {
            Entry::Fixed { disk, model } if disk.name() == name => Some(*model),
            _ => None,
        });
        if let Some(model) = fixed {
            return UnplugError::Model { name, model };
        }
        let sata = self.entries.iter().filter_map(|entry| match entry {
            Entry::Sata { disk, .. } => Some(disk.name().to_owned()),
            _ => None,
        });
        UnplugError::Missing { name, disks: sata.collect() }
    }
}

/// A disk that its controller is not made for yet.
struct Planned {
    disk: Arc<Disk>,
    model: ModelName,
    /// The drive that it is in.
    drive: Option<(String, Option<OnError>)>,
}

impl Planned {
    fn of(open: &OpenDisk) -> Planned {
        let drive = match &open.model {
            Model::Ahci(AhciPort::Cd(cd)) => Some((cd.name.clone(), open.on_error)),
            _ => None,
        };
        Planned { disk: open.disk.clone(), model: open.model.name(), drive }
    }

    fn entry(self, sata_ports: &[(Arc<Disk>, SataPort)], events: &Events) -> Entry {
        let Planned { disk, model, drive } = self;
        let at = sata_ports.iter().find(|(there, _)| Arc::ptr_eq(there, &disk)).map(|(_, at)| at.clone());
        match (drive, at) {
            (Some((name, on_error)), Some(at)) => {
                let drive = Drive::new(name, at, on_error, disk.tally().clone(), events.clone());
                Entry::Drive(Arc::new(drive))
            }
            (None, Some(at)) => Entry::Sata { disk, at },
            (_, None) => Entry::Fixed { disk, model },
        }
    }
}

/// Drives are called cd0, cd1 ... in the order of the description, whatever is in them.
fn name_drives(disks: &mut [OpenDisk]) {
    let drives = disks.iter_mut().filter_map(|disk| match &mut disk.model {
        Model::Ahci(AhciPort::Cd(cd)) => Some(cd),
        _ => None,
    });
    drives.enumerate().for_each(|(n, cd)| cd.name = format!("cd{n}"));
}
