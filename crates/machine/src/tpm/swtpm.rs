//! A TPM that is emulated by swtpm, a process of its own.

mod process;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::tpm::{TpmBackEnd, TpmFailed};
use parking_lot::Mutex;

use super::start_up::StartUp;
use super::state::Taken;
use super::{Tell, TpmError};
use process::{Heard, Process, is_late};

/// So long swtpm may take to switch a TPM on, with all that it is asked until the TPM is ready: making a new TPM, for example.
pub const SWITCH_ON_LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked whether the state is free.
const LOOK: Duration = Duration::from_millis(50);
/// So long a command of the guest may take. Linux allows its longest ones five minutes.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);

/// swtpm's program, if it is installed.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/bin".into(), "/usr/local/bin".into()]);
    folders.map(|folder| folder.join("swtpm")).find(|file| file.is_file())
}

/// A TPM that is emulated.
pub struct Swtpm {
    program: PathBuf,
    state: Taken,
    start_up: StartUp,
    limit: Duration,
    tell: Tell,
    slot: Slot,
}

/// Nobody waits for swtpm while holding its lock, so the process can be ended at any time.
type Slot = Arc<Mutex<Place>>;

/// Where the process is.
enum Place {
    /// There is none: it has ended, failed or was aborted.
    Empty,
    /// One is being made for it.
    Reserved,
    /// It switches the TPM on. Whoever has asked for that says why it fails.
    SwitchesOn(Arc<Process>),
    /// The TPM works. Whoever takes the process out says why.
    Works(Arc<Process>),
}

/// Why a TPM is not on.
#[derive(Debug)]
pub enum NotOn {
    /// That was wished for.
    Aborted,
    /// It failed.
    Failed(TpmError),
}

impl Swtpm {
    /// One that is off, and may take no longer than `limit` to be switched on, which then includes its start-up. If it fails
    /// later, `tell` gets that in a sentence.
    pub fn new(program: &Path, state: Taken, start_up: StartUp, limit: Duration, tell: Tell) -> Swtpm {
        let slot = Arc::new(Mutex::new(Place::Empty));
        Swtpm { program: program.to_path_buf(), state, start_up, limit, tell, slot }
    }

    /// Switches it on, or off and on again.
    pub fn switch_on(&self) -> Result<(), NotOn> {
        let deadline = Instant::now() + self.limit;
        let (process, its_data) = self.process(deadline)?;
        let connected = its_data.map_or(Ok(()), |its_data| process.connect(&its_data, deadline));
        let on = connected
            .and_then(|()| process.switch_on(deadline))
            .and_then(|()| self.start_up.carry_out(|command| process.execute(command, deadline)));
        let mut slot = self.slot.lock();
        if !matches!(&*slot, Place::SwitchesOn(other) if Arc::ptr_eq(other, &process)) {
            drop(slot);
            process.end();
            return Err(NotOn::Aborted);
        }
        // Its listener has told nobody, if it has ended by now.
        let Err(cause) = on.and_then(|()| process.heard().goes_on()) else {
            *slot = Place::Works(process);
            return Ok(());
        };
        *slot = Place::Empty;
        drop(slot);
        Err(NotOn::Failed(self.refusal(&process, &cause)))
    }

    /// The process that is there, or a new one, with its end of the data channel, which it does not have yet.
    fn process(&self, deadline: Instant) -> Result<(Arc<Process>, Option<UnixStream>), NotOn> {
        let mut slot = self.slot.lock();
        if let Place::Works(process) = std::mem::replace(&mut *slot, Place::Reserved) {
            *slot = Place::SwitchesOn(process.clone());
            return Ok((process, None));
        }
        drop(slot);
        self.await_state(deadline)?;
        let started = Process::start(&self.program, self.state.path(), self.ended());
        let (process, its_data) = started
            .map_err(|cause| NotOn::Failed(TpmError::Start { program: self.program.clone(), cause }))?;
        let process = Arc::new(process);
        let mut slot = self.slot.lock();
        if !matches!(*slot, Place::Reserved) {
            drop(slot);
            process.end();
            return Err(NotOn::Aborted);
        }
        *slot = Place::SwitchesOn(process.clone());
        Ok((process, Some(its_data)))
    }

    /// Waits until nobody has the state. A command that is under way when skep is killed keeps its swtpm for a moment.
    fn await_state(&self, deadline: Instant) -> Result<(), NotOn> {
        while let Some(holder) = self.state.holder() {
            if !matches!(*self.slot.lock(), Place::Reserved) {
                return Err(NotOn::Aborted);
            }
            if Instant::now() >= deadline {
                let state = self.state.path().to_path_buf();
                return Err(NotOn::Failed(TpmError::StillInUse { state, holder }));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Tells of a process that ends although the TPM was to work on.
    fn ended(&self) -> impl FnOnce(&Arc<Heard>) + Send + use<> {
        let (slot, tell) = (self.slot.clone(), self.tell.clone());
        move |heard: &Arc<Heard>| {
            let process = slot.lock().take(heard);
            if let Some(process) = process {
                tell(format!("the TPM has failed: {}", process.became()));
            }
        }
    }

    /// Ends a process that could not switch the TPM on.
    fn refusal(&self, process: &Process, cause: &io::Error) -> TpmError {
        let state = self.state.path().to_path_buf();
        let why = process.failed(cause);
        if is_late(cause) {
            let last_words = process.heard().last_words();
            TpmError::Silent { state, limit: self.limit, last_words }
        } else if let Some(holder) = self.state.holder() {
            // It has come between the look and its INIT.
            TpmError::StillInUse { state, holder }
        } else {
            TpmError::Refused { state, why }
        }
    }
}

impl Place {
    /// The process whose TPM works.
    fn working(&self) -> Option<Arc<Process>> {
        if let Place::Works(process) = self { Some(process.clone()) } else { None }
    }

    /// Takes out the process of which this was heard, if its TPM works.
    fn take(&mut self, heard: &Arc<Heard>) -> Option<Arc<Process>> {
        match std::mem::replace(self, Place::Empty) {
            Place::Works(process) if process.is_of(heard) => Some(process),
            other => {
                *self = other;
                None
            }
        }
    }
}

impl TpmBackEnd for Swtpm {
    fn power_on(&self) -> Result<(), TpmFailed> {
        self.switch_on().map_err(|why| {
            if let NotOn::Failed(error) = why {
                (self.tell)(error.to_string());
            }
            TpmFailed
        })
    }

    fn execute(&self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
        let process = self.slot.lock().working().ok_or(TpmFailed)?;
        process.execute(command, Instant::now() + COMMAND_LIMIT).map_err(|cause| {
            let taken = self.slot.lock().take(process.heard());
            match taken {
                Some(process) => (self.tell)(format!("the TPM has failed: {}", process.failed(&cause))),
                // Whoever has taken it out ends it. The next one must not meet it at the state.
                None => process.await_end(),
            }
            TpmFailed
        })
    }

    fn abort(&self) {
        let place = std::mem::replace(&mut *self.slot.lock(), Place::Empty);
        if let Place::SwitchesOn(process) | Place::Works(process) = place {
            process.end();
        }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let place = std::mem::replace(&mut *self.slot.lock(), Place::Empty);
        if let Place::SwitchesOn(process) | Place::Works(process) = place {
            process.shut_down();
        }
    }
}

#[cfg(test)]
mod tests;
