//! The terminal is given back, whatever happens to the process that has it.
//!
//! Each test starts this test program again at a terminal of its own, where it does as skep does.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

#[path = "../src/escape.rs"]
#[allow(dead_code)]
mod escape;
#[allow(dead_code)]
mod pty;
#[path = "../src/signals.rs"]
#[allow(dead_code)]
mod signals;
#[path = "../src/terminal.rs"]
#[allow(dead_code)]
mod terminal;

use pty::Session;
use signals::{Signal, Signals};
use terminal::Terminal;

const HOW: &str = "SKEP_TEST_TERMINAL";

/// This program again, to take the terminal and then end in some way.
fn program(how: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "the_process_at_the_terminal", "--nocapture"]).env(HOW, how);
    command
}

/// Not a test by itself: what the other tests start.
#[test]
fn the_process_at_the_terminal() {
    let Ok(how) = std::env::var(HOW) else { return };
    let signals = Signals::take_over().unwrap();
    let terminal = Terminal::open().unwrap();
    println!("terminal: {terminal:?}");
    match how.as_str() {
        "drop" => drop(terminal),
        "exit" => std::process::exit(5),
        "panic" => panic!("on purpose"),
        "overflow" => println!("{}", overflow(1)),
        "abort" => std::process::abort(),
        "signals" => loop {
            match signals.wait().unwrap() {
                Signal::Stop => {
                    drop(terminal);
                    std::process::exit(7);
                }
                Signal::Suspend => terminal.suspend(),
                Signal::Continue => {
                    terminal.resume().unwrap();
                    println!("continued");
                }
                Signal::Resized => println!("resized"),
            }
        },
        _ => {}
    }
}

#[allow(unconditional_recursion)]
fn overflow(n: u64) -> u64 {
    let space = std::hint::black_box([n; 512]);
    overflow(n + 1) + space[3]
}

/// Starts the program, lets it take the terminal, does something to it, and sees that it gives the terminal back.
fn ends(how: &str, act: impl FnOnce(&Session)) -> (std::process::ExitStatus, String) {
    let mut session = Session::start(program(how));
    // As it was before the program started: nothing else changes a new terminal.
    let before = Session::start(Command::new("true")).settings();
    session.expect("terminal: Raw");
    act(&session);
    let status = session.wait();
    assert!(!before.are_raw());
    assert_eq!(session.settings(), before, "{how} {status}");
    (status, session.seen().to_owned())
}

#[test]
fn the_terminal_is_given_back_when_the_vm_ends() {
    assert!(ends("drop", |_| {}).0.success());
}

#[test]
fn the_terminal_is_given_back_at_exit() {
    assert_eq!(ends("exit", |_| {}).0.code(), Some(5));
}

#[test]
fn the_terminal_is_given_back_at_a_panic_before_its_message() {
    let (_, seen) = ends("panic", |_| {});
    assert!(seen.contains("on purpose"), "{seen}");
}

#[test]
fn the_terminal_is_given_back_when_the_stack_overflows_and_rust_still_says_so() {
    let (status, seen) = ends("overflow", |_| {});
    assert_eq!(status.signal(), Some(libc::SIGABRT));
    assert!(seen.contains("overflowed its stack"), "{seen}");
}

#[test]
fn the_terminal_is_given_back_at_an_abort() {
    assert_eq!(ends("abort", |_| {}).0.signal(), Some(libc::SIGABRT));
}

#[test]
fn the_terminal_is_given_back_at_the_signals_that_ask_for_the_end() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        assert_eq!(ends("signals", |session| session.kill(signal)).0.code(), Some(7), "{signal}");
    }
}

#[test]
fn the_terminal_is_given_back_at_signals_that_kill_and_they_still_do() {
    for signal in [libc::SIGQUIT, libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGUSR1, libc::SIGSYS] {
        assert_eq!(ends("signals", |session| session.kill(signal)).0.signal(), Some(signal));
    }
}

#[test]
fn a_suspended_process_lends_the_terminal_and_takes_it_again() {
    let mut session = Session::start(program("signals"));
    session.expect("terminal: Raw");
    assert!(session.settings().are_raw());
    session.kill(libc::SIGTSTP);
    session.wait_stopped();
    assert!(!session.settings().are_raw());
    session.kill(libc::SIGCONT);
    session.expect("continued");
    assert!(session.settings().are_raw());
}

#[test]
fn a_process_in_the_background_leaves_the_terminal_alone() {
    let program = program("drop");
    let mut shell = Command::new("sh");
    shell.env(HOW, "drop").arg("-c").arg("set -m; \"$@\" & wait; echo over").arg("sh");
    shell.arg(program.get_program()).args(program.get_args());
    let mut session = Session::start(shell);
    session.expect("over");
    assert!(session.seen().contains("terminal: Background"), "{}", session.seen());
    assert!(!session.settings().are_raw());
}

#[test]
fn without_a_terminal_there_is_nothing_to_do() {
    for input in [Stdio::null(), Stdio::piped()] {
        let output = program("drop").stdin(input).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("terminal: Absent"), "{text}");
    }
}

#[test]
fn a_closed_standard_input_is_no_terminal() {
    let program = program("drop");
    let mut shell = Command::new("sh");
    shell.env(HOW, "drop").arg("-c").arg("\"$@\" <&-").arg("sh");
    let output = shell.arg(program.get_program()).args(program.get_args()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("terminal: Absent"), "{text}");
}

#[test]
fn errors_have_colours_at_a_terminal_unless_its_owner_wants_none() {
    let mut skep = Command::new(env!("CARGO_BIN_EXE_skep"));
    skep.args(["run", "--name", ".."]).env_remove("NO_COLOR");
    let mut session = Session::start(skep);
    session.expect("is not a VM name");
    assert!(session.seen().contains("\x1b[1;31mskep:\x1b[0m "), "{:?}", session.seen());

    let mut skep = Command::new(env!("CARGO_BIN_EXE_skep"));
    skep.args(["run", "--name", ".."]).env("NO_COLOR", "1");
    let mut session = Session::start(skep);
    session.expect("is not a VM name");
    assert!(!session.seen().contains('\x1b'), "{:?}", session.seen());
}
