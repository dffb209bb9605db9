//! CD drives, whose discs are changed from outside while the VM runs.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use config::OnError;
use devices::ahci::AhciError;
use disk::{Disk, DiskOptions, OpenError, Tally};
use parking_lot::{Mutex, MutexGuard};

use super::close::let_go;
use super::sata_port::SataPort;
use crate::disks::failures;
use crate::events::{Event, Events};

/// Discs of a drive whose tallies are kept, the one that is in it included.
const KEPT: usize = 64;

/// What happens to the guest's lock on a drive's tray: a disc that is in use is locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrayLock {
    /// The disc stays, and skep asks the guest to release it.
    Respected,
    /// The disc is taken, whatever the guest does with it.
    Overridden,
}

/// A CD drive as it is at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DriveReading {
    /// The drive: cd0 for the first of the description.
    pub name: String,
    /// What is in it.
    pub disc: Option<String>,
    /// What was taken out just now and is not closed yet, because a request of the guest is under way.
    pub leaving: Option<String>,
}

/// "cd0 (holds /images/a.iso)".
impl fmt::Display for DriveReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.disc {
            Some(disc) => write!(f, "{} (holds {disc})", self.name),
            None => write!(f, "{} (empty)", self.name),
        }
    }
}

/// Why a drive's disc was not changed.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// There is no such drive.
    #[error("there is no CD drive {name}. {}", those(drives))]
    Missing {
        /// What was asked for.
        name: String,
        /// The drives that there are.
        drives: Vec<DriveReading>,
    },
    /// The guest has locked the tray.
    #[error(
        "the guest uses {disc}, the disc in {drive}, and has locked the tray. skep has asked it to release the disc. Unmount it in \
         the guest and try again, or take it by force (--force): programs in the guest that still read it then get errors"
    )]
    Locked {
        /// The drive.
        drive: String,
        /// What is in it.
        disc: String,
    },
    /// What was to be put in cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The drive does not take it.
    #[error(transparent)]
    Ahci(AhciError),
}

fn those(drives: &[DriveReading]) -> String {
    if drives.is_empty() {
        return "The VM has none; disks with model=ahci-cd are discs in one".to_owned();
    }
    let drives: Vec<String> = drives.iter().map(ToString::to_string).collect();
    format!("There are: {}", drives.join(", "))
}

/// Opens a file or device of this host that is to be put into a drive.
pub fn open(path: &Path) -> Result<Disk, OpenError> {
    Disk::open(&DiskOptions::new(path).read_only()).map_err(|error| match error {
        // A drive takes the bytes as they are: there is no format to say.
        OpenError::Unsaid { path, looks, .. } => OpenError::Format {
            what: format!("the file looks like {looks}"),
            hint: "A CD drive takes raw discs (.iso) only. Copy it to one with `qemu-img convert -O raw IMAGE COPY`.",
            path,
        },
        other => other,
    })
}

/// A CD drive of the VM.
pub struct Drive {
    name: String,
    at: SataPort,
    on_error: Option<OnError>,
    events: Events,
    /// Of discs that are or were in it, the latest last; held while a disc is changed.
    tallies: Mutex<VecDeque<Tally>>,
}

impl Drive {
    /// A drive with a disc in it.
    pub(super) fn new(
        name: String,
        at: SataPort,
        on_error: Option<OnError>,
        disc: Tally,
        events: Events,
    ) -> Drive {
        Drive { name, at, on_error, events, tallies: Mutex::new([disc].into()) }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub(super) fn at(&self) -> &SataPort {
        &self.at
    }

    /// What is in it; the guest may have ejected it.
    pub fn disc(&self) -> Option<Arc<Disk>> {
        // The port has had a drive from the start, and drives are not unplugged.
        self.at.controller.disc(self.at.number).ok().flatten()
    }

    /// Whether a disc of this name is in it.
    pub fn holds(&self, disc: &str) -> bool {
        self.disc().is_some_and(|there| there.name() == disc)
    }

    /// The drive as it is now.
    pub fn read(&self) -> DriveReading {
        let disc = self.disc().map(|disc| disc.name().to_owned());
        DriveReading { name: self.name.clone(), disc, leaving: None }
    }

    /// What went through the discs that are or were in it.
    pub fn tallies(&self) -> Vec<Tally> {
        self.lock().iter().cloned().collect()
    }

    /// Puts a disc in, in the place of what is there.
    pub fn insert(&self, disc: Disk, tray: TrayLock) -> Result<DriveReading, DriveError> {
        let disc = Arc::new(disc);
        disc.remarks().iter().for_each(|remark| self.events.trouble(remark.clone()));
        // Before its queue is prepared.
        failures::watch(&disc, self.on_error, &self.events);
        self.change(Some(disc), tray)
    }

    /// Takes out what is there. Nothing, if it is empty.
    pub fn eject(&self, tray: TrayLock) -> Result<DriveReading, DriveError> {
        self.change(None, tray)
    }

    /// Returns when the disc that was there is closed, or has taken long.
    fn change(&self, disc: Option<Arc<Disk>>, tray: TrayLock) -> Result<DriveReading, DriveError> {
        let mut tallies = self.lock();
        let before = self.disc();
        if disc.is_none() && before.is_none() {
            return Ok(self.read());
        }
        let (SataPort { controller, number: port }, force) = (&self.at, tray == TrayLock::Overridden);
        let done = match &disc {
            Some(disc) => controller.insert_disc(*port, disc.clone(), force),
            None => controller.eject_disc(*port, force),
        };
        done.map_err(|why| match (why, &before) {
            (AhciError::TrayLocked, Some(before)) => {
                DriveError::Locked { drive: self.name.clone(), disc: before.name().to_owned() }
            }
            (why, _) => DriveError::Ahci(why),
        })?;
        if let Some(disc) = &disc {
            tallies.push_back(disc.tally().clone());
            let many = tallies.len().saturating_sub(KEPT);
            drop(tallies.drain(..many));
        }
        self.events.send(Event::DisksChanged(said(&self.name, before.as_deref(), disc.as_deref())));
        let disc = disc.map(|disc| disc.name().to_owned());
        let leaving = before.and_then(let_go);
        Ok(DriveReading { name: self.name.clone(), disc, leaving })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Tally>> {
        self.tallies.lock()
    }
}

fn said(drive: &str, before: Option<&Disk>, now: Option<&Disk>) -> String {
    match (before.map(Disk::name), now.map(Disk::name)) {
        (Some(before), Some(now)) => format!("CD drive {drive}: {before} was taken out, and {now} put in"),
        (None, Some(now)) => format!("CD drive {drive}: {now} was put in"),
        (Some(before), None) => format!("CD drive {drive}: {before} was taken out"),
        (None, None) => format!("CD drive {drive} is empty"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_in_a_drive_is_refused_without_a_key_that_the_command_does_not_have() {
        let path = std::env::temp_dir().join(format!("skep-no-disc-{}", std::process::id()));
        std::fs::write(&path, [b"QFI\xfb".as_slice(), &[0; 4092]].concat()).unwrap();
        let text = open(&path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(text.contains("looks like a qcow2 image. A CD drive takes raw discs"), "{text}");
        assert!(!text.contains("format"), "{text}");
    }

    #[test]
    fn a_drive_that_is_not_there_is_answered_with_those_that_are() {
        let drive = |name: &str, disc: Option<&str>| DriveReading {
            name: name.to_owned(),
            disc: disc.map(str::to_owned),
            leaving: None,
        };
        let missing = |drives| DriveError::Missing { name: "cd7".to_owned(), drives }.to_string();
        let text = missing(vec![drive("cd0", Some("/a.iso")), drive("cd1", None)]);
        assert_eq!(text, "there is no CD drive cd7. There are: cd0 (holds /a.iso), cd1 (empty)");
        assert!(missing(Vec::new()).contains("model=ahci-cd"));
    }
}
