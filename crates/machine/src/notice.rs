//! What happens to a VM, as its owner is told of it.

use std::fmt;

use config::OnRequest;
use devices::Press;

use crate::vm::Outcome;

/// Something that happened to a VM.
#[derive(Debug, Clone)]
pub enum Notice {
    /// A step in its life.
    Life(Life),
    /// DMA failed, or memory could not be mapped for it.
    Fault(dma::fault::Event),
    /// This host failed a request of a disk.
    Disk(disk::Failure),
    /// Something failed that the guest was not told of, in a sentence or more.
    Trouble(String),
    /// A trouble that the guest can cause as often as it likes. It must not push out anything else.
    Provoked(String),
}

/// A step in a VM's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// The start takes its time; what it is at.
    Preparing(String),
    /// How something that depends on the host was made, and why so.
    Made(String),
    /// The guest runs for the first time.
    Started,
    /// The VM is paused; why.
    Paused(String),
    /// It runs on.
    Resumed,
    /// The guest was reset, and starts again.
    Restarted,
    /// Somebody changed the disc in a drive, plugged a disk in or unplugged one; which, and how.
    DisksChanged(String),
    /// This host wants the assigned device of this name back, and waits for it from now on; what is done about it.
    DeviceRequested(String, OnRequest),
    /// Somebody pressed the power button.
    PowerButton(Press),
    /// The guest listens to the power button, and gets a press that waited.
    PowerButtonHeard,
    /// The guest runs no more, for this reason; the VM is taken apart now.
    Ending(Outcome),
    /// The VM is taken apart, and nothing more happens to it. How it ended, which is worse than before if something
    /// failed meanwhile.
    Ended(Outcome),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Life(life) => life.fmt(f),
            Notice::Fault(event) => event.fmt(f),
            Notice::Disk(failure) => failure.fmt(f),
            Notice::Trouble(what) | Notice::Provoked(what) => f.write_str(what),
        }
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Life::Preparing(what) | Life::Made(what) | Life::DisksChanged(what) => f.write_str(what),
            Life::DeviceRequested(device, OnRequest::Report) => write!(
                f,
                "this host wants the assigned device {device} back, and waits for it until the VM ends. `skep stop` ends it"
            ),
            Life::DeviceRequested(device, OnRequest::Stop) => {
                write!(
                    f,
                    "this host wants the assigned device {device} back: the VM is stopped, as on-request says"
                )
            }
            Life::Started => f.write_str("the guest runs"),
            Life::Paused(why) => write!(f, "the VM is paused: {why}"),
            Life::Resumed => f.write_str("the VM runs on"),
            Life::Restarted => f.write_str("the guest was reset and starts again"),
            Life::PowerButton(Press::Shown) => f.write_str("the power button was pressed"),
            Life::PowerButton(Press::Waits) => f.write_str(
                "the power button was pressed, but the guest does not listen to it yet (it has not enabled the ACPI \
                 event). It gets the press when it does",
            ),
            Life::PowerButtonHeard => {
                f.write_str("the guest listens to the power button now, and gets the press that waited")
            }
            Life::Ending(outcome) => write!(f, "the VM ends: {outcome}"),
            Life::Ended(outcome) => write!(f, "the VM has ended: {outcome}"),
        }
    }
}

/// Where a VM's owner is told.
pub type Reporter = Box<dyn Fn(&Notice) + Send + Sync>;
