//! A VM's TPM: what executes its commands, found and checked before anything is touched.

mod host;
mod started;
mod state;
mod swtpm;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use boot::platform::mmio;
use config::{TpmSource, VmName};
use devices::Tpm;
use devices::tpm::TpmBackEnd;

use crate::kept;
use host::HostTpm;
use started::Started;
use state::State;
use swtpm::Swtpm;

/// Gets a sentence about a TPM that has failed. It does so once, until the TPM is switched on again.
pub type Tell = Arc<dyn Fn(String) + Send + Sync>;

/// Why a VM cannot have its TPM.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// There is nothing to emulate it with.
    #[error(
        "swtpm is not installed, and a VM's TPM is emulated by it. Install it (apt-get install swtpm), or give the VM no TPM."
    )]
    NoSwtpm,
    /// Another VM runs with its state.
    #[error(
        "the TPM's state {} is in use by another process, probably a VM of the same name. Stop it, or give this VM another \
         name (--name).",
        .0.display()
    )]
    InUse(PathBuf),
    /// The state.
    #[error("cannot {what} the TPM's state {}: {cause}. Such a state is a folder that only its owner reads.", .path.display())]
    State {
        /// What could not be done: "make", "lock".
        what: &'static str,
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// swtpm did not start.
    #[error("cannot start {}: {cause}.", .program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// swtpm started, and would not work.
    #[error(
        "swtpm does not work with the TPM's state {}: {why}. Bring the state back from a backup, or move it away for a new \
         TPM, which opens nothing that this one has sealed.",
        .state.display()
    )]
    Refused {
        /// Its state.
        state: PathBuf,
        /// What it said.
        why: String,
    },
    /// A TPM of the host that is not there.
    #[error(
        "there is no TPM {}. Switch it on in the settings of this host's firmware (`ls /dev/tpm*` shows what there is), or \
         emulate one: --tpm on.",
        .0.display()
    )]
    NoDevice(PathBuf),
    /// A TPM of the host that somebody has.
    #[error(
        "the TPM {} is in use by another process: a resource manager, or a VM. `fuser {}` names it; stop it.",
        .0.display(), .0.display()
    )]
    Busy(PathBuf),
    /// The same, with another reason.
    #[error("cannot open the TPM {}: {cause}. It belongs to root, or to the group tss.", .path.display())]
    Device {
        /// Its device file.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// It is something else.
    #[error("{} is no TPM. Name its device file: --tpm passthrough=/dev/tpm0.", .0.display())]
    NoTpm(PathBuf),
    /// It is an old one.
    #[error(
        "the TPM {} is one of version {version}, and guests get TPM 2.0. Emulate one: --tpm on.",
        .path.display()
    )]
    Version {
        /// Its device file.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// It does not do what every TPM does first.
    #[error(
        "the TPM is not ready for a guest: {0}. Restart what it belongs to: this host, or swtpm with another state."
    )]
    NotReady(String),
    /// A thread.
    #[error("cannot start the TPM's thread: {0}. This host is short of memory or threads.")]
    Thread(io::Error),
}

/// A TPM that can be had.
#[derive(Debug)]
pub enum CheckedTpm {
    /// An emulated one.
    Emulated { program: PathBuf, state: State },
    /// One of the host's.
    Host(PathBuf),
}

impl CheckedTpm {
    /// Finds and checks what a TPM is made of, for a VM of this name.
    pub fn check(source: &TpmSource, name: &VmName) -> Result<CheckedTpm, TpmError> {
        match source {
            TpmSource::Emulated => {
                let program = swtpm::find().ok_or(TpmError::NoSwtpm)?;
                let state = State::check(&kept::folder(name).join("tpm2"))?;
                Ok(CheckedTpm::Emulated { program, state })
            }
            TpmSource::Passthrough(path) => {
                host::check(path.as_path())?;
                Ok(CheckedTpm::Host(path.as_path().to_path_buf()))
            }
        }
    }

    /// What to tell people about it.
    pub fn said(&self) -> String {
        match self {
            CheckedTpm::Emulated { state, .. } => {
                format!("a TPM by swtpm, its state {}", state.path().display())
            }
            CheckedTpm::Host(path) => format!("the TPM {} of this host", path.display()),
        }
    }

    /// Starts it and puts it on the memory bus, `ready` for an operating system if no firmware sees to that.
    pub fn start(&self, ready: bool, tell: &Tell) -> Result<Tpm, TpmError> {
        let back_end = match self {
            CheckedTpm::Emulated { program, state } => {
                made(Swtpm::start(program, state.take()?, tell.clone())?, ready, tell)?
            }
            CheckedTpm::Host(path) => made(HostTpm::open(path, tell.clone())?, ready, tell)?,
        };
        Tpm::new(mmio::TPM, back_end).map_err(TpmError::Thread)
    }
}

fn made(
    back_end: impl TpmBackEnd + 'static,
    ready: bool,
    tell: &Tell,
) -> Result<Arc<dyn TpmBackEnd>, TpmError> {
    if ready { Ok(Arc::new(Started::new(back_end, tell.clone())?)) } else { Ok(Arc::new(back_end)) }
}
