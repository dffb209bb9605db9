//! The tray: what host and guest both reach for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disk::{Disk, PreparedQueue};

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
}

/// The guest has locked the tray.
pub(in crate::ahci) struct Locked;

impl Tray {
    /// The disc in the drive.
    pub fn disc(&self) -> Option<Arc<Disk>> {
        self.state().disc.clone()
    }

    /// Puts another disc in, or takes the one that is there. When the guest has locked the tray it is only
    /// asked to let go, unless it is taken by force.
    pub fn change(&self, disc: Option<(Arc<Disk>, PreparedQueue)>, force: bool) -> Result<(), Locked> {
        let mut state = self.state();
        if state.locked && !force && state.disc.is_some() {
            state.handling.get_or_insert(Handling::EjectAsked);
            return Err(Locked);
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
        if state.handling.is_none() {
            state.disc = None;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
