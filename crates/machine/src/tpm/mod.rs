//! A VM's TPM: what executes its commands, found and checked before anything is touched.

mod host;
mod start_up;
mod state;
mod swtpm;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use boot::platform::mmio;
use config::{TpmSource, VmName};
use devices::Tpm;
use devices::tpm::TpmBackEnd;

use crate::error::StartError;
use crate::kept;
use crate::start::steps::Steps;
use host::HostTpm;
pub use start_up::StartUp;
use state::State;
use swtpm::{NotOn, SWITCH_ON_LIMIT, Swtpm};

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
    /// Another swtpm has it, and does not let go.
    #[error(
        "the TPM's state {} is still in use by {holder}: probably the swtpm of a VM that was killed, which ends by itself once \
         the disk below that folder answers (`dmesg`). End it, or wait until it has ended, then start the VM again. Nothing is \
         wrong with the state.",
        .state.display()
    )]
    StillInUse {
        /// Its state.
        state: PathBuf,
        /// The process that has it.
        holder: String,
    },
    /// The state.
    #[error(
        "cannot {what} the TPM's state {}: {cause}. Such a state is a folder that only its owner, or root, may use.{}",
        .path.display(), by_root(.path, .cause)
    )]
    State {
        /// What could not be done: "make", "trust", "lock".
        what: &'static str,
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// swtpm did not start.
    #[error(
        "cannot start {}: {cause}. Install swtpm anew (Debian: apt-get install --reinstall swtpm), or look why this host does not run \
         the file (`ls -l`, `findmnt -T`).",
        .program.display()
    )]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// swtpm started, and would not work.
    #[error(
        "swtpm does not work with the TPM's state {}: {why}. Look first for what keeps swtpm from the folder: space (`df`), or \
         AppArmor or SELinux (`dmesg`; AppArmor's profile of swtpm takes more folders in /etc/apparmor.d/local/usr.bin.swtpm). Only \
         if the state itself is damaged, bring it back from a backup, or move it away for a new TPM, which opens nothing that this \
         one has sealed.",
        .state.display()
    )]
    Refused {
        /// Its state.
        state: PathBuf,
        /// What it said.
        why: String,
    },
    /// swtpm started, and did not answer.
    #[error(
        "swtpm did not switch on the TPM with the state {} within {} s{last_words}. Look whether the disk below that folder \
         answers and has space (`ls`, `df`, `dmesg`), then start the VM again. If the state is damaged, bring it back from a \
         backup, or move it away for a new TPM, which opens nothing that this one has sealed.",
        .state.display(), .limit.as_secs_f32()
    )]
    Silent {
        /// Its state.
        state: PathBuf,
        /// How long it could take.
        limit: Duration,
        /// What it said.
        last_words: String,
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
    #[error("the TPM {} is not ready for a guest: {cause}. Restart this host, or emulate one: --tpm on.", .path.display())]
    NotReady {
        /// Its device file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
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

/// What an ordinary user can do, whom no folder of root's lets in.
fn by_root(path: &Path, cause: &io::Error) -> String {
    if cause.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    format!(" For another user root makes it: install -d -m 700 -o USER {}.", path.display())
}

impl CheckedTpm {
    /// Finds and checks what a TPM is made of, for a VM of this name.
    pub fn check(source: &TpmSource, name: &VmName) -> Result<CheckedTpm, TpmError> {
        match source {
            TpmSource::Emulated => {
                let program = swtpm::find().ok_or(TpmError::NoSwtpm)?;
                let state = State::check(&kept::folder(name).join(kept::TPM))?;
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

    /// Switches it on and puts it on the memory bus. If the start is cancelled meanwhile, it ends swtpm.
    pub fn start(&self, start_up: StartUp, tell: &Tell, steps: &Steps) -> Result<Tpm, StartError> {
        let back_end: Arc<dyn TpmBackEnd> = match self {
            CheckedTpm::Emulated { program, state } => {
                let swtpm = Swtpm::new(program, state.take()?, start_up, SWITCH_ON_LIMIT, tell.clone());
                let on = steps.wait(|| swtpm.switch_on(), || swtpm.abort());
                on.map_err(TpmError::Thread)?.map_err(|why| match why {
                    NotOn::Aborted => StartError::Cancelled,
                    NotOn::Failed(error) => error.into(),
                })?;
                Arc::new(swtpm)
            }
            CheckedTpm::Host(path) => Arc::new(HostTpm::open(path, start_up, tell.clone())?),
        };
        Ok(Tpm::new(mmio::TPM, back_end).map_err(TpmError::Thread)?)
    }
}
