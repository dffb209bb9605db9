//! Runs the tests, and says how far they are and how long they will still take, by the times of the last run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::test::is_lab;

/// How often there is a line about it.
const EVERY: Duration = Duration::from_secs(20);
/// How nextest ends when tests failed (NextestExitCode::TEST_RUN_FAILED).
const TESTS_FAILED: i32 = 100;
/// What a test takes of which nothing is known, in seconds.
const UNKNOWN_LAB: f64 = 20.0;
const UNKNOWN: f64 = 0.1;

/// Runs the tests that nextest chooses by these arguments, which are these, up to `threads` at once, and returns those that
/// failed. Their times are kept for the next run.
pub fn run(arguments: &[String], tests: &[String], threads: usize) -> Result<BTreeSet<String>> {
    let silent = silent_hosts();
    // What is not there need not go.
    fs::remove_file(&silent)
        .or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .with_context(|| format!("cannot remove {silent}"))?;
    let mut times = Times::read();
    let mut ahead = Ahead::new(tests, &times);
    let mut failed = BTreeSet::new();
    let colour = if std::io::stderr().is_terminal() { "always" } else { "never" };
    let mut nextest = Command::new(env!("CARGO"))
        .args(["nextest", "run", "--workspace", "--color", colour])
        .args(["--test-threads", &threads.to_string()])
        .args(arguments)
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let lines = nextest.stderr.take().context("nextest has no output")?;
    let (start, mut told) = (Instant::now(), Instant::now());
    for line in BufReader::new(lines).split(b'\n') {
        let line = line.context("cannot read nextest's output")?;
        let mut stderr = std::io::stderr();
        stderr.write_all(&line).and_then(|()| stderr.write_all(b"\n")).context("cannot write")?;
        let Some(End { test, seconds, passed }) = ended(&plain(&String::from_utf8_lossy(&line))) else {
            continue;
        };
        ahead.without(&test);
        if !passed {
            failed.insert(test.clone());
        }
        times.0.insert(test, seconds);
        if told.elapsed() >= EVERY {
            told = Instant::now();
            eprintln!("--- {}", ahead.line(start.elapsed()));
        }
    }
    let status = nextest.wait().context("cannot wait for cargo")?;
    times.write()?;
    eprintln!("--- {} tests in {}", tests.len(), minutes(start.elapsed().as_secs_f64()));
    let lost = fs::read_to_string(&silent).unwrap_or_default();
    if !lost.is_empty() {
        eprintln!(
            "--- {} emulated hosts gave no sign of life any more, and what was played in them was played again:",
            lost.lines().count()
        );
        eprint!("{lost}");
    }
    whole(status.code(), ahead.left.len(), !failed.is_empty())?;
    Ok(failed)
}

/// Whether all tests ran, whatever came of them: nextest ended by itself, and none of them is left.
fn whole(code: Option<i32>, left: usize, failures: bool) -> Result<()> {
    ensure!(left == 0, "nextest ended before {left} of the tests did");
    let agrees = code == Some(if failures { TESTS_FAILED } else { 0 });
    ensure!(agrees, "nextest ended with {code:?}, which is not what its tests say");
    Ok(())
}

/// How many tests run at once: one more than there are CPUs, for many wait for something. There are never more labs than
/// `.config/nextest.toml` says.
pub fn at_once() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + 1
}

/// Where tests write down that an emulated host gave no sign of life any more (crates/skep/tests/scenario/silence.rs).
fn silent_hosts() -> String {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    format!("{target}/tmp/silent-hosts")
}

/// The tests that are still to come, with what each takes.
struct Ahead {
    of: usize,
    left: BTreeMap<String, f64>,
    /// What those took, by the same record, that have ended.
    done: f64,
}

impl Ahead {
    fn new(tests: &[String], times: &Times) -> Ahead {
        let takes = |test: &String| {
            let unknown = if is_lab(test) { UNKNOWN_LAB } else { UNKNOWN };
            (test.clone(), times.0.get(test).copied().unwrap_or(unknown))
        };
        Ahead { of: tests.len(), left: tests.iter().map(takes).collect(), done: 0.0 }
    }

    fn without(&mut self, test: &str) {
        self.done += self.left.remove(test).unwrap_or_default();
    }

    /// How far it is. What is left goes at the pace of what is done.
    fn line(&self, elapsed: Duration) -> String {
        let left: f64 = self.left.values().sum();
        let labs = self.left.keys().filter(|test| is_lab(test)).count();
        let seconds = elapsed.as_secs_f64() * left / self.done.max(UNKNOWN);
        let done = self.of - self.left.len();
        format!("{done} of {} tests, {labs} of the lab's to come, about {} left", self.of, minutes(seconds))
    }
}

fn minutes(seconds: f64) -> String {
    if seconds < 100.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) }
}

/// How long each test took when it ran last, in seconds, by `BINARY TEST`.
#[derive(Default)]
struct Times(BTreeMap<String, f64>);

impl Times {
    fn path() -> String {
        let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
        format!("{target}/test-times.json")
    }

    /// Without a record, or with one that is no longer understood, there are only guesses.
    fn read() -> Times {
        let text = fs::read_to_string(Times::path()).unwrap_or_default();
        Times(serde_json::from_str(&text).unwrap_or_default())
    }

    fn write(&self) -> Result<()> {
        let path = Times::path();
        fs::write(&path, format!("{:#}\n", serde_json::json!(self.0)))
            .with_context(|| format!("cannot write {path}"))
    }
}

/// The line without colours, which are `ESC [ … m`.
fn plain(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or(part, |(_, rest)| rest))
}

/// How a test ended.
#[derive(Debug, PartialEq)]
struct End {
    /// `BINARY TEST`.
    test: String,
    seconds: f64,
    passed: bool,
}

/// What a line says of a test that has ended: `PASS [   1.382s] ( 698/1034) lab::lab_exec a_device`. A failure is `FAIL`, `TIMEOUT` or
/// the name of a signal; `LEAK` passed, and something that it started outlives it.
fn ended(line: &str) -> Option<End> {
    let (how, rest) = line.split_once(" [")?;
    let (seconds, rest) = rest.split_once("s] (")?;
    let (count, test) = rest.split_once(") ")?;
    // A test that is only slow has no number yet.
    let (number, _) = count.split_once('/')?;
    number.trim().parse::<u32>().ok()?;
    let passed = ["PASS", "LEAK"].contains(&how.trim());
    Some(End { test: test.trim().to_owned(), seconds: seconds.trim().parse().ok()?, passed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_test_that_has_ended_gives_its_name_time_and_end_and_no_other_does() {
        let end = |test: &str, seconds, passed| End { test: test.to_owned(), seconds, passed };
        let line = "        PASS [   1.382s] ( 698/1034) lab::lab_exec a_device_is_named";
        assert_eq!(ended(line), Some(end("lab::lab_exec a_device_is_named", 1.382, true)));
        let colours = "\u{1b}[31;1m        FAIL\u{1b}[0m [  61.000s] (   2/9) \u{1b}[35mskep::lab_cd\u{1b}[0m \u{1b}[34ma_disc\u{1b}[0m";
        assert_eq!(ended(&plain(colours)), Some(end("skep::lab_cd a_disc", 61.0, false)));
        let late = "     TIMEOUT [ 300.003s] (   9/9) skep::lab_cd a_disc";
        assert_eq!(ended(late), Some(end("skep::lab_cd a_disc", 300.003, false)));
        for other in [
            "        SLOW [>120.000s] (─────────) skep::lab_fio fio_finds",
            "     Summary [ 600.1s] 1034 tests run: 1034 passed",
            "guest: [ 12s] (4) words",
            "",
        ] {
            assert_eq!(ended(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_run_counts_only_if_no_test_is_left_and_its_end_is_what_they_say() {
        assert!(whole(Some(0), 0, false).is_ok() && whole(Some(TESTS_FAILED), 0, true).is_ok());
        for (code, left, failures) in [
            (Some(TESTS_FAILED), 1, true),
            (None, 0, true),
            (Some(0), 3, false),
            (Some(4), 0, false),
            (Some(0), 0, true),
        ] {
            assert!(whole(code, left, failures).is_err(), "{code:?} {left} {failures}");
        }
    }

    #[test]
    fn what_is_left_goes_at_the_pace_of_what_is_done() {
        let tests = ["skep::lab_a one", "skep::lab_a two", "skep fast"].map(str::to_owned);
        let times = Times([("skep::lab_a one".to_owned(), 30.0), ("skep fast".to_owned(), 0.0)].into());
        let mut ahead = Ahead::new(&tests, &times);
        ahead.without("skep::lab_a one");
        // Thirty seconds' worth took fifteen, so twenty seconds' worth will take ten.
        let line = ahead.line(Duration::from_secs(15));
        assert_eq!(line, "1 of 3 tests, 1 of the lab's to come, about 10 s left");
    }
}
