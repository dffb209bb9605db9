//! What all ports of a controller share: the interrupt, bus mastering, RAM, and the way to people.

use std::fmt;
use std::io;
use std::sync::Arc;

use memory::{Ram, RegisterPages};
use parking_lot::{Mutex, MutexGuard};
use pci::{Gate, Line, Vector};
use virtio::{Report, Reports};

use super::registers::{ABAR_SIZE, host, port};

/// The part of a controller that its ports know.
pub(super) struct Hba {
    reports: Reports,
    ports: u8,
    ram: Arc<Ram>,
    /// Bus mastering.
    gate: Gate,
    line: Arc<dyn Line>,
    interrupt: Mutex<Interrupt>,
    /// What vCPUs read: equal to the registers whenever nobody is changing them.
    shown: Arc<RegisterPages>,
}

/// The first tier of interrupts (AHCI 1.3.1, 10.6.2).
#[derive(Default)]
struct Interrupt {
    /// IS: ports that wanted one since the driver last looked.
    status: u32,
    /// Ports that want one now.
    wanted: u32,
    /// GHC.IE.
    enabled: bool,
    /// The command register forbids the pin.
    pin_disabled: bool,
    /// Where messages go, while MSI is on.
    vector: Option<Arc<dyn Vector>>,
    msi: bool,
    asserted: bool,
    /// Ports whose reset waits for commands that are under way.
    resetting: u32,
}

impl Hba {
    /// With so many ports.
    pub fn new(
        name: String,
        ports: u8,
        ram: Arc<Ram>,
        line: Arc<dyn Line>,
        report: Report,
    ) -> io::Result<Hba> {
        let (gate, interrupt) = (Gate::shut(), Mutex::default());
        let shown = Arc::new(RegisterPages::new(ABAR_SIZE)?);
        shown.store(host::CAP, host::CAPABILITIES | u32::from(ports - 1));
        shown.store(host::GHC, host::GHC_AHCI);
        shown.store(host::PI, u32::MAX >> (32 - ports));
        shown.store(host::VS, host::VERSION);
        let reports = Reports::new(name, report);
        Ok(Hba { reports, ports, ram, gate, line, interrupt, shown })
    }

    /// "ahci 00:03.0".
    pub fn name(&self) -> &str {
        self.reports.name()
    }

    /// Tells people something that the driver can cause as often as it likes.
    pub fn report(&self, what: &dyn fmt::Display) {
        self.reports.driver(what);
    }

    /// Tells people that this host failed at something.
    pub fn host_failed(&self, what: &dyn fmt::Display) {
        self.reports.host(what);
    }

    /// How many ports there are, with and without a device.
    pub fn ports(&self) -> u8 {
        self.ports
    }

    /// All of RAM, to make buffers of it.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// RAM, while the driver allows the controller to reach it.
    pub fn reach(&self) -> Option<&Ram> {
        (!self.gate.is_shut()).then_some(&*self.ram)
    }

    /// Bus mastering, as the threads of ports obey it.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Port `port` wants an interrupt or no longer does.
    pub fn want(&self, port: u8, wanted: bool) {
        let mut state = self.interrupt();
        let bit = 1 << port;
        state.wanted = state.wanted & !bit | u32::from(wanted) << port;
        if wanted {
            let new = state.status & bit == 0;
            state.status |= bit;
            self.send(&mut state, new);
        }
    }

    /// All registers, as vCPUs read them.
    pub fn shown(&self) -> &Arc<RegisterPages> {
        &self.shown
    }

    /// A register of a port is this now.
    pub fn show(&self, port: u8, register: u64, value: u32) {
        let at = port::FIRST as usize + port::SIZE as usize * usize::from(port) + register as usize;
        if self.shown.load(at) != value {
            self.shown.store(at, value);
        }
    }

    /// A reset of a port waits for commands that are under way, or no longer does.
    pub fn set_resetting(&self, port: u8, resetting: bool) {
        let mut state = self.interrupt();
        state.resetting = state.resetting & !(1 << port) | u32::from(resetting) << port;
        self.show_control(&state);
    }

    /// The driver clears bits of IS; those of ports that still want an interrupt come back at once. What is
    /// left is worth another message (10.6.2.1).
    pub fn clear_status(&self, bits: u32) {
        let mut state = self.interrupt();
        state.status = state.status & !bits | state.wanted;
        self.send(&mut state, true);
    }

    /// The driver writes GHC.IE.
    pub fn enable(&self, enabled: bool) {
        let mut state = self.interrupt();
        let rises = enabled && !state.enabled;
        state.enabled = enabled;
        self.show_control(&state);
        self.send(&mut state, rises);
    }

    /// Where interrupts go: the pin unless it is disabled, or messages.
    pub fn route(&self, msi: bool, vector: Option<Arc<dyn Vector>>, pin_disabled: bool) {
        let mut state = self.interrupt();
        let rises = msi && !state.msi;
        state.msi = msi;
        state.vector = vector;
        state.pin_disabled = pin_disabled;
        self.send(&mut state, rises);
    }

    /// Whether the pin is asserted, or would be if it were not disabled.
    pub fn pin_wanted(&self) -> bool {
        let state = self.interrupt();
        state.enabled && state.status != 0 && !state.msi
    }

    /// The controller's own registers, as after power-on.
    pub fn reset(&self) {
        let mut state = self.interrupt();
        state.enabled = false;
        state.status = state.wanted;
        self.show_control(&state);
        self.send(&mut state, false);
    }

    /// GHC.
    fn show_control(&self, state: &Interrupt) {
        let when = |condition: bool, bit: u32| if condition { bit } else { 0 };
        let resetting = when(state.resetting != 0, host::GHC_RESET);
        self.shown.store(host::GHC, host::GHC_AHCI | when(state.enabled, host::GHC_INTERRUPTS) | resetting);
    }

    /// Shows IS, and brings the pin to where it belongs, or sends a message if there is something new to tell.
    fn send(&self, state: &mut Interrupt, new: bool) {
        self.shown.store(host::IS, state.status);
        let pending = state.enabled && state.status != 0;
        if pending
            && new
            && let Some(vector) = &state.vector
        {
            // The only failure is a counter at its limit: then the interrupt is pending already.
            vector.eventfd().write(1).ok();
        }
        let asserted = pending && !state.msi && !state.pin_disabled;
        if asserted != state.asserted {
            state.asserted = asserted;
            self.line.set(asserted);
        }
    }

    fn interrupt(&self) -> MutexGuard<'_, Interrupt> {
        self.interrupt.lock()
    }
}
