//! What the emulated host's kernel and the emulator say.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::emulator::lock;

/// A host that gives no sign of life for so long is stuck, on a machine that is not overloaded.
pub const SILENCE: Duration = Duration::from_secs(60);

/// How much of the console is kept, in bytes.
const CONSOLE_KEPT: usize = 256 << 10;

/// What the kernel wrote, as much as is kept of it.
pub struct Console {
    kept: Mutex<(VecDeque<u8>, Option<Instant>)>,
    echo: bool,
}

impl Console {
    pub fn new(echo: bool) -> Console {
        Console { kept: Mutex::default(), echo }
    }

    pub fn record(&self, mut from: impl Read) {
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

    pub fn silence(&self, since: Instant) -> Duration {
        lock(&self.kept).1.unwrap_or(since).elapsed()
    }

    pub fn text(&self) -> String {
        let bytes: Vec<u8> = lock(&self.kept).0.iter().copied().collect();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}

/// [`SILENCE`], longer when more wants to run here than there are CPUs for.
pub fn patience() -> Duration {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    SILENCE.mul_f64((load / cpus as f64).clamp(1.0, 10.0))
}

/// What the emulator says, without what it says every time.
pub fn emulator_says(mut stderr: impl Read) -> String {
    let mut bytes = Vec::new();
    // A broken pipe of a killed emulator ends the text, nothing more.
    let _ended = stderr.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    text.lines()
        .filter(|line| !line.contains("TCG doesn't support"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The last lines that are not empty.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

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
