//! What the control socket of a running VM serves.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use config::{DiskSource, ModelName};
use control::api::{Drive, Eject, Info, Insert, Plug, Plugged, State, Unplug, Unplugged, VERSION};
use control::{Journal, Refused, Source, rfc3339};
use dma::Domain;
use machine::{Control, DriveError, DriveReading, Letting, Phase, Reading, TrayLock};
use memory::MemoryMap;

/// A VM that runs in this process.
pub struct Running {
    name: String,
    since: SystemTime,
    control: Control,
    journal: Arc<Journal>,
}

impl Running {
    /// The VM with this name, which began to run now.
    pub fn new(name: &str, control: Control, journal: Arc<Journal>) -> Running {
        Running { name: name.to_owned(), since: SystemTime::now(), control, journal }
    }

    fn state(&self) -> State {
        state(self.control.phase())
    }
}

fn state(phase: Phase) -> State {
    match phase {
        Phase::Starting => State::Starting,
        Phase::Running => State::Running,
        Phase::Paused => State::Paused,
        Phase::Ending => State::Ending,
    }
}

fn reached(wanted: Phase, phase: Phase, what: &str) -> Result<State, Refused> {
    if phase == wanted || phase == Phase::Ending {
        return Ok(state(phase));
    }
    Err(Refused(format!("the VM will {what} when its current work is done, and has not yet. Ask again")))
}

fn drive(DriveReading { name, disc, leaving }: DriveReading) -> Drive {
    Drive { name, disc, leaving }
}

fn changed(result: Result<DriveReading, DriveError>) -> Result<Drive, Refused> {
    result.map(drive).map_err(|why| Refused(why.to_string()))
}

fn tray(force: bool) -> TrayLock {
    if force { TrayLock::Overridden } else { TrayLock::Respected }
}

/// Whoever asks may be in another folder.
fn absolute(path: &Path) -> Result<(), Refused> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(Refused(format!("{path:?} is not an absolute path. Write it from / on")))
}

impl Source for Running {
    fn info(&self) -> Info {
        Info {
            api: VERSION,
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.state(),
            reason: self.control.why_paused(),
            pid: std::process::id(),
            since: rfc3339(self.since),
            listens_to_button: self.control.guest_listens_to_button(),
        }
    }

    fn domains(&self) -> Vec<Arc<Domain>> {
        self.control.domains()
    }

    fn memory(&self) -> Option<Arc<MemoryMap>> {
        self.control.memory()
    }

    fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    fn disks(&self) -> Vec<Reading> {
        self.control.disks()
    }

    fn drives(&self) -> Vec<Drive> {
        self.control.drives().into_iter().map(drive).collect()
    }

    fn insert(&self, Insert { drive, disc, force }: &Insert) -> Result<Drive, Refused> {
        let path = Path::new(disc);
        absolute(path)?;
        changed(self.control.insert_disc(drive, path, tray(*force)))
    }

    fn eject(&self, Eject { drive, force }: &Eject) -> Result<Drive, Refused> {
        changed(self.control.eject_disc(drive, tray(*force)))
    }

    fn plug(&self, Plug { disk }: &Plug) -> Result<Plugged, Refused> {
        let disk = config::describe_disk("the disk", disk, ModelName::Ahci);
        let disk = disk.map_err(|findings| Refused(findings.to_string()))?;
        if let DiskSource::File(file) = &disk.source {
            absolute(file.path.as_path())?;
        }
        let plugged = self.control.plug_disk(&disk).map_err(|why| Refused(why.to_string()))?;
        Ok(Plugged { disk: plugged.name, place: plugged.place })
    }

    fn unplug(&self, Unplug { disk }: &Unplug) -> Result<Unplugged, Refused> {
        let unplugged = self.control.unplug_disk(disk).map_err(|why| Refused(why.to_string()))?;
        Ok(Unplugged { disk: unplugged.name, leaving: unplugged.state == Letting::Open })
    }

    fn pause(&self) -> Result<State, Refused> {
        reached(Phase::Paused, self.control.pause("as asked on the control socket"), "pause")
    }

    fn resume(&self) -> Result<State, Refused> {
        let phase = self.control.resume();
        match self.control.why_paused() {
            Some(why) if phase == Phase::Paused => Err(Refused(format!("the VM is still paused: {why}"))),
            _ => reached(Phase::Running, phase, "resume"),
        }
    }

    fn press_power_button(&self) -> Result<State, Refused> {
        self.control.press_power_button();
        Ok(self.state())
    }

    fn stop(&self) -> Result<State, Refused> {
        self.control.stop();
        Ok(self.state())
    }
}
