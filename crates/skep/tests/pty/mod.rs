//! A terminal for tests: what is at the other end of it, and a process that has it as its own.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// The terminal's other end, and the process at the terminal.
pub struct Session {
    other_end: File,
    /// Keeps the terminal, and so its settings, alive when the process has ended.
    terminal: OwnedFd,
    child: Child,
    seen: String,
}

impl Session {
    /// Starts the command with a new terminal as its standard input, output and error, and as the terminal
    /// whose foreground it is.
    pub fn start(mut command: Command) -> Session {
        let (mut master, mut slave) = (-1, -1);
        let none = std::ptr::null_mut();
        // SAFETY: the two pointers are valid for writes; the others may be null.
        let opened =
            unsafe { libc::openpty(&raw mut master, &raw mut slave, none, none.cast(), none.cast()) };
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both were opened just now, and are owned by nobody else.
        let (other_end, terminal) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        for fd in [master, slave] {
            // SAFETY: changes flags of a file descriptor; touches no memory.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        // SAFETY: as above.
        unsafe { libc::fcntl(master, libc::F_SETFL, libc::O_NONBLOCK) };
        let copy = || terminal.try_clone().unwrap();
        command.stdin(copy()).stdout(copy()).stderr(copy());
        // SAFETY: these calls are allowed between fork and exec. The mask is inherited by all threads.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGTSTP, libc::SIGCONT] {
                    libc::sigaddset(&raw mut set, signal);
                }
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        Session { other_end, terminal, child, seen: String::new() }
    }

    /// The terminal's settings.
    pub fn settings(&self) -> Settings {
        // SAFETY: zeroes are a valid value, and the pointer is valid for writes.
        unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.terminal.as_raw_fd(), &raw mut settings), 0);
            Settings([settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag])
        }
    }

    /// Reads what the process writes until `text` was seen.
    pub fn expect(&mut self, text: &str) {
        self.expect_within(PATIENCE, text);
    }

    /// Reads what the process writes until `text` was seen, for so long.
    pub fn expect_within(&mut self, patience: Duration, text: &str) {
        let start = Instant::now();
        while !self.seen.contains(text) {
            self.read();
            assert!(start.elapsed() < patience, "{text:?} did not come: {:?}", self.seen);
        }
    }

    /// Types on the terminal.
    pub fn press(&mut self, keys: &str) {
        self.other_end.write_all(keys.as_bytes()).unwrap();
    }

    /// Gives the terminal another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the size lives through the call.
        assert_eq!(unsafe { libc::ioctl(self.other_end.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
    }

    /// Everything read so far.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    fn read(&mut self) {
        let mut bytes = [0; 4096];
        match self.other_end.read(&mut bytes) {
            Ok(n) => self.seen.push_str(&String::from_utf8_lossy(&bytes[..n])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}: {:?}", self.seen),
        }
    }

    /// Sends a signal to the process.
    pub fn kill(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: touches no memory; the child has not been waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Waits until the process is stopped.
    pub fn wait_stopped(&self) {
        let start = Instant::now();
        let stat = format!("/proc/{}/stat", self.child.id());
        while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
            assert!(start.elapsed() < PATIENCE, "it did not stop");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // What it wrote last.
                for _ in 0..3 {
                    self.read();
                }
                return status;
            }
            self.read();
            assert!(start.elapsed() < PATIENCE, "it did not end: {:?}", self.seen);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Fails if it has ended, which is as well.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a program can change about a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings([libc::tcflag_t; 4]);

impl Settings {
    /// Whether keys arrive one by one, without echo and without meaning.
    pub fn are_raw(self) -> bool {
        self.0[3] & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }
}
