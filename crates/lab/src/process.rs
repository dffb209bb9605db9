//! Helper programs: they die with us and they end in time.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The program of this name on the PATH, or in the folders of the system that may not be on it.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Makes the child die when the thread that starts it ends, and lead a process group of its own, so that
/// a Ctrl-C at the terminal reaches us first.
pub fn tie(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    command.process_group(0);
    // SAFETY: the closure runs in the child between fork and exec and calls only prctl, getppid and _exit,
    // which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above took effect.
            if libc::getppid().cast_unsigned() != parent {
                libc::_exit(125);
            }
            Ok(())
        })
    }
}

/// What a helper said and how it ended.
pub struct Said {
    /// How it ended; `None` when its time was over.
    pub status: Option<ExitStatus>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Said {
    /// Whether it ended well.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The last line of its standard error, or how it ended.
    pub fn reason(&self) -> String {
        let last = self.stderr.lines().rev().find(|line| !line.trim().is_empty());
        match (last, self.status) {
            (_, None) => "it took too long and was stopped".into(),
            (Some(line), _) => line.trim().trim_end_matches('.').to_owned(),
            (None, Some(status)) => status.to_string(),
        }
    }
}

/// Runs a helper to its end, or until `limit` is over.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<Said> {
    let mut child =
        tie(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let collect = |stream: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // A broken pipe of a killed helper ends the text, nothing more.
                let _ended = stream.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = collect(child.stdout.take().map(|s| Box::new(s) as _));
    let stderr = collect(child.stderr.take().map(|s| Box::new(s) as _));
    let status = wait(&mut child, limit)?;
    if status.is_none() {
        kill_group(&child);
        child.wait()?;
    }
    Ok(Said { status, stdout: stdout.join().unwrap_or_default(), stderr: stderr.join().unwrap_or_default() })
}

/// Waits until the child ends or `limit` is over.
pub fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Kills a child made by [`tie`] and everything it started in its group. The caller has not reaped it yet.
pub fn kill_group(child: &Child) {
    // SAFETY: kill takes no memory; the child was not reaped, so its id still names it and its group.
    unsafe { libc::kill(-child.id().cast_signed(), libc::SIGKILL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_takes_too_long_is_stopped_with_its_children() {
        let start = Instant::now();
        let said =
            run(Command::new("sh").args(["-c", "echo begun; sleep 60 & wait"]), Duration::from_millis(300))
                .unwrap();
        assert!(said.status.is_none() && !said.success());
        assert_eq!(said.stdout, "begun\n");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_helper_in_time_gives_its_words_and_status() {
        let said =
            run(Command::new("sh").args(["-c", "echo out; echo err. >&2; exit 3"]), Duration::from_secs(20))
                .unwrap();
        assert_eq!((said.stdout.as_str(), said.reason().as_str()), ("out\n", "err"));
        assert_eq!(said.status.unwrap().code(), Some(3));
    }
}
