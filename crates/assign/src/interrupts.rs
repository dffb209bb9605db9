//! Interrupts of the device, from the host's kernel into the guest's with no code of skep on the way.
//!
//! VFIO has a device raise one kind at a time. Which one follows from what the guest enabled: MSI-X, else MSI, else
//! the pin. An eventfd of each vector goes to VFIO on one side and, through [`pci::Vector`], to KVM on the other.

use std::sync::Arc;

use dma::vfio::{Interrupt, VfioDevice, VfioError};
use pci::{Address, Msi, Msix, Pin, ResampledLine, Services};
use vmm_sys_util::eventfd::EventFd;

use crate::error::AssignError;

/// The side of the device: what VFIO does for interrupts.
pub(crate) trait Wires: Send + Sync {
    /// See [`VfioDevice::set_triggers`].
    fn set(&self, kind: Interrupt, start: u32, fds: &[Option<&EventFd>]) -> Result<(), VfioError>;
    /// See [`VfioDevice::disable`].
    fn disable(&self, kind: Interrupt) -> Result<(), VfioError>;
    /// See [`VfioDevice::unmask_intx_on`].
    fn unmask_on(&self, eventfd: &EventFd) -> Result<(), VfioError>;
}

impl Wires for VfioDevice {
    fn set(&self, kind: Interrupt, start: u32, fds: &[Option<&EventFd>]) -> Result<(), VfioError> {
        self.set_triggers(kind, start, fds)
    }
    fn disable(&self, kind: Interrupt) -> Result<(), VfioError> {
        VfioDevice::disable(self, kind)
    }
    fn unmask_on(&self, eventfd: &EventFd) -> Result<(), VfioError> {
        self.unmask_intx_on(eventfd)
    }
}

/// What VFIO has the device raise now.
enum Mode {
    Off,
    Pin(Arc<ResampledLine>),
    /// So many messages.
    Msi(usize),
    /// For each vector that the kernel has allocated, whether an eventfd is on it.
    Msix(Vec<bool>),
}

/// The kinds of interrupt that the guest can have of a function.
pub(crate) struct Kinds {
    pub pin: Option<Pin>,
    pub msi: Option<Msi>,
    pub msix: Option<Msix>,
}

/// All interrupts of one function.
pub(crate) struct Interrupts {
    at: Address,
    wires: Arc<dyn Wires>,
    services: Arc<dyn Services>,
    pub kinds: Kinds,
    /// The kernel cannot add MSI-X vectors to those allocated (before Linux 6.4).
    fixed: bool,
    mode: Mode,
}

impl Interrupts {
    /// No interrupt is raised until [`Interrupts::settle`].
    pub fn new(
        at: Address,
        wires: Arc<dyn Wires>,
        services: Arc<dyn Services>,
        kinds: Kinds,
        fixed: bool,
    ) -> Interrupts {
        Interrupts { at, wires, services, kinds, fixed, mode: Mode::Off }
    }

    /// The MSI capability's body is this now.
    pub fn msi_changed(&mut self, body: &[u8; 22]) -> Result<(), AssignError> {
        if let Some(msi) = &mut self.kinds.msi {
            msi.update(body)?;
        }
        self.settle(body)
    }

    /// MSI-X's control word is this now.
    pub fn msix_control(&mut self, control: u16, msi: &[u8; 22]) -> Result<(), AssignError> {
        if let Some(msix) = &mut self.kinds.msix {
            msix.set_control(control)?;
        }
        self.settle(msi)
    }

    /// The guest wrote to the MSI-X table.
    pub fn write_table(&mut self, offset: u64, data: &[u8], msi: &[u8; 22]) -> Result<(), AssignError> {
        if let Some(msix) = &mut self.kinds.msix {
            msix.write_table(offset, data)?;
        }
        self.settle(msi)
    }

    /// Has the device raise what the guest enabled. Does nothing when it does so already.
    pub fn settle(&mut self, msi: &[u8; 22]) -> Result<(), AssignError> {
        let messages = self.kinds.msi.as_ref().map_or(0, |unit| unit.vectors(msi).len());
        if self.kinds.msix.as_ref().is_some_and(Msix::enabled) {
            if !matches!(self.mode, Mode::Msix(_)) {
                self.silence()?;
                self.enable_msix()?;
            }
            self.wire_msix()
        } else if messages > 0 {
            if !matches!(self.mode, Mode::Msi(count) if count == messages) {
                self.silence()?;
                self.enable_msi(msi)?;
            }
            Ok(())
        } else {
            if !matches!(self.mode, Mode::Pin(_)) {
                self.silence()?;
                self.enable_pin()?;
            }
            Ok(())
        }
    }

    /// Has the device raise nothing.
    pub fn silence(&mut self) -> Result<(), AssignError> {
        match std::mem::replace(&mut self.mode, Mode::Off) {
            Mode::Off => Ok(()),
            Mode::Pin(line) => {
                let disabled = self.wires.disable(Interrupt::Intx);
                if let Some(pin) = self.kinds.pin {
                    self.services.remove_resampled_line(self.at, pin, &line)?;
                }
                Ok(disabled?)
            }
            Mode::Msi(_) => Ok(self.wires.disable(Interrupt::Msi)?),
            Mode::Msix(_) => Ok(self.wires.disable(Interrupt::Msix)?),
        }
    }

    /// Back to the state after reset: nothing enabled by the guest, nothing raised.
    pub fn reset(&mut self) -> Result<(), AssignError> {
        let silenced = self.silence();
        if let Some(msi) = &mut self.kinds.msi {
            msi.reset()?;
        }
        if let Some(msix) = &mut self.kinds.msix {
            msix.reset()?;
        }
        silenced
    }

    fn enable_pin(&mut self) -> Result<(), AssignError> {
        let Some(pin) = self.kinds.pin else { return Ok(()) };
        let line = self.services.resampled_line(self.at, pin)?;
        let wired = self
            .wires
            .set(Interrupt::Intx, 0, &[Some(&line.trigger)])
            .and_then(|()| self.wires.unmask_on(&line.resample));
        self.mode = Mode::Pin(line);
        wired.or_else(|error| {
            // Half of it may be in place.
            self.silence().and(Err(error.into()))
        })
    }

    fn enable_msi(&mut self, body: &[u8; 22]) -> Result<(), AssignError> {
        let Some(msi) = &self.kinds.msi else { return Ok(()) };
        let vectors = msi.vectors(body);
        let fds: Vec<_> = vectors.iter().map(|vector| Some(vector.eventfd())).collect();
        self.wires.set(Interrupt::Msi, 0, &fds)?;
        self.mode = Mode::Msi(vectors.len());
        Ok(())
    }

    /// Enables MSI-X in the device. A kernel that cannot add vectors later is asked for all of them now, and where
    /// the host has not so many, for those that are in use.
    fn enable_msix(&mut self) -> Result<(), AssignError> {
        let Some(msix) = &self.kinds.msix else { return Ok(()) };
        let mut fds = vec![None; msix.count()];
        for (index, vector) in msix.live() {
            fds[index] = Some(vector.eventfd());
        }
        let used = fds.iter().rposition(Option::is_some).map_or(1, |last| last + 1);
        if !self.fixed {
            fds.truncate(used);
        }
        if let Err(error) = self.wires.set(Interrupt::Msix, 0, &fds) {
            if fds.len() == used {
                return Err(error.into());
            }
            fds.truncate(used);
            self.wires.set(Interrupt::Msix, 0, &fds)?;
        }
        self.mode = Mode::Msix(fds.iter().map(Option::is_some).collect());
        Ok(())
    }

    /// Puts eventfds on vectors that came into use since, neighbours by one call.
    fn wire_msix(&mut self) -> Result<(), AssignError> {
        let (Some(msix), Mode::Msix(wired)) = (&self.kinds.msix, &mut self.mode) else { return Ok(()) };
        let new: Vec<_> =
            msix.live().filter(|(index, _)| !wired.get(*index).copied().unwrap_or(false)).collect();
        let Some((last, _)) = new.last() else { return Ok(()) };
        if *last >= wired.len() {
            if self.fixed {
                self.silence()?;
                return self.enable_msix();
            }
            wired.resize(last + 1, false);
        }
        let mut rest = new.as_slice();
        while let Some((first, _)) = rest.first() {
            let neighbours =
                rest.iter().enumerate().take_while(|(n, (index, _))| *index == first + n).count();
            let (run, more) = rest.split_at(neighbours);
            let fds: Vec<_> = run.iter().map(|(_, vector)| Some(vector.eventfd())).collect();
            self.wires.set(Interrupt::Msix, *first as u32, &fds)?;
            wired[*first..first + neighbours].fill(true);
            rest = more;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
