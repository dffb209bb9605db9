//! SATA disks that are plugged in and unplugged from outside while the VM runs.

use config::{ControllerName, DiskModel, DiskSource, ModelName};
use devices::ahci::AhciError;

use super::close::let_go;
use super::list::DisksOutside;
use super::{CheckedDisk, check};
use crate::disks::failures;
use crate::error::StartError;
use crate::events::Event;

/// A disk that was plugged in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plugged {
    /// Its name, by which it is unplugged again.
    pub name: String,
    /// Where it is: "ahci 00:03.0, port 1".
    pub place: String,
}

/// A disk that was unplugged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unplugged {
    /// Its name.
    pub name: String,
    /// Whether this host can use it again.
    pub state: Letting,
}

/// What a disk that the guest has lost is for the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Letting {
    /// Closed, and free for others.
    Closed,
    /// Open as long as a request of the guest is under way.
    Open,
}

/// Why a disk was not plugged in. The guest, and what it has, are as they were.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// Only SATA has a plug.
    #[error("{}", why_not(*.0))]
    Model(ModelName),
    /// Its controller would have to be taken from the host first.
    #[error(
        "a VM gets a controller that skep drives itself (nvme=) only at its start. Describe the disk at the start, or plug in \
         the block device of the host's driver (path=/dev/nvme0n1)"
    )]
    Driven,
    /// There is no SATA controller.
    #[error(
        "the VM has no SATA controller, and it cannot get one while it runs. Start it with one: a disk with model=ahci or \
         a CD drive adds it"
    )]
    NoController,
    /// There is none of that name.
    #[error("the VM has no SATA controller called {name}. {}", those(there))]
    OtherControllers {
        /// What was asked for.
        name: ControllerName,
        /// Those that there are.
        there: Vec<String>,
    },
    /// No port is free on these controllers.
    #[error(
        "all ports of {} are in use. Unplug a disk first (skep disk VM unplug NAME)",
        .0.join(" and ")
    )]
    Full(Vec<String>),
    /// It has a place in the boot order.
    #[error(
        "what the firmware boots is settled when the VM starts, and disks that are plugged in come last. Remove \
         bootindex, or describe the disk at the start"
    )]
    BootIndex,
    /// RAM was not registered when the VM started.
    #[error(
        "disk {0}: the VM's RAM is not registered with io_uring, and it is registered only at the start, for a disk with \
         buffers=registered. Remove that setting"
    )]
    NotRegistered(String),
    /// The VM ends.
    #[error("the VM is ending. Start it again, with the disk")]
    Ending,
    /// The disk cannot be opened, as at a start.
    #[error(transparent)]
    Disk(#[from] StartError),
}

/// Why a disk was not unplugged.
#[derive(Debug, thiserror::Error)]
pub enum UnplugError {
    /// There is no such disk.
    #[error("the VM has no disk called {name}. {}", sata_disks(disks))]
    Missing {
        /// What was asked for.
        name: String,
        /// The SATA disks that there are.
        disks: Vec<String>,
    },
    /// Only SATA has a plug.
    #[error(
        "disk {name}: its model is {model}, and only SATA disks (model=ahci) can be unplugged while the VM runs. Stop the VM \
         to free it"
    )]
    Model {
        /// The disk.
        name: String,
        /// What the guest sees.
        model: ModelName,
    },
    /// It is a disc.
    #[error(
        "{name} is a CD drive or the disc in one, and CD drives stay. Eject the disc with: skep cd VM {drive} eject"
    )]
    Disc {
        /// What was asked for.
        name: String,
        /// The drive.
        drive: String,
    },
    /// The VM ends, and with it every disk is closed.
    #[error("the VM is ending, and closes its disks. Wait for its end")]
    Ending,
    /// The controller does not let it go.
    #[error(transparent)]
    Ahci(#[from] AhciError),
}

fn why_not(model: ModelName) -> String {
    match model {
        ModelName::AhciCd => "a CD drive cannot be plugged in while the VM runs. Start the VM with one, whose disc can \
                              then be changed (skep cd), or plug the image in as a disk (model=ahci,readonly=on)"
            .to_owned(),
        _ => format!(
            "a disk with model={model} cannot be plugged in while the VM runs, only one with model=ahci. Leave model= \
             away, or give the VM the disk at its start"
        ),
    }
}

fn those(controllers: &[String]) -> String {
    if controllers.is_empty() {
        return "It has none at all; a disk with model=ahci brings one along at the start".to_owned();
    }
    format!("It has {}; without controller= the first with a free port is taken", controllers.join(", "))
}

fn sata_disks(disks: &[String]) -> String {
    if disks.is_empty() {
        return "It has no SATA disk now; skep stats shows all its disks".to_owned();
    }
    format!("Its SATA disks are {}", disks.join(", "))
}

impl DisksOutside {
    /// Opens a disk, which claims it, and plugs it in: on the first free port of the controller that its description names,
    /// or of the first controller that has one.
    pub fn plug(&self, description: &config::Disk) -> Result<Plugged, PlugError> {
        let list = self.list().ok_or(PlugError::Ending)?;
        if description.model != DiskModel::Ahci {
            return Err(PlugError::Model(description.model.name()));
        }
        if let DiskSource::Nvme { .. } = description.source {
            return Err(PlugError::Driven);
        }
        if description.boot_index.is_some() {
            return Err(PlugError::BootIndex);
        }
        // Nothing is claimed in vain where no port is free.
        list.inner().free_port(description.controller.as_ref())?;
        let open = match check(description, config::Cpus::default())? {
            CheckedDisk::Open(open) => open,
            CheckedDisk::Driven(_) => return Err(PlugError::Driven),
        };
        let name = open.disk.name().to_owned();
        open.remarks().iter().for_each(|remark| list.events.trouble(remark.clone()));
        // Before its queue is prepared.
        failures::watch(&open.disk, open.on_error, &list.events);
        let at = list.inner().plug(open, &list.events)?;
        Ok(Plugged { name, place: at.to_string() })
    }

    /// Unplugs the SATA disk of this name, even if the guest uses it. Returns when it is closed, or has taken
    /// long.
    pub fn unplug(&self, name: &str) -> Result<Unplugged, UnplugError> {
        let list = self.list().ok_or(UnplugError::Ending)?;
        let (disk, at) = list.inner().take(name)?;
        // Nothing repeats held requests from here on, and the port would wait for them.
        disk.failures().give_up();
        match at.controller.unplug(at.number) {
            // The guest has lost it in either case.
            Ok(()) | Err(AhciError::Leaving { .. }) => {}
            Err(why) => return Err(why.into()),
        }
        let name = disk.name().to_owned();
        list.events.send(Event::DisksChanged(format!("disk {name} was unplugged ({at})")));
        let state = if let_go(disk).is_some() { Letting::Open } else { Letting::Closed };
        Ok(Unplugged { name, state })
    }
}

#[cfg(test)]
mod tests;
