//! Memory of devices in a domain, for its other devices.

use std::ptr::NonNull;

use memory::DeviceMemory;

use super::{Domain, Kind, State};
use crate::backend::Source;
use crate::error::DomainError;
use crate::ledger::{Mapping, Target};
use crate::p2p::{P2p, P2pWish};
use crate::vfio::MappedArea;

impl Domain {
    /// Tries whether devices of the domain reach this memory of a device, which is `owner`'s: maps it where nothing
    /// is, and unmaps it. Does nothing if P2P was not asked for. If it was only wished for and does not work, that is
    /// remembered and reported; if it is required and does not work, that is an error.
    pub fn try_p2p(&self, owner: &str, area: &MappedArea) -> Result<(), DomainError> {
        // SAFETY: the area is borrowed, and so mapped, for the length of the call.
        unsafe { self.try_memory(owner, area.start(), area.len() as u64) }
    }

    /// The same for memory of any origin.
    ///
    /// # Safety
    /// `len` bytes from `host` on must be mapped in this process for the length of the call, and be memory of a
    /// device: it must matter to nobody if they stay mapped for devices because they cannot be unmapped.
    pub(crate) unsafe fn try_memory(
        &self,
        owner: &str,
        host: NonNull<u8>,
        len: u64,
    ) -> Result<(), DomainError> {
        let Kind::Guest(wish @ (P2pWish::On | P2pWish::Required)) = self.kind else { return Ok(()) };
        let mut state = self.state();
        if let P2p::Failed(_) = state.p2p {
            return Ok(());
        }
        let mapped = state.free(&self.name, owner, len).and_then(|(iova, range)| {
            let mapping = Mapping::of(iova, Target::Device { owner: owner.into(), range });
            // SAFETY: by this function's contract; it is unmapped below, or that fails, which matters to nobody.
            unsafe { state.map(&self.name, mapping.clone(), Source { host, file: None }, None)? };
            Ok(mapping)
        });
        let done = match mapped {
            Ok(mapping) => {
                state.p2p = P2p::Working;
                state.unmap(&self.name, |row| *row == mapping)
            }
            Err(error) if wish == P2pWish::On => {
                state.give_p2p_up(&self.name, &error);
                Ok(())
            }
            Err(error) => Err(DomainError::NoP2p(Box::new(error))),
        };
        self.changed();
        done
    }

    /// Maps a device's memory that appears in the guest, if devices are to reach each other's.
    pub(super) fn add_device(&self, state: &mut State, device: &DeviceMemory) -> Result<(), DomainError> {
        let Kind::Guest(wish @ (P2pWish::On | P2pWish::Required)) = self.kind else { return Ok(()) };
        if device.is_read_only() {
            return Ok(());
        }
        if let P2p::Failed(_) = state.p2p {
            return Ok(());
        }
        let source = Source { host: device.host_address(), file: None };
        // SAFETY: the maker of the `DeviceMemory` keeps it mapped until it is removed from the map, which removes
        // it here first.
        let mapped = unsafe { state.map(&self.name, Mapping::of_device(device), source, None) };
        match mapped {
            Ok(()) => {
                state.p2p = P2p::Working;
                Ok(())
            }
            Err(error) if wish == P2pWish::On => {
                state.give_p2p_up(&self.name, &error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl State {
    /// Gives up P2P until the domain is dropped. It is all or nothing, because devices that reach only some of the
    /// others' memory are worse than devices that reach none.
    fn give_p2p_up(&mut self, domain: &str, error: &DomainError) {
        let undone = self.unmap(domain, |row| matches!(row.target, Target::Device { .. }));
        let besides = undone.err().map(|error| format!(". Besides, {error}")).unwrap_or_default();
        let why = format!("{error}{besides}");
        self.remark(format!("assigned devices do not reach each other's memory (p2p): {why}"));
        self.p2p = P2p::Failed(why);
    }
}
