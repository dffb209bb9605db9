//! A TPM that is emulated by swtpm, a process of its own. `man swtpm_ioctls` describes the control channel.
//!
//! swtpm gets one end of the control channel as its standard input. When either channel closes, it ends: so it does when skep
//! is killed. What it says on standard error is read until it has ended, which is how its end is noticed.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::tpm::{BUFFER, HEADER, TpmBackEnd, TpmFailed};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::state::Taken;
use super::{Tell, TpmError};

/// Commands on the control channel.
mod control {
    pub const INIT: u32 = 0x02;
    pub const SHUTDOWN: u32 = 0x03;
    pub const STOP: u32 = 0x0e;
    pub const SET_DATAFD: u32 = 0x10;
    pub const SET_BUFFERSIZE: u32 = 0x11;
}

/// So long an answer on the control channel may take: making a new TPM, for example.
const CONTROL: Duration = Duration::from_secs(30);
/// So long a command of the guest may take. Linux allows its longest ones five minutes.
const COMMAND: Duration = Duration::from_secs(600);
/// So long swtpm may take to end.
const END: Duration = Duration::from_secs(2);
/// As much of its last words is kept, in bytes.
const LAST_WORDS: usize = 300;

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
    tell: Tell,
    slot: Slot,
}

/// The process; `None` once it has ended or failed.
type Slot = Arc<Mutex<Option<Process>>>;

impl Swtpm {
    /// Starts the process and switches the TPM on. If it fails later, `tell` gets that in a sentence.
    pub fn start(program: &Path, state: Taken, tell: Tell) -> Result<Swtpm, TpmError> {
        let swtpm = Swtpm { program: program.to_path_buf(), state, tell, slot: Slot::default() };
        swtpm.launch()?;
        Ok(swtpm)
    }

    fn launch(&self) -> Result<(), TpmError> {
        // Until it is in its place, its listener must not look for it there.
        let mut slot = lock(&self.slot);
        let (mut process, its_data) =
            Process::start(&self.program, self.state.path(), &self.slot, &self.tell)
                .map_err(|cause| TpmError::Start { program: self.program.clone(), cause })?;
        match process.connect(&its_data).and_then(|()| process.switch_on()) {
            Ok(()) => {
                *slot = Some(process);
                Ok(())
            }
            Err(cause) => {
                drop(slot);
                let why = process.failed(&cause);
                Err(TpmError::Refused { state: self.state.path().to_path_buf(), why })
            }
        }
    }

    /// The process, taken out of its place, has failed in this way.
    fn failed(&self, process: Process, cause: &io::Error) {
        (self.tell)(format!("the TPM has failed: {}", process.failed(cause)));
    }
}

impl TpmBackEnd for Swtpm {
    fn power_on(&self) -> Result<(), TpmFailed> {
        let mut slot = lock(&self.slot);
        if let Some(process) = slot.as_mut() {
            let Err(cause) = process.switch_on() else { return Ok(()) };
            let process = slot.take();
            drop(slot);
            process.into_iter().for_each(|process| self.failed(process, &cause));
            return Err(TpmFailed);
        }
        drop(slot);
        self.launch().map_err(|error| {
            (self.tell)(error.to_string());
            TpmFailed
        })
    }

    fn execute(&self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
        let data = lock(&self.slot).as_ref().map(|process| process.data.clone()).ok_or(TpmFailed)?;
        exchange(&data, command, COMMAND).map_err(|cause| {
            let mine = |process: &mut Process| Arc::ptr_eq(&process.data, &data);
            let process = lock(&self.slot).take_if(mine);
            process.into_iter().for_each(|process| self.failed(process, &cause));
            TpmFailed
        })
    }

    fn abort(&self) {
        let process = lock(&self.slot).take();
        process.into_iter().for_each(Process::kill);
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let process = lock(&self.slot).take();
        process.into_iter().for_each(Process::shut_down);
    }
}

fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    slot.lock().expect("no code panics with this lock held")
}

/// swtpm as it runs.
struct Process {
    child: Arc<Mutex<Child>>,
    control: UnixStream,
    data: Arc<UnixStream>,
    words: Arc<Mutex<String>>,
    listener: JoinHandle<()>,
}

impl Process {
    /// Starts it. The second is its end of the data channel.
    fn start(program: &Path, state: &Path, slot: &Slot, tell: &Tell) -> io::Result<(Process, UnixStream)> {
        let (control, its_control) = UnixStream::pair()?;
        let (data, its_data) = UnixStream::pair()?;
        let mut child = Command::new(program)
            .args(["socket", "--tpm2", "--terminate", "--ctrl", "type=unixio,clientfd=0", "--tpmstate"])
            .arg(option("dir", state)?)
            .stdin(Stdio::from(OwnedFd::from(its_control)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // No signal of the terminal is for it.
            .process_group(0)
            .spawn()?;
        let errors = child.stderr.take().expect("it is piped");
        let (child, data, words) = (Arc::new(Mutex::new(child)), Arc::new(data), Arc::default());
        let listener = Listener {
            words: Arc::clone(&words),
            data: data.clone(),
            slot: slot.clone(),
            tell: tell.clone(),
        };
        let listener =
            std::thread::Builder::new().name("swtpm".into()).spawn(move || listener.listen(errors));
        let listener = listener.inspect_err(|_| drop(lock(&child).kill()))?;
        Ok((Process { child, control, data, words, listener }, its_data))
    }

    /// Gives it its end of the data channel.
    fn connect(&mut self, its_data: &UnixStream) -> io::Result<()> {
        self.control.set_read_timeout(Some(CONTROL))?;
        self.control.set_write_timeout(Some(CONTROL))?;
        self.control.send_with_fd(&control::SET_DATAFD.to_be_bytes()[..], its_data.as_raw_fd())?;
        self.answer(0).map(drop)
    }

    /// Off and on: PCRs and sessions begin anew, and what was made to last is there.
    fn switch_on(&mut self) -> io::Result<()> {
        self.ask(control::STOP, &[], 0)?;
        let answer = self.ask(control::SET_BUFFERSIZE, &(BUFFER as u32).to_be_bytes(), 12)?;
        if answer[..4] != (BUFFER as u32).to_be_bytes() {
            return Err(io::Error::other("it does not keep its responses as short as they must be"));
        }
        self.ask(control::INIT, &0u32.to_be_bytes(), 0)?;
        Ok(())
    }

    /// Sends a command, and returns so many bytes behind the result.
    fn ask(&mut self, command: u32, body: &[u8], len: usize) -> io::Result<Vec<u8>> {
        self.control.write_all(&[&command.to_be_bytes(), body].concat())?;
        self.answer(len)
    }

    fn answer(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut answer = vec![0; 4 + len];
        self.control.read_exact(&mut answer)?;
        match u32::from_be_bytes(answer[..4].try_into().expect("four bytes")) {
            0 => Ok(answer.split_off(4)),
            result => Err(io::Error::other(format!("its answer is error {result:#x}"))),
        }
    }

    /// Ends it after a failure, which is described with what became of it.
    fn failed(self, cause: &io::Error) -> String {
        let closed = matches!(
            cause.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        );
        let ended = wait(&self.child, if closed { END } else { Duration::ZERO });
        let words = self.words.clone();
        self.kill();
        let why = match ended {
            Some(status) => format!("swtpm ended ({status})"),
            None if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                "swtpm did not answer".into()
            }
            None => format!("swtpm: {cause}"),
        };
        format!("{why}{}", last(&words))
    }

    fn kill(self) {
        drop(lock(&self.child).kill());
        self.join();
    }

    fn shut_down(mut self) {
        // Which also writes what was not written; that it could not is nothing that swtpm would tell.
        let asked =
            self.control.set_read_timeout(Some(END)).and_then(|()| self.ask(control::SHUTDOWN, &[], 0));
        match asked.ok().and_then(|_| wait(&self.child, END)) {
            Some(_) => self.join(),
            None => self.kill(),
        }
    }

    fn join(self) {
        drop(lock(&self.child).wait());
        drop(self.listener.join());
    }
}

/// Its status, once it has ended.
fn wait(child: &Mutex<Child>, patience: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Ok(Some(status)) = lock(child).try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn last(words: &Mutex<String>) -> String {
    let words = lock(words);
    if words.is_empty() { String::new() } else { format!(". Its last words: {:?}", *words) }
}

/// An option `key=value` of swtpm, which takes a comma for the end of it.
fn option(key: &str, path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some(path) if !path.contains(',') => Ok(format!("{key}={path},mode=0600")),
        _ => Err(io::Error::other(format!("it cannot be told of the path {}", path.display()))),
    }
}

/// Reads what swtpm says, until it has ended.
struct Listener {
    words: Arc<Mutex<String>>,
    data: Arc<UnixStream>,
    slot: Slot,
    tell: Tell,
}

impl Listener {
    fn listen(self, mut errors: ChildStderr) {
        let (mut all, mut piece) = (Vec::new(), [0; LAST_WORDS]);
        while let Ok(len @ 1..) = errors.read(&mut piece) {
            all.extend(&piece[..len]);
            all.drain(..all.len().saturating_sub(LAST_WORDS));
            *lock(&self.words) = String::from_utf8_lossy(&all).trim().replace('\n', "; ");
        }
        // Nobody has taken it out of its place: it was to run on.
        let process = lock(&self.slot).take_if(|process| Arc::ptr_eq(&process.data, &self.data));
        if let Some(process) = process {
            let ended = wait(&process.child, END);
            let how = ended
                .map_or("swtpm is of no use any more".into(), |status| format!("swtpm ended ({status})"));
            (self.tell)(format!("the TPM has failed: {how}{}", last(&self.words)));
            drop(lock(&process.child).kill());
            drop(lock(&process.child).wait());
        }
    }
}

/// Sends a command and reads its response, which says how long it is.
fn exchange(mut data: &UnixStream, command: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + patience;
    data.set_write_timeout(Some(patience))?;
    data.write_all(command)?;
    let mut response = vec![0; HEADER];
    read_until(data, &mut response, deadline)?;
    let len = u32::from_be_bytes(response[2..6].try_into().expect("four bytes")) as usize;
    if !(HEADER..=BUFFER).contains(&len) {
        return Err(io::Error::other(format!("it gives a response of {len} bytes")));
    }
    response.resize(len, 0);
    read_until(data, &mut response[HEADER..], deadline)?;
    Ok(response)
}

fn read_until(mut from: &UnixStream, mut to: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !to.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        from.set_read_timeout(Some(left))?;
        match from.read(to)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            len => to = &mut to[len..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
