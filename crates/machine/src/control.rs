//! The way to a running VM from outside.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use devices::{Power, SerialPort};
use disk::Reading;
use dma::Domain;
use faults::{Counts, Tally};
use memory::MemoryMap;

use crate::disks::{
    DisksOutside, DriveError, DriveReading, PlugError, Plugged, TrayLock, UnplugError, Unplugged, drives,
};
use crate::events::phase::{Phase, Phases};
use crate::events::{Event, Events};

/// The way to a running VM from outside.
///
/// It keeps no part of the VM: after the VM has ended, it returns nothing.
#[derive(Clone)]
pub struct Control {
    pub(crate) events: Events,
    pub(crate) serial: Arc<SerialPort>,
    pub(crate) power: Weak<Power>,
    pub(crate) phases: Arc<Phases>,
    pub(crate) domains: Vec<Weak<Domain>>,
    pub(crate) map: Weak<MemoryMap>,
    pub(crate) faults: Tally,
    pub(crate) disks: DisksOutside,
}

/// How long a VM may take to pause or resume before the call returns an error that says so.
const PAUSE_LIMIT: Duration = Duration::from_secs(1);

impl Control {
    /// Presses the power button: the guest shuts down when it listens.
    pub fn press_power_button(&self) {
        self.events.send(Event::PressPowerButton);
    }

    /// Whether the guest has enabled the power button's ACPI event. What in the guest acts on it may start later.
    pub fn guest_listens_to_button(&self) -> bool {
        self.power.upgrade().is_some_and(|power| power.guest_listens())
    }

    /// Pauses the guest; the VM's owner gets `why`. Returns what the VM does then.
    pub fn pause(&self, why: impl Into<String>) -> Phase {
        self.phases.after(|| self.events.send(Event::Pause(why.into())), Phase::Paused, PAUSE_LIMIT)
    }

    /// Makes the guest run again, after the held requests of disks have been tried again; if they fail again, it
    /// stays paused. Returns what the VM does then.
    pub fn resume(&self) -> Phase {
        self.phases.after(|| self.events.send(Event::Resume), Phase::Running, PAUSE_LIMIT)
    }

    /// What the VM does now.
    pub fn phase(&self) -> Phase {
        self.phases.now()
    }

    /// Why it is paused, if it is.
    pub fn why_paused(&self) -> Option<String> {
        self.phases.why()
    }

    /// Its DMA domains. While a caller keeps one, the VM's devices cannot be given back.
    pub fn domains(&self) -> Vec<Arc<Domain>> {
        self.domains.iter().filter_map(Weak::upgrade).collect()
    }

    /// How many DMA faults were reported so far.
    pub fn faults(&self) -> Counts {
        self.faults.read()
    }

    /// Its memory map, as long as it has one.
    pub fn memory(&self) -> Option<Arc<MemoryMap>> {
        self.map.upgrade()
    }

    /// Its disks, with what went through them so far and what waits.
    pub fn disks(&self) -> Vec<Reading> {
        self.disks.read()
    }

    /// Its CD drives, with what is in them.
    pub fn drives(&self) -> Vec<DriveReading> {
        self.disks.drives()
    }

    /// Puts a file or device of this host into the CD drive that is called so, or has a disc called so in it, in the
    /// place of what is there. Returns when that is closed, or after some seconds.
    pub fn insert_disc(&self, drive: &str, path: &Path, tray: TrayLock) -> Result<DriveReading, DriveError> {
        // First, to fail early if the VM has ended. Not held while the file is opened, which may take any time: the VM can
        // end during that.
        drop(self.disks.drive(drive)?);
        let disc = drives::open(path)?;
        self.disks.drive(drive)?.insert(disc, tray)
    }

    /// Takes out what is in a CD drive, in the same way. Nothing, if it is empty.
    pub fn eject_disc(&self, drive: &str, tray: TrayLock) -> Result<DriveReading, DriveError> {
        self.disks.drive(drive)?.eject(tray)
    }

    /// Plugs a SATA disk in, on the first free port of the controller that its description names, or of the first
    /// controller that has one; the guest is notified.
    pub fn plug_disk(&self, disk: &config::Disk) -> Result<Plugged, PlugError> {
        self.disks.plug(disk)
    }

    /// Takes the SATA disk of this name away, whether or not the guest uses it. Returns when it is closed, or after some
    /// seconds.
    pub fn unplug_disk(&self, name: &str) -> Result<Unplugged, UnplugError> {
        self.disks.unplug(name)
    }

    /// Ends the VM now, whatever the guest does.
    pub fn stop(&self) {
        self.events.send(Event::Stop);
    }

    /// Types on the serial console and waits while the guest reads slowly, but at most `patience` without any
    /// progress; returns how much the guest took.
    pub fn type_on_console(&self, bytes: &[u8], patience: Duration) -> usize {
        let (mut done, mut progress) = (0, Instant::now());
        while done < bytes.len() && progress.elapsed() < patience {
            match self.serial.receive(&bytes[done..]) {
                0 => std::thread::sleep(Duration::from_millis(5)),
                taken => (done, progress) = (done + taken, Instant::now()),
            }
        }
        done
    }
}
