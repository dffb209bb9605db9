//! The process of swtpm and its channels. `man swtpm_ioctls` describes the control channel.
//!
//! swtpm gets one end of the control channel as its standard input. When either channel closes, it ends: so it does when skep
//! is killed. What it says on standard error is read until it has ended, which is how its end is noticed.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::tpm::{BUFFER, HEADER};
use parking_lot::Mutex;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Commands on the control channel.
mod control {
    pub const INIT: u32 = 0x02;
    pub const SHUTDOWN: u32 = 0x03;
    pub const STOP: u32 = 0x0e;
    pub const SET_DATAFD: u32 = 0x10;
    pub const SET_BUFFERSIZE: u32 = 0x11;
}

/// So long swtpm may take to end.
const END_LIMIT: Duration = Duration::from_secs(2);
/// As much of its last words is kept, in bytes.
const LAST_WORDS: usize = 300;

/// swtpm as it runs. Whoever waits for an answer holds no lock, so another thread can end it meanwhile.
pub struct Process {
    child: Mutex<Child>,
    control: UnixStream,
    data: UnixStream,
    heard: Arc<Heard>,
    listener: JoinHandle<()>,
}

/// What was heard of swtpm on its standard error.
#[derive(Default)]
pub struct Heard(Mutex<Said>);

#[derive(Default)]
struct Said {
    last_words: String,
    /// Nothing more can come.
    all: bool,
}

impl Process {
    /// Starts it. The second is its end of the data channel. `ended` is called when it has ended by whatever cause.
    pub fn start(
        program: &Path,
        state: &Path,
        ended: impl FnOnce(&Arc<Heard>) + Send + 'static,
    ) -> io::Result<(Process, UnixStream)> {
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
        let (child, heard) = (Mutex::new(child), Arc::<Heard>::default());
        let hearing = heard.clone();
        let listener = std::thread::Builder::new().name("swtpm".into()).spawn(move || {
            hearing.listen(errors);
            ended(&hearing);
        });
        let listener = listener.inspect_err(|_| {
            drop(child.lock().kill());
            wait(&child, END_LIMIT);
        })?;
        Ok((Process { child, control, data, heard, listener }, its_data))
    }

    /// Whether this was heard of it.
    pub fn is_of(&self, heard: &Arc<Heard>) -> bool {
        Arc::ptr_eq(&self.heard, heard)
    }

    /// Its number.
    #[cfg(test)]
    pub fn id(&self) -> u32 {
        self.child.lock().id()
    }

    /// What is heard of it.
    pub fn heard(&self) -> &Arc<Heard> {
        &self.heard
    }

    /// Gives it its end of the data channel.
    pub fn connect(&self, its_data: &UnixStream, deadline: Instant) -> io::Result<()> {
        self.control.set_write_timeout(Some(left(deadline)?))?;
        self.control.send_with_fd(&control::SET_DATAFD.to_be_bytes()[..], its_data.as_raw_fd())?;
        self.answer(0, deadline).map(drop)
    }

    /// Off and on: PCRs and sessions begin anew, and what was made to last is there.
    pub fn switch_on(&self, deadline: Instant) -> io::Result<()> {
        self.ask(control::STOP, &[], 0, deadline)?;
        let answer = self.ask(control::SET_BUFFERSIZE, &(BUFFER as u32).to_be_bytes(), 12, deadline)?;
        if answer[..4] != (BUFFER as u32).to_be_bytes() {
            return Err(io::Error::other("it does not keep its responses as short as they must be"));
        }
        self.ask(control::INIT, &0u32.to_be_bytes(), 0, deadline)?;
        Ok(())
    }

    /// Executes a command of the TPM.
    pub fn execute(&self, command: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
        exchange(&self.data, command, deadline)
    }

    /// Sends a command, and returns so many bytes behind the result.
    fn ask(&self, command: u32, body: &[u8], len: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        self.control.set_write_timeout(Some(left(deadline)?))?;
        (&self.control).write_all(&[&command.to_be_bytes(), body].concat())?;
        self.answer(len, deadline)
    }

    fn answer(&self, len: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut answer = vec![0; 4 + len];
        read_until(&self.control, &mut answer, deadline)?;
        match u32::from_be_bytes(answer[..4].try_into().expect("four bytes")) {
            0 => Ok(answer.split_off(4)),
            result => Err(io::Error::other(format!("its answer is error {result:#x}"))),
        }
    }

    /// Ends it after a failure, which is described with what became of it.
    pub fn failed(&self, cause: &io::Error) -> String {
        let closed = matches!(
            cause.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        );
        let ended = wait(&self.child, if closed { END_LIMIT } else { Duration::ZERO });
        // Its listener may be behind it, until it has ended as well.
        self.end();
        let last_words = self.heard.last_words();
        let why = match ended {
            Some(status) => format!("swtpm ended ({status})"),
            None if is_late(cause) => "swtpm did not answer".into(),
            None => format!("swtpm: {cause}"),
        };
        why + &last_words
    }

    /// What became of one that has said everything. It is ended if it has not done so itself.
    pub fn became(&self) -> String {
        let ended = wait(&self.child, END_LIMIT);
        self.kill();
        let how =
            ended.map_or("swtpm is of no use any more".into(), |status| format!("swtpm ended ({status})"));
        how + &self.heard.last_words()
    }

    /// Waits until another thread, which has waited for it or ends it by force, has ended it.
    pub fn await_end(&self) {
        wait(&self.child, 2 * END_LIMIT);
    }

    /// Ends it in order.
    pub fn shut_down(&self) {
        // Which also writes what was not written; that it could not is nothing that swtpm would tell.
        if self.ask(control::SHUTDOWN, &[], 0, Instant::now() + END_LIMIT).is_ok() {
            wait(&self.child, END_LIMIT);
        }
        self.end();
    }

    /// Ends it by force, and waits for its listener. A process that it has started ends when the channels close; if one lives
    /// on, it keeps the listener, which nobody waits for then.
    pub fn end(&self) {
        self.kill();
        let deadline = Instant::now() + END_LIMIT;
        while !self.listener.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Closes the channels, too, which wakes whoever waits for an answer.
    fn kill(&self) {
        drop(self.child.lock().kill());
        for channel in [&self.control, &self.data] {
            drop(channel.shutdown(Shutdown::Both));
        }
        wait(&self.child, END_LIMIT);
    }
}

impl Heard {
    /// Hears until swtpm has ended.
    fn listen(&self, mut errors: ChildStderr) {
        let (mut all, mut piece) = (Vec::new(), [0; LAST_WORDS]);
        while let Ok(len @ 1..) = errors.read(&mut piece) {
            all.extend(&piece[..len]);
            all.drain(..all.len().saturating_sub(LAST_WORDS));
            self.0.lock().last_words = String::from_utf8_lossy(&all).trim().replace('\n', "; ");
        }
        self.0.lock().all = true;
    }

    /// An error if it has ended.
    pub fn goes_on(&self) -> io::Result<()> {
        if self.0.lock().all { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Its last words, behind a full stop, if there are any.
    pub fn last_words(&self) -> String {
        let words = &self.0.lock().last_words;
        if words.is_empty() { String::new() } else { format!(". Its last words: {words:?}") }
    }
}

/// Whether an answer did not come in time.
pub fn is_late(cause: &io::Error) -> bool {
    matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Its status, once it has ended.
fn wait(child: &Mutex<Child>, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Ok(Some(status)) = child.lock().try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An option `key=value` of swtpm, which takes a comma for the end of it.
fn option(key: &str, path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some(path) if !path.contains(',') => Ok(format!("{key}={path},mode=0600")),
        _ => Err(io::Error::other(format!("it cannot be told of the path {}", path.display()))),
    }
}

/// Sends a command and reads its response, which says how long it is.
pub(super) fn exchange(mut data: &UnixStream, command: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    data.set_write_timeout(Some(left(deadline)?))?;
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
        from.set_read_timeout(Some(left(deadline)?))?;
        match from.read(to) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => to = &mut to[len..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How long it is until then, which is later than now.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}
