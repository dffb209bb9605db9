//! A SATA controller as in Intel's ICH9 (AHCI 1.3.1), with disks (ACS-3) and CD drives (MMC-6) on up to 32 ports.
//!
//! vCPUs only touch registers, each under its port's lock and for a moment. Commands are carried out by the
//! thread of their port, named `ahci-DISK`, which has a queue of its own to the disk: it reads each command once,
//! lets the device decode it (`ata`, `atapi`), and hands the guest's own memory to the disk.
//!
//! What a driver stops or resets while commands are under way they do not notice: they end, and only then does the
//! controller say that it has stopped (`port::state` has the rules).

mod action;
mod ata;
mod atapi;
mod command;
mod device;
#[cfg(any(test, feature = "driver"))]
pub mod driver;
mod fis;
mod hba;
mod options;
mod port;
mod registers;
mod text;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::disk::Disk;
use memory::{DeviceMemory, Ram};
use parking_lot::{Mutex, MutexGuard};
use pci::{
    Address, BarKind, BarSpec, ConfigSpace, Decoded, DecodedAt, Function, Identity, Msi, PciError, Pin,
    Services, Windows, capability, register,
};
use virtio::Report;

use hba::Hba;
pub use options::{AhciCd, AhciDisk, AhciError, AhciPort};
use port::{PlugError, Pluggable, Port, Unplugged};
use registers::{ABAR_SIZE, host, port as port_register};
pub use text::{AtaFirmware, AtaModel, AtaSerial, AtaText, AtaTextError};

/// The BAR with all registers.
const ABAR: usize = 5;
/// Where drivers of an ICH9 find the capabilities and the register that enables ports.
const MSI_AT: u16 = 0x80;
const PORT_CONTROL: u16 = 0x92;
/// How long disks may take to end what is under way when the machine is reset.
const RESET_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of the MSI capability behind its header.
const MSI_BODY: usize = 12;
/// Intel 82801IR/IO/IH (ICH9R/DO/DH), 6 ports, AHCI mode. It may have more ports here.
const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x2922,
    subsystem_vendor: 0x8086,
    subsystem: 0x2922,
    class: 0x01_0601,
    revision: 2,
};

/// A SATA controller on the PCI bus.
pub struct Ahci {
    at: Address,
    hba: Arc<Hba>,
    ports: Vec<Port>,
    config: Mutex<Config>,
    services: Arc<dyn Services>,
    /// The registers where the guest reads them as memory.
    visible: Mutex<Option<DeviceMemory>>,
}

struct Config {
    space: ConfigSpace,
    msi: Msi,
}

impl Config {
    /// What the MSI capability holds behind its header.
    fn msi_body(&self) -> [u8; MSI_BODY] {
        let mut body = [0; MSI_BODY];
        self.space.read(MSI_AT + 2, &mut body);
        body
    }
}

impl Ahci {
    /// A controller for `at` with as many ports as are given, 1 to 32, and what is behind them. `report` gets
    /// sentences about disks' queues that break.
    pub fn new(
        ports: Vec<AhciPort>,
        at: Address,
        ram: Arc<Ram>,
        services: Arc<dyn Services>,
        windows: &Windows,
        report: Report,
    ) -> Result<Ahci, AhciError> {
        if !(1..=32).contains(&ports.len()) {
            return Err(AhciError::Ports { at, ports: ports.len() });
        }
        let (name, line) = (format!("ahci {at}"), services.line(at, Pin::of(at)));
        let hba = Hba::new(name, ports.len() as u8, ram, line, report);
        let hba = Arc::new(hba.map_err(|cause| AhciError::Registers { at, cause })?);
        let bar = BarSpec::new(ABAR, BarKind::Memory32 { prefetchable: false }, ABAR_SIZE as u64);
        let mut space = ConfigSpace::new(IDENTITY, &[bar.expect("a possible BAR")], windows);
        space.set(register::INTERRUPT_PIN, &[Pin::of(at) as u8]);
        let mut msi = Msi::new(at, services.clone(), 1, false);
        let (body, writable) = msi.capability();
        msi.set_bus_master(false, &body).expect("no vector is there yet");
        space.place_capability(MSI_AT, capability::MSI, &body, &writable);
        // Drivers of an ICH9 enable the first ports here, which changes nothing.
        space.set(PORT_CONTROL, &[0x3f, 0]);
        space.allow(PORT_CONTROL, &[0x3f, 0]);
        let mut made = Vec::with_capacity(ports.len());
        for (index, what) in (0u8..).zip(ports) {
            let port =
                Port::new(index, hba.clone()).map_err(|cause| AhciError::Start { port: index, cause })?;
            let pluggable = match what {
                AhciPort::Empty => None,
                AhciPort::Disk(disk) => Some(disk.prepare(at, index)?),
                AhciPort::Cd(drive) => Some(drive.prepare(at, index)?),
            };
            if let Some(pluggable) = pluggable {
                plug(&port, index, pluggable)?;
            }
            made.push(port);
        }
        let config = Mutex::new(Config { space, msi });
        Ok(Ahci { at, hba, ports: made, config, services, visible: Mutex::default() })
    }

    /// How many ports it has, with and without a device.
    pub fn ports(&self) -> u8 {
        // 32 at most.
        self.ports.len() as u8
    }

    /// Plugs a disk into an empty port; the guest is told.
    pub fn plug_disk(&self, port: u8, disk: AhciDisk) -> Result<(), AhciError> {
        plug(self.port(port)?, port, disk.prepare(self.at, port)?)
    }

    /// Plugs a drive into an empty port; the guest is told.
    pub fn plug_cd(&self, port: u8, drive: AhciCd) -> Result<(), AhciError> {
        plug(self.port(port)?, port, drive.prepare(self.at, port)?)
    }

    /// Takes away what is on a port, whether or not the guest uses it; the guest is told. Waits some seconds for
    /// what is under way. A disk that does not answer in that time ([`AhciError::Leaving`]) is gone for the guest,
    /// and the port is free when it has answered.
    pub fn unplug(&self, port: u8) -> Result<(), AhciError> {
        match self.port(port)?.unplug() {
            Unplugged::Gone => Ok(()),
            Unplugged::Leaving => Err(AhciError::Leaving { port }),
            Unplugged::Missing => Err(AhciError::Missing { port, what: "device" }),
        }
    }

    /// Puts another disc into a drive, in the place of what is there. When the guest has locked the tray it is
    /// asked to let the disc go, and this fails ([`AhciError::TrayLocked`]), unless `force` is given.
    pub fn insert_disc(&self, port: u8, disc: Arc<Disk>, force: bool) -> Result<(), AhciError> {
        self.change_disc(port, Some(disc), force)
    }

    /// Takes the disc out of a drive; a locked tray is treated as by [`Ahci::insert_disc`]. The drive's thread lets
    /// go of the disc when the command under way, if any, has ended.
    pub fn eject_disc(&self, port: u8, force: bool) -> Result<(), AhciError> {
        self.change_disc(port, None, force)
    }

    /// The disc in a drive; the guest may have ejected it.
    pub fn disc(&self, port: u8) -> Result<Option<Arc<Disk>>, AhciError> {
        let tray = self.port(port)?.tray().ok_or(AhciError::Missing { port, what: "CD drive" })?;
        Ok(tray.disc())
    }

    fn change_disc(&self, index: u8, disc: Option<Arc<Disk>>, force: bool) -> Result<(), AhciError> {
        let port = self.port(index)?;
        let tray = port.tray().ok_or(AhciError::Missing { port: index, what: "CD drive" })?;
        let outcome = options::put(&tray, disc, force);
        port.look_again();
        outcome
    }

    fn port(&self, port: u8) -> Result<&Port, AhciError> {
        let last = self.ports.len() as u8 - 1;
        self.ports.get(usize::from(port)).ok_or(AhciError::NoPort { port, last })
    }

    fn write_register(&self, offset: u64, value: u32) {
        if let Some((port, register)) = self.port_at(offset) {
            return port.write(register, value);
        }
        match offset as usize {
            host::GHC if value & host::GHC_RESET != 0 => {
                self.ports.iter().for_each(Port::reset);
                self.hba.reset();
            }
            host::GHC => self.hba.enable(value & host::GHC_INTERRUPTS != 0),
            host::IS => self.hba.clear_status(value),
            _ => {}
        }
    }

    /// The port whose register lies at an offset, and which one it is.
    fn port_at(&self, offset: u64) -> Option<(&Port, u64)> {
        let offset = offset.checked_sub(port_register::FIRST)?;
        let port = self.ports.get((offset / port_register::SIZE) as usize)?;
        Some((port, offset % port_register::SIZE))
    }

    /// Sends interrupts where configuration space says.
    fn route(&self, config: &Config) {
        let body = config.msi_body();
        let msi = body[0] & 1 != 0;
        let disabled = config.space.command() & register::COMMAND_INTX_DISABLE != 0;
        self.hba.route(msi, config.msi.vectors(&body).first().cloned(), disabled);
    }

    /// The driver allows or forbids the controller to reach memory. When it is forbidden, this waits until nothing is under
    /// way that does.
    fn set_bus_master(&self, config: &mut Config, allowed: bool) -> Result<(), PciError> {
        let gate = self.hba.gate();
        if !allowed && !gate.is_shut() {
            let hung = gate.close();
            // vCPUs write frames, too, each under the lock of a port.
            self.ports.iter().for_each(Port::wait_for_writers);
            if hung > 0 {
                self.hba.host_failed(&format_args!(
                    "bus mastering was switched off, and {hung} of its ports do not stop. What the disk has under way may \
                     still be written to the guest's memory; see the host's log for the disk."
                ));
            }
        }
        // What ports have ended just now is told by message, and what comes later is not.
        let outcome = config.msi.set_bus_master(allowed, &config.msi_body());
        if allowed {
            gate.open();
        }
        outcome
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock()
    }
}

impl Drop for Ahci {
    /// All ports are asked to end before the first is waited for, so that disks that hang cost their time once.
    fn drop(&mut self) {
        self.ports.iter().for_each(Port::stop);
        let until = Instant::now() + port::REMOVAL_LIMIT;
        self.ports.iter().for_each(|port| port.end(until.saturating_duration_since(Instant::now())));
    }
}

fn plug(port: &Port, index: u8, pluggable: Pluggable) -> Result<(), AhciError> {
    port.plug(pluggable).map_err(|why| match why {
        PlugError::Occupied => AhciError::Occupied { port: index },
        PlugError::Leaving => AhciError::Leaving { port: index },
        PlugError::Thread(cause) => AhciError::Start { port: index, cause },
    })
}

impl Function for Ahci {
    fn name(&self) -> &str {
        self.hba.name()
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let mut config = self.config();
        let pin = if self.hba.pin_wanted() { register::STATUS_INTERRUPT } else { 0 };
        let status = config.space.u16(register::STATUS) & !register::STATUS_INTERRUPT | pin;
        config.space.set(register::STATUS, &status.to_le_bytes());
        config.space.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        let config = &mut *self.config();
        config.space.write(offset, data);
        let touches = |at: u16, len: u16| offset < at + len && offset as usize + data.len() > usize::from(at);
        let (command, msi) = (touches(register::COMMAND, 2), touches(MSI_AT, 2 + MSI_BODY as u16));
        let mut errors = Vec::new();
        if command {
            let allowed = config.space.command() & register::COMMAND_BUS_MASTER != 0;
            errors.extend(self.set_bus_master(config, allowed).err());
        }
        if msi {
            errors.extend(config.msi.update(&config.msi_body()).err());
        }
        if command || msi {
            self.route(config);
        }
        PciError::all(errors)
    }

    fn decoded(&self) -> Decoded {
        self.config().space.decoded()
    }

    fn read_bar(&self, _: usize, offset: u64, data: &mut [u8]) {
        let mut at = offset;
        let mut left = data;
        while !left.is_empty() {
            let skip = (at % 4) as usize;
            let (here, rest) = left.split_at_mut(left.len().min(4 - skip));
            let register = self.hba.shown().load(at as usize - skip);
            here.copy_from_slice(&register.to_le_bytes()[skip..][..here.len()]);
            at += here.len() as u64;
            left = rest;
        }
    }

    /// Registers are written whole; other writes are ignored (AHCI 1.3.1, section 3).
    fn write_bar(&self, _: usize, offset: u64, data: &[u8]) -> Result<(), PciError> {
        if offset.is_multiple_of(4) {
            for (word, at) in data.chunks_exact(4).zip((offset..).step_by(4)) {
                self.write_register(at, u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            }
        }
        Ok(())
    }

    /// No register changes by being read, so the guest reads them as memory, without an exit.
    fn bar_moved(&self, _: usize, at: Option<DecodedAt>) -> Result<(), PciError> {
        let mut visible = self.visible.lock();
        if let Some(memory) = &*visible {
            self.services.remove_memory(self.at, memory)?;
            *visible = None;
        }
        if let Some(DecodedAt::Memory(range)) = at
            && let Some(memory) = self.hba.shown().at(self.hba.name(), range)
        {
            self.services.add_memory(self.at, &memory)?;
            *visible = Some(memory);
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), PciError> {
        self.hba.gate().slam();
        self.ports.iter().for_each(Port::reset);
        let until = Instant::now() + RESET_LIMIT;
        let hung = self.ports.iter().position(|port| {
            // All of them have begun to reset before the first is waited for.
            !port.power_on(until.saturating_duration_since(Instant::now()))
        });
        if let Some(port) = hung {
            let what = format!(
                "port {port}: the disk has not ended in {} s what was under way, which could still write into the RAM \
                 of a guest that starts anew. See the host's log for the disk.",
                RESET_LIMIT.as_secs()
            );
            return Err(PciError::Function { function: self.name().to_owned(), what });
        }
        self.hba.reset();
        let config = &mut *self.config();
        let outcomes = [config.msi.set_bus_master(false, &config.msi_body()), config.msi.reset()];
        let outcome = PciError::all(outcomes.into_iter().filter_map(Result::err));
        let (body, _) = config.msi.capability();
        config.space.set(MSI_AT + 2, &body);
        config.space.reset();
        self.route(config);
        outcome
    }
}
