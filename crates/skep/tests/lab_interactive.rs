//! A person works in the emulated host: `skep lab exec --interactive`. Needs what the other labs need.

use std::process::{Command, Stdio};
use std::time::Duration;

#[allow(dead_code)]
mod pty;

use pty::Session;

/// A boot on a busy machine.
const BOOT: Duration = Duration::from_secs(400);

fn skep(words: &[&str]) -> Command {
    let mut skep = Command::new(env!("CARGO_BIN_EXE_skep"));
    let kernel = if lab::lab_kernel().is_some() { "lab" } else { "debian" };
    skep.args(["lab", "exec", "--interactive", "--kernel", kernel, "--disk", "ahci:16M"]).args(words);
    skep
}

fn in_the_host(words: &[&str]) -> Session {
    let session = Session::start(skep(words));
    session.resize(31, 97);
    session
}

#[test]
fn a_shell_in_the_emulated_host_has_the_terminal_its_keys_and_its_size_and_gives_it_back() {
    let mut session = in_the_host(&[]);
    let before = session.settings();
    session.expect_within(BOOT, "the emulated host is up");
    session.press("tty; stty size; echo $((40 + 2)) $TERM.\r");
    session.expect("/dev/pts/0\r");
    session.expect("31 97\r");
    session.expect("42 ");
    assert!(session.settings().are_raw());
    session.resize(50, 132);
    session.press("while [ \"$(stty size)\" != '50 132' ]; do sleep 0.1; done; echo new''size\r");
    session.expect("newsize");
    // Ctrl-C is the shell's, not the lab's: the loop ends, and the shell goes on.
    // A shell of its own, which has the keys from its first word on, and ends by Ctrl-C whatever it has started.
    session.press("sh -c \"echo be''gun; sleep 600\"\r");
    session.expect("begun");
    session.press("\x03");
    session.press("echo the shell goes o''n\r");
    session.expect("the shell goes on");
    session.press("exit 7\r");
    assert_eq!(session.wait().code(), Some(7), "{}", session.seen());
    assert_eq!(session.settings(), before);
}

#[test]
fn a_command_has_the_terminal_and_what_ends_the_lab_gives_it_back() {
    type End = fn(&mut Session);
    let by_key: End = |session| session.press("\x1d");
    let by_signal: End = |session| session.kill(libc::SIGTERM);
    let ends = [("stopped by Ctrl-]", by_key), ("stopped by a signal", by_signal)];
    for (why, end) in ends {
        let mut session = in_the_host(&["--", "sh", "-c", "read line; echo \"heard $line\"; sleep 600"]);
        let before = session.settings();
        session.expect_within(BOOT, "the emulated host is up");
        session.press("a word\r");
        session.expect("heard a word");
        assert!(session.settings().are_raw());
        end(&mut session);
        assert_eq!(session.wait().code(), Some(124), "{}", session.seen());
        assert!(session.seen().contains(why), "{}", session.seen());
        assert_eq!(session.settings(), before, "{why}");
    }
}

#[test]
fn without_a_terminal_there_is_no_interactive_lab() {
    let output = skep(&[]).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("--interactive needs a terminal"), "{text}");
}
