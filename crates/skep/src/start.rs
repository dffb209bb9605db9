//! Starting a VM, and staying with it until its end.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use machine::{Control, Outcome, Vm};

use crate::console::{self, Input};
use crate::escape;
use crate::exit::Exit;
use crate::report;
use crate::signals::{Signal, Signals};
use crate::stop::{Stop, Wishes};
use crate::summary;
use crate::terminal::Terminal;

/// Starts the VM and stays until its end. How it ended also goes to the file `report`.
pub fn start(description: &config::Vm, report: Option<&Path>) -> Exit {
    let signals = match Signals::take_over() {
        Ok(signals) => signals,
        Err(cause) => return cannot_start(format_args!("cannot take over signals: {cause}.")),
    };
    let console = match console::open(&description.console) {
        Ok(console) => console,
        Err(error) => return cannot_start(error),
    };
    let socket = if let Input::Socket(socket) = &console.input { Some(socket.path()) } else { None };
    let exit = run(description, signals, console, report);
    if let Some(path) = socket
        && let Err(cause) = std::fs::remove_file(&path)
    {
        report::error(format_args!("cannot remove the console's socket {}: {cause}.", path.display()));
    }
    exit
}

fn run(description: &config::Vm, signals: Signals, console: console::Opened, to: Option<&Path>) -> Exit {
    let vm = match Vm::build(description, console.output, Box::new(|what| report::error(what))) {
        Ok(vm) => vm,
        Err(findings) => {
            for finding in findings {
                report::error(finding);
            }
            return Exit::CouldNotStart;
        }
    };
    // The terminal is taken only now, so that what stood in the way of a start was printed as usual.
    let terminal = match console.input {
        Input::Standard => Some(Terminal::open(&signals)),
        _ => None,
    };
    let terminal = match terminal.transpose() {
        Ok(terminal) => terminal.map(Arc::new),
        Err(cause) => {
            return cannot_start(format_args!("cannot use the terminal: {cause}. Use --console file:PATH."));
        }
    };
    let wishes = Arc::new(Wish { wishes: Mutex::new(Wishes::none()), control: vm.control() });
    if let Err(cause) = attend(&wishes, signals, terminal.clone(), console.input) {
        return cannot_start(format_args!("cannot start the console's threads: {cause}."));
    }
    let ended = vm.run();
    if let Some(terminal) = terminal {
        terminal.close();
    }
    if let Some(path) = to
        && let Err(cause) = std::fs::write(path, summary::json(&ended))
    {
        report::error(format_args!(
            "cannot write the report {}: {cause}. Check the path after --report.",
            path.display()
        ));
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

fn cannot_start(why: impl std::fmt::Display) -> Exit {
    report::error(why);
    Exit::CouldNotStart
}

/// The wishes for the VM's end, from signals and from the keyboard.
struct Wish {
    wishes: Mutex<Wishes>,
    control: Control,
}

impl Wish {
    fn one_more(&self) {
        match self.wishes.lock().expect("no code panics with this lock held").one_more() {
            Stop::PowerButton => self.control.press_power_button(),
            Stop::Now => self.control.stop(),
        }
    }
}

/// Starts the threads that listen to signals and to the console's input. They end with the process.
fn attend(
    wish: &Arc<Wish>,
    signals: Signals,
    terminal: Option<Arc<Terminal>>,
    input: Input,
) -> io::Result<()> {
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
    };
    let (end, terminal_of_signals) = (wish.clone(), terminal.clone());
    spawn("signals", Box::new(move || listen(&signals, &end, terminal_of_signals.as_deref())))?;
    let control = wish.control.clone();
    match input {
        Input::Standard => {
            let Some(keys) = terminal.and_then(|terminal| terminal.escape()) else { return Ok(()) };
            let quit = wish.clone();
            spawn(
                "keyboard",
                Box::new(move || {
                    let read = escape::read(io::stdin().lock(), keys, |typed| match typed {
                        escape::Input::Guest(byte) => control.type_on_console(&[byte]),
                        escape::Input::Quit => quit.one_more(),
                        escape::Input::Help => eprint!("\r\n{}\r\n", escape::HELP.replace('\n', "\r\n")),
                    });
                    if let Err(cause) = read {
                        report::error(format_args!("cannot read standard input any more: {cause}."));
                    }
                }),
            )
        }
        Input::Socket(socket) => spawn(
            "console-socket",
            Box::new(move || {
                if let Err(cause) = socket.serve(|bytes| control.type_on_console(bytes)) {
                    report::error(format_args!(
                        "the console's socket takes no connections any more: {cause}."
                    ));
                }
            }),
        ),
        Input::Nothing => Ok(()),
    }
}

fn listen(signals: &Signals, wish: &Wish, terminal: Option<&Terminal>) {
    loop {
        match (signals.wait(), terminal) {
            (Ok(Signal::Stop), _) => wish.one_more(),
            (Ok(Signal::Suspend), Some(terminal)) => terminal.suspend(),
            (Ok(Signal::Suspend), None) => crate::signals::suspend(),
            (Ok(Signal::Continue), Some(terminal)) => {
                if let Err(cause) = terminal.resume() {
                    report::error(format_args!("cannot take the terminal again: {cause}."));
                }
            }
            (Ok(Signal::Continue), None) => {}
            (Err(cause), _) => {
                return report::error(format_args!("cannot wait for signals any more: {cause}."));
            }
        }
    }
}
