//! A running guest, and what it says, with time and exits at the moment it says it.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Exits of all VMs that live; a VM's own are gone with it, and there is one VM at a time.
const EXITS: &str = "/sys/kernel/debug/kvm/exits";

/// How much of what was said before an error shows.
const LAST: usize = 12;

/// A line on the guest's console.
pub struct Line {
    /// The text, without its end.
    pub text: String,
    /// Since the monitor's start.
    pub after: Duration,
    /// KVM exits up to here.
    pub exits: u64,
}

/// A monitor that runs a guest. Dropped before its end, it is killed.
pub struct Guest {
    child: Child,
    lines: Receiver<Line>,
    said: VecDeque<String>,
}

impl Guest {
    /// Starts a monitor.
    pub fn start(mut command: Command) -> io::Result<Guest> {
        let start = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|e| {
            io::Error::new(e.kind(), format!("cannot start {:?}: {e}", command.get_program()))
        })?;
        let console = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut console = BufReader::new(console);
            let mut bytes = Vec::new();
            while let Ok(1..) = console.read_until(b'\n', &mut bytes) {
                let (after, exits) = (start.elapsed(), exits());
                let text = String::from_utf8_lossy(&bytes).trim().to_owned();
                if sender.send(Line { text, after, exits }).is_err() {
                    return;
                }
                bytes.clear();
            }
        });
        Ok(Guest { child, lines, said: VecDeque::new() })
    }

    /// The monitor's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that contains `what`.
    pub fn wait_for(&mut self, what: &str, limit: Duration) -> io::Result<Line> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.text.contains(what) => return Ok(line),
                Ok(line) => {
                    self.said.push_back(line.text);
                    if self.said.len() > LAST {
                        self.said.pop_front();
                    }
                }
                Err(why) => {
                    let why = match why {
                        RecvTimeoutError::Timeout => format!("not within {} s", limit.as_secs()),
                        RecvTimeoutError::Disconnected => "it ended before".to_owned(),
                    };
                    let said: Vec<&str> = self.said.iter().map(String::as_str).collect();
                    let said = said.join("\n  ");
                    return Err(io::Error::other(format!(
                        "a guest did not say {what:?}: {why}. It said last:\n  {said}"
                    )));
                }
            }
        }
    }

    /// Waits for the monitor's own end.
    pub fn end(mut self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(io::Error::other(format!("a monitor ended with {status}"))),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
        Err(io::Error::other(format!("a monitor did not end within {} s", limit.as_secs())))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself, and been waited for.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn exits() -> u64 {
    fs::read_to_string(EXITS).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
