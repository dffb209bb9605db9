//! What happens to a VM, as it is reported to its owner.

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
    Fault(faults::Fault),
    /// This host failed a request of a disk.
    Disk(disk::Failure),
    /// Something failed that the guest does not see, in a sentence or more.
    Trouble(String),
    /// A trouble that the guest can cause as often as it likes. It must not displace anything else.
    Provoked(String),
}

/// A step in a VM's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// The start takes long; its current step.
    Preparing(String),
    /// How something that depends on the host was made, and why.
    Made(String),
    /// Something was made that outlives the VM.
    Kept(String),
    /// The guest runs for the first time.
    Started,
    /// The VM is paused; why.
    Paused(String),
    /// It runs again.
    Resumed,
    /// The guest was reset, and starts again.
    Restarted,
    /// The disc in a drive was changed, or a disk was plugged in or unplugged; which, and how.
    DisksChanged(String),
    /// This host wants the assigned device of this name back, and waits for it from now on; the answer to that.
    DeviceRequested(String, OnRequest),
    /// The power button was pressed.
    PowerButton(Press),
    /// The guest listens to the power button, and gets a press that waited.
    PowerButtonHeard,
    /// The guest has stopped, for this reason; the VM ends now.
    Ending(Outcome),
    /// The VM has ended. How it ended; this can be worse than the reason before, if something failed during the
    /// end.
    Ended(Outcome),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Life(life) => life.fmt(f),
            Notice::Fault(fault) => fault.fmt(f),
            Notice::Disk(failure) => failure.fmt(f),
            Notice::Trouble(what) | Notice::Provoked(what) => f.write_str(what),
        }
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Life::Preparing(what) | Life::Made(what) | Life::Kept(what) | Life::DisksChanged(what) => {
                f.write_str(what)
            }
            Life::DeviceRequested(device, OnRequest::Report) => write!(
                f,
                "this host wants the assigned device {device} back, and waits until the VM ends. `skep stop` ends the VM"
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

/// Receives the notices of a VM.
pub type Reporter = Box<dyn Fn(&Notice) + Send + Sync>;
