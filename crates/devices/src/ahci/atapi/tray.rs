//! The tray: what host and guest both reach for.

use std::sync::Arc;

use disk::{Disk, PreparedQueue};
use parking_lot::{Mutex, MutexGuard};

/// What the host did and the drive has not noticed yet.
pub(in crate::ahci) enum Handling {
    /// There is no disc any more.
    Removed,
    /// There is another disc.
    Inserted(Arc<Disk>, PreparedQueue),
    /// Somebody would like to have the disc, which the guest has locked.
    EjectAsked,
}

/// A drive's tray.
#[derive(Default)]
pub(in crate::ahci) struct Tray(Mutex<State>);

#[derive(Default)]
struct State {
    disc: Option<Arc<Disk>>,
    /// The guest does not want the disc to be taken.
    locked: bool,
    handling: Option<Handling>,
    /// The drive has failed for good, and takes no disc.
    broken: bool,
}

/// The guest has locked the tray.
pub(in crate::ahci) struct Locked;

/// Why the host cannot change the disc.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::ahci) enum Kept {
    /// The guest has locked the tray.
    Locked,
    /// The drive has failed for good.
    Broken,
}

impl Tray {
    /// The disc in the drive.
    pub fn disc(&self) -> Option<Arc<Disk>> {
        self.state().disc.clone()
    }

    /// Puts another disc in, or takes the one that is there. When the guest has locked the tray it is only
    /// asked to let go, unless it is taken by force.
    pub fn change(&self, disc: Option<(Arc<Disk>, PreparedQueue)>, force: bool) -> Result<(), Kept> {
        let mut state = self.state();
        if state.broken {
            return Err(Kept::Broken);
        }
        if state.locked && !force && state.disc.is_some() {
            state.handling.get_or_insert(Handling::EjectAsked);
            return Err(Kept::Locked);
        }
        state.locked = false;
        (state.disc, state.handling) = match disc {
            None => (None, Some(Handling::Removed)),
            Some((disc, prepared)) => (Some(disc.clone()), Some(Handling::Inserted(disc, prepared))),
        };
        Ok(())
    }

    /// What has been done since last asked.
    pub fn take_handling(&self) -> Option<Handling> {
        self.state().handling.take()
    }

    /// The guest locks or unlocks the tray.
    pub fn lock(&self, locked: bool) {
        self.state().locked = locked;
    }

    /// The guest ejects the disc. A disc that has been put in meanwhile stays.
    pub fn eject(&self) -> Result<(), Locked> {
        let mut state = self.state();
        if state.locked {
            return Err(Locked);
        }
        state.forget_disc();
        Ok(())
    }

    /// The drive could not use the disc. One that has been put in meanwhile stays.
    pub fn refuse(&self) {
        self.state().forget_disc();
    }

    /// The drive has failed for good: it lets go of the disc, and takes no other.
    pub fn fail(&self) {
        // The disc may take its time to be closed, and nobody is to wait for the lock meanwhile.
        let before = std::mem::replace(&mut *self.state(), State { broken: true, ..State::default() });
        drop(before);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    /// What is noticed later is for the drive to see.
    fn forget_disc(&mut self) {
        if self.handling.is_none() {
            self.disc = None;
        }
    }
}
