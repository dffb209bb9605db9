//! A run of the lab: boot, listen, end in time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::image::in_memory;
use crate::machine::Machine;
use crate::places::Places;
use crate::spec::{IommuModel, Kernel};
use crate::system::{System, of_this_run};
use crate::wire::{Frame, HOST_WORD, Job, Mount};
use crate::{Lab, LabError, process};

/// A boot that says nothing for so long is stuck, on a machine that is not overloaded.
const SILENCE: Duration = Duration::from_secs(60);

/// How much of the console is kept, in bytes, and how much of it an error shows, in lines.
const CONSOLE_KEPT: usize = 256 << 10;
const CONSOLE_SHOWN: usize = 25;

/// Which output of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// What happens during a run, as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The emulator starts.
    Booting,
    /// The first boot did not come up, for this reason; there is a second one.
    Retrying(&'a str),
    /// The emulated host is set up, and the command starts.
    Up,
    /// The command wrote something.
    Output(Stream, &'a [u8]),
    /// Something that is worth a line when one looks closely.
    Note(&'a str),
}

/// A line that the command wrote, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where to.
    pub stream: Stream,
    /// The text, with what is no UTF-8 replaced.
    pub text: String,
}

/// How a run went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command's exit status; 128 + N when signal N ended it.
    pub status: i32,
    /// What the command wrote to standard output, when it was collected.
    pub output: String,
    /// What the command wrote to standard error, when it was collected.
    pub errors: String,
    /// The end of what the emulated host's kernel wrote to its console.
    pub console: String,
    /// What the emulator itself said; VT-d's faults are among it.
    pub emulator: String,
    /// The kernel that ran, as it calls itself.
    pub kernel: String,
    /// From the start of the emulator to the start of the command.
    pub boot: Duration,
    /// From the call to the end.
    pub total: Duration,
    /// How many boots it took: 1, or 2.
    pub boots: u32,
    /// The table of disks: an array of objects with bus, serial, size, sha256, logical and physical.
    pub disks: serde_json::Value,
}

impl Outcome {
    /// Whether the command ended well.
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

impl Lab {
    /// Boots the host, runs a command in it, and hands each line it writes to `on_line`, as it is written.
    /// The outcome has the whole output as well.
    ///
    /// # Errors
    /// When the lab fails or its time is over; a command that fails is no error.
    pub fn run(&self, command: &[&str], mut on_line: impl FnMut(&Line)) -> Result<Outcome, LabError> {
        let mut stdout = Lines::new(Stream::Stdout);
        let mut stderr = Lines::new(Stream::Stderr);
        let result = self.stream(command, |event| match event {
            Event::Output(Stream::Stdout, bytes) => stdout.take(bytes, &mut on_line),
            Event::Output(Stream::Stderr, bytes) => stderr.take(bytes, &mut on_line),
            Event::Retrying(why) => eprintln!("lab: {why}; starting again"),
            Event::Booting | Event::Up | Event::Note(_) => {}
        });
        let (output, errors) = (stdout.finish(&mut on_line), stderr.finish(&mut on_line));
        result.map(|outcome| Outcome { output, errors, ..outcome })
    }

    /// Boots the host, runs a command in it, and hands out what happens, as it happens. The outcome has no output.
    ///
    /// # Errors
    /// When the lab fails or its time is over; a command that fails is no error.
    pub fn stream(&self, command: &[&str], mut on_event: impl FnMut(Event<'_>)) -> Result<Outcome, LabError> {
        let start = Instant::now();
        let places = Places::find()?;
        let qemu = find_qemu()?;
        let system = System::prepare(&self.kernel, &places)?;
        let deadline = Deadline { at: start + self.timeout, given: self.timeout };
        let mut boots = 0;
        loop {
            boots += 1;
            on_event(Event::Booting);
            let boot = Boot::start(self, command, &places, &qemu, &system, boots)?;
            match boot.follow(&deadline, &mut on_event) {
                Ok(outcome) => return Ok(Outcome { total: start.elapsed(), boots, ..outcome }),
                Err(Failed::Retry { why, .. }) if boots == 1 => on_event(Event::Retrying(&why)),
                Err(Failed::Retry { why, console }) => return Err(LabError::NoBoot { why, console }),
                Err(Failed::Final(error)) => return Err(error),
            }
        }
    }
}

/// The emulator: `$SKEP_LAB_QEMU`, else Debian's.
fn find_qemu() -> Result<PathBuf, LabError> {
    let name = std::env::var("SKEP_LAB_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into());
    process::find(&name).ok_or(LabError::Missing {
        program: name,
        purpose: "it emulates the host",
        command: "apt-get install -y qemu-system-x86 (as root)",
    })
}

struct Deadline {
    at: Instant,
    given: Duration,
}

/// Why a boot did not end with the command's status.
enum Failed {
    /// The host did not come up; another try may help.
    Retry { why: String, console: String },
    /// Another try would not help.
    Final(LabError),
}

/// An emulator that runs.
struct Boot {
    qemu: Arc<Mutex<Running>>,
    started: Instant,
    frames: Receiver<io::Result<Frame>>,
    console: Arc<Console>,
    emulator: thread::JoinHandle<String>,
    disks: serde_json::Value,
}

/// The child process. Once it is reaped its number may belong to another, so nobody kills it any more.
struct Running {
    child: Child,
    reaped: bool,
    timed_out: bool,
}

impl Boot {
    fn start(
        lab: &Lab,
        command: &[&str],
        places: &Places,
        qemu: &PathBuf,
        system: &System,
        attempt: u32,
    ) -> Result<Boot, LabError> {
        let mut machine = Machine::new(lab);
        machine.furnish(lab, &places.cache)?;
        let folders = folders(lab, places, system)?;
        for (index, (folder, mount)) in folders.iter().enumerate() {
            // There are at most four.
            machine.folder(folder, mount, index as u8);
        }
        let job = Job {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            mounts: folders.into_iter().map(|(_, mount)| mount).collect(),
            overlay: lab.host_root.then(|| "/host".to_owned()),
            disks: machine.disks().len(),
        };
        let disks = serde_json::Value::from(machine.disks());
        let table = format!("{disks:#}\n");
        let initrd = initrd(&system.host, &of_this_run(places, &job, &table)?)?;
        // The second time, the kernel says all it has to say.
        machine.boot(&system.kernel.elf, initrd, &command_line(lab, attempt > 1));
        let (ours, theirs) = UnixStream::pair().map_err(|e| LabError::system("make", "a socket pair", e))?;
        machine.wire(File::from(OwnedFd::from(theirs)));
        let (arguments, inherited) = machine.finish();

        let started = Instant::now();
        let mut child = spawn(qemu, &arguments, &inherited)?;
        drop(inherited);
        let console = Arc::new(Console::new(lab.verbose));
        if let Some(stdout) = child.stdout.take() {
            let console = Arc::clone(&console);
            thread::spawn(move || console.record(stdout));
        }
        let stderr = child.stderr.take();
        let emulator = thread::spawn(move || stderr.map(emulator_says).unwrap_or_default());
        let (sender, frames) = sync_channel(64);
        thread::spawn(move || {
            let mut wire = io::BufReader::with_capacity(1 << 16, ours);
            loop {
                let frame = Frame::read(&mut wire);
                let ended = frame.is_err();
                if sender.send(frame).is_err() || ended {
                    return;
                }
            }
        });
        let qemu = Arc::new(Mutex::new(Running { child, reaped: false, timed_out: false }));
        Ok(Boot { qemu, started, frames, console, emulator, disks })
    }

    /// Follows what init says until the command's status is there.
    fn follow(self, deadline: &Deadline, on_event: &mut impl FnMut(Event<'_>)) -> Result<Outcome, Failed> {
        let watch = Watch::set(&self.qemu, deadline.at);
        let mut kernel = None;
        let mut boot = None;
        let end = loop {
            match self.frames.recv_timeout(Duration::from_secs(1)) {
                Ok(Ok(Frame::Hello(name))) => kernel = Some(name),
                Ok(Ok(Frame::Started)) => {
                    boot = Some(self.started.elapsed());
                    on_event(Event::Up);
                }
                Ok(Ok(Frame::Stdout(bytes))) => on_event(Event::Output(Stream::Stdout, &bytes)),
                Ok(Ok(Frame::Stderr(bytes))) => on_event(Event::Output(Stream::Stderr, &bytes)),
                Ok(Ok(Frame::Note(text))) => on_event(Event::Note(&text)),
                Ok(Ok(Frame::Failure(why))) => break End::Failure(why),
                Ok(Ok(Frame::Exit(status))) => break End::Exit(status),
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => break End::Gone,
                Err(RecvTimeoutError::Timeout) if kernel.is_none() => {
                    let silence = self.console.silence(self.started);
                    if silence > patience() {
                        break End::Stalled(silence);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        drop(watch);
        self.finish(end, kernel, boot, deadline)
    }

    /// Ends the emulator and says how it went.
    fn finish(
        self,
        end: End,
        kernel: Option<String>,
        boot: Option<Duration>,
        deadline: &Deadline,
    ) -> Result<Outcome, Failed> {
        let (status, timed_out) = {
            let mut qemu = lock(&self.qemu);
            let status = qemu.end(&end).map_err(|e| Failed::Final(LabError::system("end", "QEMU", e)))?;
            (status, qemu.timed_out)
        };
        let emulator = self.emulator.join().unwrap_or_default();
        let console = self.console.text();
        let shown = last_lines(&console, CONSOLE_SHOWN);
        let during = match (&kernel, boot) {
            (None, _) => "the emulated host was booting",
            (_, None) => "the emulated host was being set up",
            _ => "the command was running",
        };
        let error = match end {
            End::Exit(status) => {
                return Ok(Outcome {
                    status,
                    output: String::new(),
                    errors: String::new(),
                    console,
                    emulator,
                    kernel: kernel.unwrap_or_default(),
                    boot: boot.unwrap_or_default(),
                    total: Duration::ZERO,
                    boots: 1,
                    disks: self.disks,
                });
            }
            _ if timed_out => LabError::TimedOut { after: deadline.given, during, console: shown },
            End::Failure(why) => LabError::Inside { why, console: shown },
            End::Stalled(silence) => {
                let why = format!("its boot stood still for {} s", silence.as_secs());
                return Err(Failed::Retry { why, console: shown });
            }
            End::Gone if kernel.is_none() && console.is_empty() => {
                let message = last_lines(&emulator, 3).trim().replace('\n', "; ");
                LabError::Qemu { status, hint: hint(&message), message }
            }
            End::Gone if kernel.is_none() => {
                return Err(Failed::Retry {
                    why: format!("it died while booting ({status})"),
                    console: shown,
                });
            }
            End::Gone => LabError::Died { status, console: shown },
        };
        Err(Failed::Final(error))
    }
}

/// How the conversation with init ended.
enum End {
    Exit(i32),
    Failure(String),
    Stalled(Duration),
    Gone,
}

impl Running {
    /// Ends the emulator if it has not ended, and reaps it.
    fn end(&mut self, end: &End) -> io::Result<String> {
        // What the host wrote is with QEMU or beyond when init says that it is done: init syncs first.
        let grace = if matches!(end, End::Gone) { Duration::from_secs(5) } else { Duration::ZERO };
        let status = match process::wait(&mut self.child, grace)? {
            Some(status) => status,
            None => {
                process::kill_group(&self.child);
                self.child.wait()?
            }
        };
        self.reaped = true;
        Ok(status.to_string())
    }
}

/// Kills the emulator when the time is over, whatever everybody else does. Dropped, it lets it live.
struct Watch(Arc<(Mutex<bool>, Condvar)>);

impl Watch {
    fn set(qemu: &Arc<Mutex<Running>>, at: Instant) -> Watch {
        let off = Arc::new((Mutex::new(false), Condvar::new()));
        let (qemu, watched) = (Arc::clone(qemu), Arc::clone(&off));
        thread::spawn(move || {
            let left = at.saturating_duration_since(Instant::now());
            let (flag, changed) = &*watched;
            let result = changed.wait_timeout_while(lock(flag), left, |off| !*off);
            if *result.unwrap_or_else(PoisonError::into_inner).0 {
                return;
            }
            let mut qemu = lock(&qemu);
            if !qemu.reaped {
                qemu.timed_out = true;
                process::kill_group(&qemu.child);
            }
        });
        Watch(off)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }
}

/// What the kernel wrote, as much as is kept of it.
struct Console {
    kept: Mutex<(VecDeque<u8>, Option<Instant>)>,
    echo: bool,
}

impl Console {
    fn new(echo: bool) -> Console {
        Console { kept: Mutex::default(), echo }
    }

    fn record(&self, mut from: impl Read) {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            if self.echo {
                // Nobody may be listening; the run goes on.
                let _unheard = io::stderr().write_all(&bytes[..n]);
            }
            let mut kept = lock(&self.kept);
            kept.0.extend(&bytes[..n]);
            let surplus = kept.0.len().saturating_sub(CONSOLE_KEPT);
            kept.0.drain(..surplus);
            kept.1 = Some(Instant::now());
        }
    }

    fn silence(&self, since: Instant) -> Duration {
        lock(&self.kept).1.unwrap_or(since).elapsed()
    }

    fn text(&self) -> String {
        let bytes: Vec<u8> = lock(&self.kept).0.iter().copied().collect();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}

/// [`SILENCE`], longer when more wants to run here than there are CPUs for.
fn patience() -> Duration {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    SILENCE.mul_f64((load / cpus as f64).clamp(1.0, 10.0))
}

/// The folders that this host sees, and where.
fn folders(lab: &Lab, places: &Places, system: &System) -> Result<Vec<(PathBuf, Mount)>, LabError> {
    let mount = |tag: &str, at: &str, writable| Mount { tag: tag.into(), at: at.into(), writable };
    let mut folders = vec![
        (system.guest.clone(), mount("guest", "/lab/guest", false)),
        (places.tree.clone(), mount("tree", "/tree", false)),
    ];
    if let Some(share) = &lab.share {
        let folder = share.canonicalize().map_err(LabError::path("share the folder", share))?;
        if !folder.is_dir() {
            return Err(LabError::Description {
                why: format!("{} is no folder", share.display()),
                hint: "Give --share a folder",
            });
        }
        folders.push((folder, mount("share", "/share", true)));
    }
    if lab.host_root {
        folders.push(("/".into(), mount("root", "/run/root", false)));
    }
    Ok(folders)
}

fn command_line(lab: &Lab, talkative: bool) -> String {
    let mut words = vec!["console=ttyS0", "no_timer_check", "panic=-1", HOST_WORD];
    if !(lab.verbose || talkative) {
        words.push("quiet");
    }
    words.extend(match lab.iommu.model {
        IommuModel::Intel => vec!["intel_iommu=on", "iommu=nopt"],
        IommuModel::Amd => vec!["iommu=nopt"],
        IommuModel::None => vec![],
    });
    let hugepages = format!("hugepagesz=2M hugepages={}", lab.hugepages);
    if lab.hugepages > 0 {
        words.push(&hugepages);
    }
    // Built in, it would make a disk at once and be /dev/sda.
    if matches!(lab.kernel, Kernel::Lab) {
        words.push("scsi_debug.add_host=0");
    }
    words.push(&lab.append);
    words.join(" ").trim_end().to_owned()
}

/// The initramfs of this run in one file in RAM.
fn initrd(base: &std::path::Path, own: &[u8]) -> Result<File, LabError> {
    let base_bytes = std::fs::read(base).map_err(LabError::path("read", base))?;
    let write = || {
        let mut file = in_memory("skep-lab-initrd")?;
        file.write_all(&base_bytes)?;
        file.write_all(own)?;
        Ok(file)
    };
    write().map_err(|e| LabError::system("write", "the initramfs", e))
}

fn spawn(qemu: &PathBuf, arguments: &[String], inherited: &[File]) -> Result<Child, LabError> {
    let mut command = Command::new(qemu);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let fds: Vec<i32> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the closure runs in the child between fork and exec and calls only fcntl, which is
    // async-signal-safe, on descriptors that the parent keeps open until spawn returns.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    process::tie(&mut command).spawn().map_err(LabError::path("start", qemu))
}

/// What the emulator says, without what it says every time.
fn emulator_says(mut stderr: impl Read) -> String {
    let mut bytes = Vec::new();
    // A broken pipe of a killed emulator ends the text, nothing more.
    let _ended = stderr.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    text.lines()
        .filter(|line| !line.contains("TCG doesn't support"))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn hint(message: &str) -> &'static str {
    if message.contains("igb") && message.contains("not a valid device model") {
        "The igb device came with QEMU 8.0: install a newer one (on Debian 12, as root: apt-get install -y -t bookworm-backports qemu-system-x86), or name it with SKEP_LAB_QEMU."
    } else if message.contains("not a valid device model") {
        "List what this QEMU has with: qemu-system-x86_64 -device help"
    } else if message.contains("lock") {
        "The image is in use by another lab or virtual machine."
    } else if message.contains("annot set up guest memory") {
        "Ask for less with --memory."
    } else {
        "Look at what was asked for with --device, --disk and --iommu."
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cuts a stream into lines, and keeps the whole.
struct Lines {
    stream: Stream,
    whole: Vec<u8>,
    line_start: usize,
}

impl Lines {
    fn new(stream: Stream) -> Self {
        Lines { stream, whole: Vec::new(), line_start: 0 }
    }

    fn take(&mut self, bytes: &[u8], on_line: &mut impl FnMut(&Line)) {
        self.whole.extend_from_slice(bytes);
        while let Some(length) = self.whole[self.line_start..].iter().position(|byte| *byte == b'\n') {
            self.give(length, on_line);
            self.line_start += length + 1;
        }
    }

    fn finish(mut self, on_line: &mut impl FnMut(&Line)) -> String {
        let rest = self.whole.len() - self.line_start;
        if rest > 0 {
            self.give(rest, on_line);
        }
        String::from_utf8_lossy(&std::mem::take(&mut self.whole)).into_owned()
    }

    fn give(&self, length: usize, on_line: &mut impl FnMut(&Line)) {
        let bytes = &self.whole[self.line_start..self.line_start + length];
        let text = String::from_utf8_lossy(bytes).trim_end_matches('\r').to_owned();
        on_line(&Line { stream: self.stream, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines() {
        let mut seen = Vec::new();
        let mut lines = Lines::new(Stream::Stdout);
        let mut on_line = |line: &Line| seen.push(line.text.clone());
        for piece in ["a\nb", "c", "\r\n\nd"] {
            lines.take(piece.as_bytes(), &mut on_line);
        }
        assert_eq!(lines.finish(&mut on_line), "a\nbc\r\n\nd");
        assert_eq!(seen, ["a", "bc", "", "d"]);
    }

    #[test]
    fn the_console_keeps_its_end() {
        let console = Console::new(false);
        let mut text = vec![b'x'; CONSOLE_KEPT];
        text.extend(b"the end");
        console.record(text.as_slice());
        assert_eq!(console.text().len(), CONSOLE_KEPT);
        assert!(console.text().ends_with("xthe end"));
    }

    #[test]
    fn patience_is_at_least_a_minute() {
        assert!(patience() >= SILENCE);
    }
}
