//! Interrupts of the device, from the host's kernel into the guest's with no code of skep on the way.
//!
//! With VFIO a device raises one kind at a time. Which one follows from what the guest enabled: MSI-X, else MSI, else
//! the pin. An eventfd of each vector goes to VFIO on one side and, through [`pci::Vector`], to KVM on the other.

use std::sync::Arc;

use dma::vfio::{Interrupt, VfioDevice, VfioError};
use pci::{Address, Msi, Msix, Pin, ResampledLine, Services};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{AssignError, all};

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

/// What the device raises now, through VFIO.
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
        let updated = self.kinds.msi.as_mut().and_then(|msi| msi.update(body).err());
        both(updated.map(AssignError::from), self.settle(body).err())
    }

    /// MSI-X's control word is this now.
    pub fn msix_control(&mut self, control: u16, msi: &[u8; 22]) -> Result<(), AssignError> {
        let updated = self.kinds.msix.as_mut().and_then(|msix| msix.set_control(control).err());
        both(updated.map(AssignError::from), self.settle(msi).err())
    }

    /// The guest wrote to the MSI-X table.
    pub fn write_table(&mut self, offset: u64, data: &[u8], msi: &[u8; 22]) -> Result<(), AssignError> {
        let written = self.kinds.msix.as_mut().and_then(|msix| msix.write_table(offset, data).err());
        both(written.map(AssignError::from), self.settle(msi).err())
    }

    /// Makes the device raise what the guest enabled. Does nothing if it does so already.
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

    /// Stops all interrupts of the device.
    pub fn silence(&mut self) -> Result<(), AssignError> {
        match std::mem::replace(&mut self.mode, Mode::Off) {
            Mode::Off => Ok(()),
            Mode::Pin(line) => {
                let disabled = self.wires.disable(Interrupt::Intx).err();
                let remove = |pin| self.services.remove_resampled_line(self.at, pin, &line).err();
                let removed = self.kinds.pin.and_then(remove);
                both(disabled.map(AssignError::from), removed.map(AssignError::from))
            }
            Mode::Msi(_) => Ok(self.wires.disable(Interrupt::Msi)?),
            Mode::Msix(_) => Ok(self.wires.disable(Interrupt::Msix)?),
        }
    }

    /// Back to the state after reset: nothing enabled by the guest, nothing raised. Tries everything.
    pub fn reset(&mut self) -> Result<(), AssignError> {
        let mut errors = Vec::from_iter(self.silence().err());
        let msi = self.kinds.msi.as_mut().and_then(|msi| msi.reset().err());
        let msix = self.kinds.msix.as_mut().and_then(|msix| msix.reset().err());
        errors.extend(msi.into_iter().chain(msix).map(AssignError::from));
        all(errors)
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

fn both(one: Option<AssignError>, other: Option<AssignError>) -> Result<(), AssignError> {
    all(one.into_iter().chain(other).collect())
}

#[cfg(test)]
pub(crate) mod tests;
