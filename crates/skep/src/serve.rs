//! What the control socket of a running VM serves.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use config::DiskSource;
use control::api::{
    Dma, Done, Drive, Eject, Info, Insert, Memory, MemoryFiles, Plug, Plugged, State, Stats, Unplug,
    Unplugged, VERSION,
};
use control::{Journal, Refused, Source, rfc3339};
use machine::{Control, DriveError, DriveReading, Letting, Phase, TrayLock};
use memory::MemoryMap;

use crate::view;

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

    fn map(&self) -> Result<Arc<MemoryMap>, Refused> {
        self.control.memory().ok_or_else(|| Refused("the VM is ending and has no memory now".to_owned()))
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

fn reached(wanted: Phase, phase: Phase, what: &str) -> Result<Done, Refused> {
    if phase == wanted || phase == Phase::Ending {
        return Ok(Done { state: state(phase) });
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
    fn info(&self) -> Result<Info, Refused> {
        Ok(Info {
            api: VERSION,
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.state(),
            reason: self.control.why_paused(),
            pid: std::process::id(),
            since: rfc3339(self.since),
            listens_to_button: self.control.guest_listens_to_button(),
        })
    }

    fn dma(&self) -> Result<Dma, Refused> {
        let (map, domains, faults) = (self.map()?, self.control.domains(), self.control.faults());
        Ok(map.look(|contents, _| view::dma(&domains, contents, &faults)))
    }

    fn memory(&self) -> Result<Memory, Refused> {
        Ok(view::memory(&*self.map()?))
    }

    fn memory_fds(&self) -> Result<MemoryFiles, Refused> {
        view::memory_files(&*self.map()?)
    }

    fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    fn stats(&self) -> Result<Stats, Refused> {
        let drives = self.control.drives().into_iter().map(drive).collect();
        Ok(Stats { disks: view::disks(&self.control.disks()), drives })
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
        let disk = disk.describe().map_err(|findings| Refused(findings.to_string()))?;
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

    fn pause(&self) -> Result<Done, Refused> {
        reached(Phase::Paused, self.control.pause("as asked on the control socket"), "pause")
    }

    fn resume(&self) -> Result<Done, Refused> {
        let phase = self.control.resume();
        match self.control.why_paused() {
            Some(why) if phase == Phase::Paused => Err(Refused(format!("the VM is still paused: {why}"))),
            _ => reached(Phase::Running, phase, "resume"),
        }
    }

    fn press_power_button(&self) -> Result<Done, Refused> {
        self.control.press_power_button();
        Ok(Done { state: self.state() })
    }

    fn stop(&self) -> Result<Done, Refused> {
        self.control.stop();
        Ok(Done { state: self.state() })
    }
}
