//! What the API asks of a running VM.

use std::sync::Arc;

use disk::Reading;
use dma::Domain;
use memory::MemoryMap;

use crate::api::{Drive, Eject, Info, Insert, Plug, Plugged, State, Unplug, Unplugged};
use crate::journal::Journal;

/// A VM that did not do what it was asked: why, in a sentence with a hint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// A running VM, as the API sees it. Called on several threads at a time; every call should return within a second or
/// so, also while the VM ends, because the end of the [`crate::Server`] waits some seconds for calls that are under way.
pub trait Source: Send + Sync {
    /// The VM and its process.
    fn info(&self) -> Info;

    /// Its DMA domains.
    fn domains(&self) -> Vec<Arc<Domain>>;

    /// Its memory map; `None` while the VM ends.
    fn memory(&self) -> Option<Arc<MemoryMap>>;

    /// What happened to it.
    fn journal(&self) -> Arc<Journal>;

    /// Its disks, with what went through them since it began and what waits.
    fn disks(&self) -> Vec<Reading>;

    /// Its CD drives, with what is in them.
    fn drives(&self) -> Vec<Drive>;

    /// Puts a disc into a CD drive, where it replaces the one there. It opens a file first, and returns when the one that
    /// was there is closed, or after some seconds.
    fn insert(&self, insert: &Insert) -> Result<Drive, Refused>;

    /// Takes out what is in a CD drive, in the same way. Nothing, if it is empty.
    fn eject(&self, eject: &Eject) -> Result<Drive, Refused>;

    /// Opens a disk and plugs it into a SATA controller.
    fn plug(&self, plug: &Plug) -> Result<Plugged, Refused>;

    /// Unplugs a SATA disk, even if the guest uses it. Returns when it is closed, or after some seconds.
    fn unplug(&self, unplug: &Unplug) -> Result<Unplugged, Refused>;

    /// Stops the vCPUs. Does nothing if the VM is paused already.
    fn pause(&self) -> Result<State, Refused>;

    /// Makes the vCPUs run again. If they run already, it does nothing.
    fn resume(&self) -> Result<State, Refused>;

    /// Presses the power button; the guest shuts down when it listens.
    fn press_power_button(&self) -> Result<State, Refused>;

    /// Ends the VM, whatever the guest does. Returns at once.
    fn stop(&self) -> Result<State, Refused>;
}
