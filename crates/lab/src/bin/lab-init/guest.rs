//! Init of a guest: loads drivers, runs a script, switches off; at once when somebody presses the power button.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::button;
use crate::drivers::{self, Drivers};
use crate::system;

/// A script that lies in the initramfs, put there by `lab-initrd`.
pub const SCRIPT: &str = "lab/script";

/// The word that asks for a sign of life and nothing more.
const INIT_ONLY: &str = "lab.init-only";

/// So long a guest with that word stays, so that whoever heard it can look at it alive.
const INIT_ONLY_STAY: Duration = Duration::from_millis(500);

/// Disks have settled when nothing new came for so long; a guest does not wait longer than the limit.
const SETTLED: Duration = Duration::from_millis(300);
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// With `lab.init-only`: says `lab: init` before anything else, stays for a moment, and switches off.
pub fn answer_at_once() {
    // Only the command line must be read before.
    let _absent = system::mount("proc", "proc", "/proc", 0, "");
    if system::command_line().iter().any(|word| word == INIT_ONLY) {
        print("lab: init");
        thread::sleep(INIT_ONLY_STAY);
        system::power_off();
    }
}

/// Runs the script of the command line or of the initramfs, and says `lab: exit N` at the end. The power button
/// ends it before, and says `lab: power button`.
pub fn run() {
    system::mount_the_usual();
    let drivers = Drivers::of_this_kernel();
    let mut complaints = settle(&drivers);
    complaints.extend(button::listen(&drivers, || {
        print("lab: power button");
        system::power_off();
    }));
    for complaint in complaints {
        print(&format!("lab: {complaint}"));
    }
    let status = script().map_or_else(
        |error| {
            print(&format!("lab: {error}"));
            125
        },
        |script| shell(&script),
    );
    system::sync();
    print(&format!("lab: exit {status}"));
}

/// Loads drivers until no new disks appear.
fn settle(drivers: &Drivers) -> Vec<String> {
    let mut complaints = drivers.load_for_devices();
    let start = Instant::now();
    let (mut count, mut since) = (drivers::disk_count(), start);
    while since.elapsed() < SETTLED && start.elapsed() < SETTLE_LIMIT {
        thread::sleep(Duration::from_millis(10));
        complaints.extend(drivers.load_for_devices());
        let now = drivers::disk_count();
        if now != count {
            (count, since) = (now, Instant::now());
        }
    }
    complaints
}

fn script() -> io::Result<String> {
    if let Ok(script) = fs::read_to_string(format!("/{SCRIPT}")) {
        return Ok(script);
    }
    let line = system::command_line();
    let coded = line.iter().find_map(|word| word.strip_prefix("lab.run="));
    let Some(coded) = coded else {
        return Err(io::Error::other("there is no script: give lab.run=BASE64 on the kernel's command line"));
    };
    let bytes = decode(coded).ok_or_else(|| io::Error::other("lab.run= is not base64"))?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

fn shell(script: &str) -> i32 {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script]).current_dir("/root").env_clear();
    shell.envs([("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"), ("HOME", "/root"), ("TERM", "dumb")]);
    match shell.status() {
        Ok(status) => system::shell_status(status),
        Err(error) => {
            print(&format!("lab: cannot start /bin/sh: {error}"));
            127
        }
    }
}

/// Writes a line to the console and waits until it is out.
fn print(line: &str) {
    let mut console = io::stdout();
    // Without a console there is nobody to tell.
    let _unheard = writeln!(console, "{line}").and_then(|()| console.flush());
    // SAFETY: tcdrain takes no memory.
    unsafe { libc::tcdrain(console.as_raw_fd()) };
}

/// Base64 (RFC 4648, section 4), with or without padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for symbol in text.trim_end_matches('=').bytes() {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}
