//! Helpers that talk a lot: one line on the terminal, and all that they say in a file.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many of its last lines are shown of a helper that fails.
const SHOWN: usize = 30;

/// How often the line changes.
const EVERY: Duration = Duration::from_millis(200);

/// The longest piece of a helper's line that is shown.
const WIDTH: usize = 50;

/// Runs a helper that must succeed. `what` is what it does, for the line; `name` is its log's, in `target/logs`.
pub fn run(what: &str, name: &str, mut command: Command) -> Result<()> {
    let path = log_path(name)?;
    let mut log = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    command.stdout(writer.try_clone().context("cannot share a pipe")?).stderr(writer);
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    // Our own ends of the pipe are in the command; the reader comes to its end when the child's are closed too.
    drop(command);
    let mut line = Line::start(what);
    let mut last = VecDeque::with_capacity(SHOWN);
    for said in BufReader::new(reader).split(b'\n') {
        let said = said.with_context(|| format!("cannot read what {program} says"))?;
        log.write_all(&said).and_then(|()| log.write_all(b"\n")).context("cannot write the log")?;
        let said = String::from_utf8_lossy(&said).into_owned();
        line.now(&said);
        if last.len() == SHOWN {
            last.pop_front();
        }
        last.push_back(said);
    }
    let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
    if status.success() {
        line.end("done");
        return Ok(());
    }
    line.end("failed");
    for said in last {
        eprintln!("  | {said}");
    }
    bail!("{what} failed ({program}, {status}); all that it said is in {}", path.display())
}

fn log_path(name: &str) -> Result<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(beside, PathBuf::from);
    let folder = target.join("logs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join(format!("{name}.log")))
}

/// The line: on a terminal it changes in place, elsewhere there is one at the start and one at the end.
struct Line<'a> {
    what: &'a str,
    start: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Line<'_> {
    fn start(what: &str) -> Line<'_> {
        let terminal = io::stderr().is_terminal();
        if !terminal {
            eprintln!("{what} …");
        }
        Line { what, start: Instant::now(), shown: None, terminal }
    }

    fn now(&mut self, said: &str) {
        if self.terminal && self.shown.is_none_or(|shown| shown.elapsed() >= EVERY) {
            self.shown = Some(Instant::now());
            eprint!("\r\x1b[K{} ({} s): {}", self.what, self.start.elapsed().as_secs(), piece(said));
        }
    }

    fn end(&self, how: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}{}: {how} in {} s", self.what, self.start.elapsed().as_secs());
    }
}

/// What of a line fits, without what would move the cursor.
fn piece(said: &str) -> String {
    said.trim().chars().filter(|c| !c.is_control()).take(WIDTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_names_the_log_which_has_all() {
        let script =
            "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done; echo to stderr >&2; exit 3";
        let error = run("counting", "quiet-test-failure", shell(script)).unwrap_err().to_string();
        let path = log_path("quiet-test-failure").unwrap();
        assert!(error.contains("counting failed") && error.contains(&path.display().to_string()), "{error}");
        let log = fs::read_to_string(&path).unwrap();
        assert_eq!(log.lines().count(), 101);
        assert!(log.contains("line 0\n") && log.ends_with("to stderr\n"), "{log}");
    }

    #[test]
    fn a_helper_that_does_well_is_quiet() {
        run("nothing", "quiet-test-success", shell("echo a")).unwrap();
        assert_eq!(fs::read_to_string(log_path("quiet-test-success").unwrap()).unwrap(), "a\n");
    }

    #[test]
    fn a_piece_of_a_line_moves_no_cursor() {
        assert_eq!(piece("  Get:1\r\x1b[2K http "), "Get:1[2K http");
        assert_eq!(piece(&"x".repeat(200)).len(), WIDTH);
    }
}
