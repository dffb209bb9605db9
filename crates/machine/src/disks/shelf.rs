//! The disks of a VM as they are at one moment, of which SATA disks and discs come and go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use config::{ControllerName, ModelName, OnError};
use devices::ahci::AhciPort;
use disk::{Disk, Reading, Tally};

use super::controllers::{Put, controllers};
use super::drives::{Drive, DriveError, DriveReading};
use super::plug::{PlugError, UnplugError};
use super::resizes::{Sizes, tell_people};
use super::seats::{SataController, Seat};
use super::{Model, OpenDisk, Place};
use crate::buffers::Registered;
use crate::error::StartError;
use crate::events::{Event, Events};
use crate::failures;
use crate::uefi::Bootable;

/// Disks that were unplugged whose tallies are kept.
const KEPT: usize = 64;

/// The disks of a VM. They are closed with this, even while another thread looks at them from outside.
pub struct Disks(Arc<Shelf>);

/// What the owner and those outside share.
pub(super) struct Shelf {
    contents: Mutex<Contents>,
    pub events: Events,
}

/// The disks, and what those that come need. The lock over it is held for moments only.
#[derive(Default)]
pub(super) struct Contents {
    // First, for they use the disks.
    sizes: Sizes,
    slots: Vec<Slot>,
    /// Where disks are plugged in; `None` while the VM ends.
    sata: Option<Vec<SataController>>,
    registered: Registered,
}

/// What the guest has, or had.
enum Slot {
    /// As long as the VM runs.
    Fixed { disk: Arc<Disk>, model: ModelName },
    /// Until it is unplugged.
    Sata { disk: Arc<Disk>, seat: Seat },
    /// As long as the VM runs, with a disc that may be changed.
    Drive(Arc<Drive>),
    /// A disk that was there. Its port is free when none of its queues counts any more.
    Gone { tally: Tally, seat: Seat },
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
        let mut put = Put::default();
        for controller in controllers(disks) {
            put.add(controller.put_on(place)?);
        }
        let Put { listeners, seats, sata, mut bootable } = put;
        bootable.sort_by_key(|(nth, _)| *nth);
        let mut sizes = Sizes::default();
        let watched: Vec<Arc<Disk>> = planned.iter().map(|planned| planned.disk.clone()).collect();
        sizes.add(&watched, listeners)?;
        let slots = planned.into_iter().map(|planned| planned.slot(&seats, place.events)).collect();
        let contents = Mutex::new(Contents { sizes, slots, sata: Some(sata), registered });
        let disks = Disks(Arc::new(Shelf { contents, events: place.events.clone() }));
        Ok((disks, bootable.into_iter().map(|(_, bootable)| bootable).collect()))
    }

    /// Those that there are now: disks, and discs that are in drives.
    pub fn now(&self) -> Vec<Arc<Disk>> {
        self.0.contents().disks().collect()
    }

    /// What went through them, and through those that are gone.
    pub fn tallies(&self) -> Vec<Tally> {
        let contents = self.0.contents();
        let tallies = contents.slots.iter().flat_map(|slot| match slot {
            Slot::Fixed { disk, .. } | Slot::Sata { disk, .. } => vec![disk.tally().clone()],
            Slot::Drive(drive) => drive.tallies(),
            Slot::Gone { tally, .. } => vec![tally.clone()],
        });
        tallies.collect()
    }

    /// From now on no disk is plugged in, because the VM ends.
    pub fn close(&self) {
        self.0.contents().sata = None;
    }

    /// The way to them from outside.
    pub fn outside(&self) -> DisksOutside {
        DisksOutside(Arc::downgrade(&self.0))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        // Not with the lock held: threads that end may have to take it.
        let contents = std::mem::take(&mut *self.0.contents());
        drop(contents);
    }
}

/// The disks of a VM, for users that must not keep a disk open.
#[derive(Clone)]
pub struct DisksOutside(Weak<Shelf>);

impl DisksOutside {
    /// What went through those that there are now, and what waits.
    pub fn read(&self) -> Vec<Reading> {
        let Some(shelf) = self.shelf() else { return Vec::new() };
        shelf.contents().disks().map(|disk| disk.read()).collect()
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
    pub(super) fn shelf(&self) -> Option<Arc<Shelf>> {
        self.0.upgrade()
    }

    fn all_drives(&self) -> Vec<Arc<Drive>> {
        self.shelf().map_or_else(Vec::new, |shelf| shelf.contents().drives().cloned().collect())
    }
}

impl Shelf {
    pub fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn disks(&self) -> impl Iterator<Item = Arc<Disk>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Fixed { disk, .. } | Slot::Sata { disk, .. } => Some(disk.clone()),
            Slot::Drive(drive) => drive.disc(),
            Slot::Gone { .. } => None,
        })
    }

    fn drives(&self) -> impl Iterator<Item = &Arc<Drive>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Drive(drive) => Some(drive),
            Slot::Fixed { .. } | Slot::Sata { .. } | Slot::Gone { .. } => None,
        })
    }

    /// The first free port of the controller of this name, or of any.
    pub fn free_seat(&self, wanted: Option<&ControllerName>) -> Result<Seat, PlugError> {
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
        let free = meant.iter().flat_map(|one| one.seats()).find(|seat| self.is_free(seat));
        free.ok_or_else(|| PlugError::Full(names(&meant)))
    }

    fn is_free(&self, wanted: &Seat) -> bool {
        !self.slots.iter().any(|slot| match slot {
            Slot::Fixed { .. } => false,
            Slot::Sata { seat, .. } => seat == wanted,
            Slot::Drive(drive) => drive.seat() == wanted,
            Slot::Gone { tally, seat } => seat == wanted && tally.in_use(),
        })
    }

    /// Plugs an open disk in, and informs guest and people.
    pub fn plug(&mut self, open: OpenDisk, events: &Events) -> Result<Seat, PlugError> {
        let seat = self.free_seat(open.controller.as_ref())?;
        self.registered.give(&open)?;
        let OpenDisk { disk, model, .. } = open;
        let model = match model {
            Model::Ahci(AhciPort::Disk(model)) => model,
            other => return Err(PlugError::Model(other.name())),
        };
        let listener = tell_people(&disk, events.clone())?;
        self.sizes.add(std::slice::from_ref(&disk), vec![listener])?;
        seat.controller.plug_disk(seat.port, model).map_err(StartError::from)?;
        events.send(Event::DisksChanged(format!("disk {} was plugged in ({seat})", disk.name())));
        self.slots.push(Slot::Sata { disk, seat: seat.clone() });
        Ok(seat)
    }

    /// Removes the SATA disk of this name from the list. Its port is not free before its queue has ended.
    pub fn take(&mut self, name: &str) -> Result<(Arc<Disk>, Seat), UnplugError> {
        for slot in &mut self.slots {
            if let Slot::Sata { disk, seat } = slot
                && disk.name() == name
            {
                let (disk, seat) = (disk.clone(), seat.clone());
                *slot = Slot::Gone { tally: disk.tally().clone(), seat: seat.clone() };
                self.forget();
                return Ok((disk, seat));
            }
        }
        Err(self.why_not(name))
    }

    /// Forgets the disks that were removed first, if there are many.
    fn forget(&mut self) {
        let is_gone = |slot: &Slot| matches!(slot, Slot::Gone { .. });
        if self.slots.iter().filter(|slot| is_gone(slot)).count() > KEPT
            && let Some(first) = self.slots.iter().position(is_gone)
        {
            self.slots.remove(first);
        }
    }

    /// Why no disk of this name can be unplugged.
    fn why_not(&self, name: &str) -> UnplugError {
        let name = name.to_owned();
        if let Some(drive) = self.drives().find(|drive| drive.name() == name || drive.holds(&name)) {
            return UnplugError::Disc { name, drive: drive.name().to_owned() };
        }
        let fixed = self.slots.iter().find_map(|slot| match slot {
            Slot::Fixed { disk, model } if disk.name() == name => Some(*model),
            _ => None,
        });
        if let Some(model) = fixed {
            return UnplugError::Model { name, model };
        }
        let sata = self.slots.iter().filter_map(|slot| match slot {
            Slot::Sata { disk, .. } => Some(disk.name().to_owned()),
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

    fn slot(self, seats: &[(Arc<Disk>, Seat)], events: &Events) -> Slot {
        let Planned { disk, model, drive } = self;
        let seat = seats.iter().find(|(there, _)| Arc::ptr_eq(there, &disk)).map(|(_, seat)| seat.clone());
        match (drive, seat) {
            (Some((name, on_error)), Some(seat)) => {
                let drive = Drive::new(name, seat, on_error, disk.tally().clone(), events.clone());
                Slot::Drive(Arc::new(drive))
            }
            (None, Some(seat)) => Slot::Sata { disk, seat },
            (_, None) => Slot::Fixed { disk, model },
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
