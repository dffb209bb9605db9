//! Starting a VM, and staying with it until its end.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use config::{Console, Draft};
use control::{Claim, Folder, FolderError, Journal, OwnSocket, Server};
use machine::{Control, Outcome, Vm};
use parking_lot::{Mutex, MutexGuard};

use crate::console::{self, ConsoleError, Input};
use crate::escape::{self, Escape};
use crate::exit::Exit;
use crate::footprint;
use crate::outputs::{self, Beside, OpenFiles, Written};
use crate::report::{self, Troubles};
use crate::report_file::{ReportError, ReportFile};
use crate::serve::Running;
use crate::signals::{Signal, Signals};
use crate::stop::{Stop, Wishes};
use crate::summary;
use crate::terminal::Terminal;

/// What is typed waits this long for a guest that reads slowly; a guest that hangs must not make the keys for skep
/// hang as well.
const TYPING: Duration = Duration::from_millis(200);
/// What comes from a pipe or socket waits as long as it takes.
const FOR_EVER: Duration = Duration::MAX;

/// Starts the VM and stays until its end. How it ended also goes to the file of the report.
pub fn start(description: &config::Vm, beside: Beside<'_>) -> Exit {
    raise_file_limit();
    let signals = match Signals::take_over() {
        Ok(signals) => signals,
        Err(cause) => return cannot_start(format_args!("cannot take over signals: {cause}.")),
    };
    let mut outside = Outside::look(&Draft::from(description), beside);
    // Its file goes at the very end, however that comes.
    let _socket = outside.take_socket();
    run(description, signals, outside)
}

/// Says everything on this host that stands in the way of a VM, beside what is wrong with its description.
pub fn say_findings(draft: &Draft, beside: Beside<'_>) {
    raise_file_limit();
    let mut outside = Outside::look(draft, beside);
    let findings = outside.while_looking(|looked| Vm::findings(draft, looked));
    outside.say_findings();
    findings.into_iter().for_each(report::error);
}

/// What a VM has in this host beside devices and disks, or why it cannot have it.
struct Outside {
    console: Result<Option<console::Opened>, ConsoleError>,
    summary: Result<Option<ReportFile>, ReportError>,
    name: Result<Option<Claim>, FolderError>,
    written: Vec<Written>,
    overwritten: Vec<String>,
}

impl Outside {
    /// Looks at all of it. Sockets are made, which go when the start fails; files stay as they are.
    fn look(draft: &Draft, beside: Beside<'_>) -> Outside {
        let written = outputs::written(draft, beside);
        Outside {
            console: draft.console.as_ref().map(console::open).transpose(),
            summary: beside.report.map(ReportFile::look).transpose(),
            name: draft.name.as_ref().map_or(Ok(None), claim),
            overwritten: outputs::overwritten(draft, beside, &written),
            written,
        }
    }

    /// Has the rest looked at, and adds what the run would overwrite of it: which files an image consists of is known while they are
    /// open.
    fn while_looking<T>(&mut self, look: impl FnOnce(&mut dyn FnMut()) -> T) -> T {
        let Outside { written, overwritten, .. } = self;
        let before = (!written.is_empty()).then(OpenFiles::now);
        look(&mut || {
            if let (Some(before), true) = (&before, overwritten.is_empty()) {
                *overwritten = OpenFiles::now().overwritten(before, written);
            }
        })
    }

    fn take_socket(&mut self) -> Option<OwnSocket> {
        self.console.as_mut().ok()?.as_mut()?.socket.take()
    }

    fn say_findings(self) {
        let Outside { console, summary, name, overwritten, .. } = self;
        console.err().into_iter().for_each(report::error);
        summary.err().into_iter().for_each(report::error);
        overwritten.into_iter().for_each(report::error);
        name.err().into_iter().for_each(report::error);
    }
}

fn run(description: &config::Vm, signals: Signals, mut outside: Outside) -> Exit {
    let troubles = match Troubles::new() {
        Ok(troubles) => troubles,
        Err(cause) => return cannot_start(format_args!("cannot start a thread: {cause}.")),
    };
    let end = Arc::new(End::default());
    let terminal = Arc::new(OnceLock::new());
    let (listener, seen) = (end.clone(), terminal.clone());
    let listening = spawn("signals", move || listen(&signals, &listener, &seen));
    if let Err(cause) = listening {
        return cannot_start(format_args!("cannot start a thread: {cause}."));
    }
    let journal = Arc::new(Journal::new());
    let reporter = troubles.reporter(journal.clone());
    // All that stands in the way is said at once, whatever it is.
    let checked = outside.while_looking(|looked| Vm::check(description, &reporter, looked));
    let (console, summary, name, checked) = match (outside, checked) {
        (
            Outside { console: Ok(Some(console)), summary: Ok(summary), name: Ok(name), overwritten, .. },
            Ok(checked),
        ) if overwritten.is_empty() => (console, summary, name, checked),
        (outside, checked) => {
            drop(reporter);
            troubles.finish();
            outside.say_findings();
            checked.err().into_iter().flatten().for_each(report::error);
            return end.without_a_start();
        }
    };
    let built = Vm::build(description, checked, console.output, reporter, end.cancelled.clone());
    let vm = match built {
        Ok(vm) => vm,
        Err(findings) => {
            troubles.finish();
            findings.into_iter().for_each(report::error);
            return end.without_a_start();
        }
    };
    if matches!(description.console, Console::Stdio)
        && io::stdout().is_terminal()
        && let Some(linux) = description.boot.kernel()
        && let Some(word) = console::nothing_will_show(linux.cmdline.as_str())
    {
        report::note(word);
    }
    let running = Running::new(description.name.as_str(), vm.control(), journal);
    end.begin(vm.control());
    // The terminal is taken only now, so that what stood in the way of a start was printed as usual.
    let opened = listen_to(console.input, &end, &terminal)
        .map_err(|cause| format!("cannot listen to the console: {cause}. Use --console file:PATH."))
        .and_then(|()| {
            let server = name.map(|name| Server::start(name, Arc::new(running))).transpose();
            server.map_err(|cause| format!("cannot serve the control socket: {cause}."))
        })
        .and_then(|server| {
            // Last: a start that fails leaves the file as it was.
            let begun = console.file.as_ref().map_or(Ok(()), |file| file.begin());
            begun.map(|()| server).map_err(|error| error.to_string())
        });
    let server = match opened {
        Ok(server) => server,
        Err(why) => {
            let left = vm.give_up();
            if let Some(terminal) = terminal.get() {
                terminal.close();
            }
            troubles.finish();
            left.err().into_iter().for_each(report::error);
            return cannot_start(why);
        }
    };
    footprint::let_go_of_the_start();
    let stopped = vm.run();
    end_in_any_case();
    // Nothing may ask for what is being taken apart, but how it goes is told.
    if let Some(server) = &server
        && let Err(unanswered) = server.retire()
    {
        // Standard error that stands still must not keep the devices.
        say::error(unanswered);
    }
    let ended = stopped.dismantle();
    drop(server);
    if let Some(terminal) = terminal.get() {
        terminal.close();
    }
    troubles.finish();
    if let Some(file) = summary
        && let Err(error) = file.write(&summary::json(&ended))
    {
        report::error(error);
    }
    match ended.outcome {
        Outcome::PoweredOff => Exit::PoweredOff,
        Outcome::Stopped => Exit::Stopped,
        Outcome::Crashed(how) => {
            report::error(format_args!("the guest crashed: {how}."));
            Exit::GuestCrashed
        }
        Outcome::Failed(how) => {
            report::error(format_args!("the VM was stopped: {how}"));
            Exit::Failed
        }
    }
}

/// Claims the VM's name, and with it the place of its control socket. A user who has no place for sockets gets a VM
/// without, and is told so.
fn claim(name: &config::VmName) -> Result<Option<Claim>, FolderError> {
    match Folder::of_this_user() {
        Ok(folder) => folder.claim(name).map(Some),
        Err(error @ FolderError::NoPlace) => {
            report::error(format_args!("the VM will have no control socket, for {error}."));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn cannot_start(why: impl std::fmt::Display) -> Exit {
    report::error(why);
    Exit::CouldNotStart
}

/// How long a VM may take to end when threads of it have stopped for good. Devices are waited for as long as this.
const LAST_RESORT: Duration = Duration::from_secs(120);

/// Ends the process a while from now if it still has to wait for threads that have stopped because guest RAM is lost:
/// what they hold may be what the end needs.
fn end_in_any_case() {
    let watching = spawn("last-resort", || {
        std::thread::sleep(LAST_RESORT);
        if memory::any_stopped() {
            report::error(
                "threads that stopped because guest RAM was lost keep the VM from ending, so the process ends now. The next \
                 start gives its devices back, or `skep host give-back` does.",
            );
            std::process::exit(Exit::Failed.status().into());
        }
    });
    // Without the thread the end is as good as ever, only without this limit.
    drop(watching);
}

/// A VM with many queues and vectors has more eventfds than the usual 1024 files; the hard limit is there to be used.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads the limit into, and sets it from, a structure of ours. If it fails the VM has the files it had.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// The wishes for the VM's end, from signals and from the keyboard.
struct End {
    wishes: Mutex<Wishes>,
    /// The VM, once there is one.
    control: OnceLock<Control>,
    /// The end was wished for before there was one.
    cancelled: Arc<AtomicBool>,
}

impl Default for End {
    fn default() -> End {
        End { wishes: Mutex::new(Wishes::none()), control: OnceLock::new(), cancelled: Arc::default() }
    }
}

impl End {
    fn begin(&self, control: Control) {
        // A wish comes either before this, and is seen here, or after, and finds the VM.
        let _wishes = self.wishes();
        if self.cancelled.load(Ordering::SeqCst) {
            control.stop();
        }
        // Nobody else sets it.
        drop(self.control.set(control));
    }

    /// The exit of a VM that never was.
    fn without_a_start(&self) -> Exit {
        if self.cancelled.load(Ordering::SeqCst) { Exit::Stopped } else { Exit::CouldNotStart }
    }

    fn one_more(&self) {
        let mut wishes = self.wishes();
        match self.control.get() {
            None => self.cancelled.store(true, Ordering::SeqCst),
            Some(control) => match wishes.one_more() {
                Stop::PowerButton => control.press_power_button(),
                Stop::Now => control.stop(),
            },
        }
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock()
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Starts to listen to the console's input. The thread ends with the process.
fn listen_to(input: Input, end: &Arc<End>, terminal: &OnceLock<Terminal>) -> io::Result<()> {
    let Some(control) = end.control.get().cloned() else { return Ok(()) };
    match input {
        Input::Standard => {
            let terminal_now = Terminal::open()?;
            let keys = terminal_now.escape();
            drop(terminal.set(terminal_now));
            let Some(keys) = keys else { return Ok(()) };
            let patience = if matches!(keys, Escape::Off) { FOR_EVER } else { TYPING };
            let end = end.clone();
            spawn("keyboard", move || {
                let read = escape::read(io::stdin().lock(), keys, |typed| match typed {
                    escape::Input::Guest(byte) => {
                        control.type_on_console(&[byte], patience);
                    }
                    escape::Input::Quit => end.one_more(),
                    escape::Input::Help => report::answer(escape::HELP),
                });
                if let Err(cause) = read {
                    report::error(format_args!("cannot read standard input any more: {cause}."));
                }
            })
        }
        Input::Socket(socket) => spawn("console-socket", move || {
            socket.serve(|bytes| {
                control.type_on_console(bytes, FOR_EVER);
            });
        }),
        Input::Nothing => Ok(()),
    }
}

fn listen(signals: &Signals, end: &End, terminal: &OnceLock<Terminal>) {
    loop {
        match (signals.wait(), terminal.get()) {
            (Ok(Signal::Stop), _) => end.one_more(),
            (Ok(Signal::Suspend), Some(terminal)) => terminal.suspend(),
            (Ok(Signal::Suspend), None) => crate::signals::suspend(),
            (Ok(Signal::Continue), Some(terminal)) => {
                if let Err(cause) = terminal.resume() {
                    report::error(format_args!("cannot take the terminal again: {cause}."));
                }
            }
            // A serial console has no size.
            (Ok(Signal::Continue), None) | (Ok(Signal::Resized), _) => {}
            (Err(cause), _) => {
                return report::error(format_args!("cannot wait for signals any more: {cause}."));
            }
        }
    }
}
