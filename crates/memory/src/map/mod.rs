//! The one owner of a VM's memory map, and the mirrors that must equal it.
//!
//! A mirror is anything that holds a copy of the map in its own terms: KVM's memory slots, a DMA domain, a table of
//! buffers in the kernel. A change of the map happens in every mirror or in none: each one prepares it, in order,
//! and only when all have is the map itself another; when one refuses, those before it undo what they prepared.

mod device;
mod error;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use device::DeviceMemory;
pub use error::{ChangeError, Difference, MirrorError, Stuck};
use parking_lot::{Mutex, MutexGuard};

use crate::address::{Gpa, GpaRange};
use crate::ram::Ram;
use crate::segment::Segment;

/// One step from one memory map to another.
#[derive(Debug, Clone)]
pub enum Change {
    /// A segment of RAM appears.
    AddRam(Arc<Segment>),
    /// A segment of RAM goes. The guest must have given it up.
    RemoveRam(Arc<Segment>),
    /// Memory of a device appears: a BAR, or the part of one that can be mapped.
    AddDevice(DeviceMemory),
    /// It goes.
    RemoveDevice(DeviceMemory),
}

impl Change {
    /// The guest addresses that it concerns.
    pub fn range(&self) -> GpaRange {
        match self {
            Change::AddRam(segment) | Change::RemoveRam(segment) => segment.range(),
            Change::AddDevice(device) | Change::RemoveDevice(device) => device.range(),
        }
    }

    /// The change that undoes this one.
    pub fn inverse(&self) -> Change {
        match self.clone() {
            Change::AddRam(segment) => Change::RemoveRam(segment),
            Change::RemoveRam(segment) => Change::AddRam(segment),
            Change::AddDevice(device) => Change::RemoveDevice(device),
            Change::RemoveDevice(device) => Change::AddDevice(device),
        }
    }

    fn adds(&self) -> bool {
        matches!(self, Change::AddRam(_) | Change::AddDevice(_))
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let range = self.range();
        match self {
            Change::AddRam(_) => write!(f, "add RAM {range}"),
            Change::RemoveRam(_) => write!(f, "remove RAM {range}"),
            Change::AddDevice(device) => write!(f, "add {} at {range}", device.owner()),
            Change::RemoveDevice(device) => write!(f, "remove {} at {range}", device.owner()),
        }
    }
}

/// Something that must equal the memory map.
pub trait Mirror: Send + Sync {
    /// What it is, for people: "DMA domain guest".
    fn name(&self) -> String;

    /// Makes the change, in such a way that [`undo`](Mirror::undo) can undo it. A failure has changed
    /// nothing.
    fn prepare(&self, change: &Change) -> Result<(), MirrorError>;

    /// Undoes a change that was prepared. A failure leaves the mirror other than the map, which an audit shows.
    fn undo(&self, change: &Change) -> Result<(), MirrorError> {
        self.prepare(&change.inverse())
    }

    /// Compares what it holds with the map.
    fn audit(&self, contents: &Contents) -> Result<(), Difference>;
}

/// What a memory map holds at one moment.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The RAM.
    pub ram: Arc<Ram>,
    /// Memory of devices, in the order in which it appeared.
    pub devices: Vec<DeviceMemory>,
}

/// A mirror's name, and how it differs from the map if it does.
pub type Audited = (String, Result<(), Difference>);

/// What lies at a guest address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// RAM of this VM.
    Ram,
    /// Memory of a device (a BAR).
    Device,
    /// Nothing, with RAM above it.
    Hole,
    /// Nothing, and no RAM above it.
    Beyond,
}

impl Contents {
    /// What lies at an address.
    pub fn place(&self, gpa: Gpa) -> Place {
        let segments = self.ram.segments();
        if segments.iter().any(|segment| segment.range().contains(gpa)) {
            Place::Ram
        } else if self.devices.iter().any(|device| device.range().contains(gpa)) {
            Place::Device
        } else if segments.iter().any(|segment| segment.range().start() > gpa) {
            Place::Hole
        } else {
            Place::Beyond
        }
    }

    fn ranges(&self) -> impl Iterator<Item = GpaRange> {
        let ram = self.ram.segments().iter().map(|segment| segment.range());
        ram.chain(self.devices.iter().map(DeviceMemory::range))
    }

    /// What the map is after a change; an error when the change does not fit the map.
    fn after(&self, change: &Change) -> Result<Contents, MirrorError> {
        let range = change.range();
        if change.adds()
            && let Some(other) = self.ranges().find(|other| other.overlaps(range))
        {
            return Err(format!("there is something at {other} already").into());
        }
        let mut after = self.clone();
        match change {
            Change::AddRam(segment) => after.ram = Arc::new(self.ram.with(segment.clone())),
            Change::RemoveRam(segment) => {
                let less = self.ram.without(segment).ok_or("there is no such RAM")?;
                after.ram = Arc::new(less);
            }
            Change::AddDevice(device) => after.devices.push(device.clone()),
            Change::RemoveDevice(device) => {
                let at = after.devices.iter().position(|other| other == device);
                after.devices.remove(at.ok_or("there is no such memory")?);
            }
        }
        Ok(after)
    }

    /// The steps from an empty map to this one.
    fn steps(&self) -> Vec<Change> {
        let ram = self.ram.segments().iter().cloned().map(Change::AddRam);
        ram.chain(self.devices.iter().cloned().map(Change::AddDevice)).collect()
    }
}

/// A VM's memory map and its mirrors. Changes happen one at a time.
pub struct MemoryMap {
    state: Mutex<State>,
}

struct State {
    contents: Contents,
    /// In the order of calls when something appears; when something is removed, the order is reversed.
    mirrors: Vec<Arc<dyn Mirror>>,
}

impl MemoryMap {
    /// A map of RAM that nothing mirrors yet.
    pub fn new(ram: Arc<Ram>) -> MemoryMap {
        let contents = Contents { ram, devices: Vec::new() };
        MemoryMap { state: Mutex::new(State { contents, mirrors: Vec::new() }) }
    }

    /// The RAM as it is now.
    pub fn ram(&self) -> Arc<Ram> {
        self.state().contents.ram.clone()
    }

    /// The whole map as it is now.
    pub fn contents(&self) -> Contents {
        self.state().contents.clone()
    }

    /// Puts the whole map into a mirror and compares it; from then on the mirror takes part in every change. On failure
    /// the mirror holds nothing of the map.
    pub fn attach(&self, mirror: Arc<dyn Mirror>) -> Result<(), ChangeError> {
        let mut state = self.state();
        let steps = state.contents.steps();
        for (done, step) in steps.iter().enumerate() {
            if let Err(cause) = mirror.prepare(step) {
                let stuck = undo_steps(&mirror, &steps[..done]);
                return Err(ChangeError::refused(&*mirror, step.to_string(), cause, stuck));
            }
        }
        if let Err(difference) = mirror.audit(&state.contents) {
            let stuck = undo_steps(&mirror, &steps);
            return Err(ChangeError::refused(
                &*mirror,
                "hold the memory map".into(),
                difference.into(),
                stuck,
            ));
        }
        state.mirrors.push(mirror);
        Ok(())
    }

    /// Removes the whole map from a mirror, which then takes part in no more changes. Tries all; what could not
    /// be removed is in the error, and the mirror is detached in any case.
    pub fn detach(&self, mirror: &Arc<dyn Mirror>) -> Result<(), ChangeError> {
        let mut state = self.state();
        let before = state.mirrors.len();
        state.mirrors.retain(|other| !Arc::ptr_eq(other, mirror));
        if state.mirrors.len() == before {
            return Ok(());
        }
        let stuck = undo_steps(mirror, &state.contents.steps());
        if stuck.is_empty() { Ok(()) } else { Err(ChangeError::detach(&**mirror, stuck)) }
    }

    /// Makes a change in every mirror and then in the map, or nowhere.
    pub fn apply(&self, change: &Change) -> Result<(), ChangeError> {
        let mut state = self.state();
        let after = state.contents.after(change).map_err(|cause| ChangeError::misfit(change, cause))?;
        let mut order: Vec<&Arc<dyn Mirror>> = state.mirrors.iter().collect();
        if !change.adds() {
            order.reverse();
        }
        for (done, mirror) in order.iter().enumerate() {
            let Err(cause) = mirror.prepare(change) else { continue };
            let undone = order[..done].iter().rev();
            let stuck = undone.filter_map(|mirror| undo(&***mirror, change)).collect();
            return Err(ChangeError::refused(&***mirror, change.to_string(), cause, stuck));
        }
        state.contents = after;
        Ok(())
    }

    /// Compares every mirror with the map: its name, and how it differs if it does.
    pub fn audit(&self) -> Vec<Audited> {
        self.look(|_, audit| audit())
    }

    /// Looks at the map while nothing changes it, and with `audit` at its mirrors: all that is seen is of one moment.
    /// `look` must not call other methods of this map.
    pub fn look<T>(&self, look: impl FnOnce(&Contents, &dyn Fn() -> Vec<Audited>) -> T) -> T {
        let state = self.state();
        let audit = |mirror: &Arc<dyn Mirror>| (mirror.name(), mirror.audit(&state.contents));
        look(&state.contents, &|| state.mirrors.iter().map(audit).collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl std::fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryMap").field("contents", &self.state().contents).finish_non_exhaustive()
    }
}

/// Undoes a change in one mirror; returns what could not be undone.
fn undo(mirror: &dyn Mirror, change: &Change) -> Option<Stuck> {
    let cause = mirror.undo(change).err()?;
    Some(Stuck { mirror: mirror.name(), change: change.inverse().to_string(), cause })
}

fn undo_steps(mirror: &Arc<dyn Mirror>, steps: &[Change]) -> Vec<Stuck> {
    steps.iter().rev().filter_map(|step| undo(&**mirror, step)).collect()
}
