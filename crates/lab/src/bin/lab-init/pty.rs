//! A terminal of the emulated host, which stands for the person's terminal in the outer machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use lab::wire::{ScreenSize, Typed};

/// The two ends of a terminal.
pub struct Ends {
    /// Where its keys go in and its text comes out.
    pub other_end: File,
    /// The terminal itself.
    pub terminal: OwnedFd,
}

/// Makes a terminal of this size.
pub fn open(size: ScreenSize) -> io::Result<Ends> {
    let (mut other_end, mut terminal) = (-1, -1);
    let size = form(size);
    // SAFETY: the two descriptors are valid for writes and the size for reads; the name and the settings may be null.
    let result = unsafe {
        libc::openpty(
            &raw mut other_end,
            &raw mut terminal,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were opened just now, and nobody else has them.
    let (other_end, terminal) = unsafe { (File::from_raw_fd(other_end), OwnedFd::from_raw_fd(terminal)) };
    for fd in [other_end.as_raw_fd(), terminal.as_raw_fd()] {
        // SAFETY: fcntl with F_SETFD takes no memory.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(Ends { other_end, terminal })
}

/// Makes the terminal on the command's standard input the one that it is controlled by, so that Ctrl-C and job control work.
pub fn owned_by(command: &mut Command) {
    // SAFETY: the closure calls only setsid and ioctl, which are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}

/// Passes on what is typed in the outer machine, until nothing comes any more or nobody has the terminal.
pub fn pass_on(mut from: impl Read, mut keys: File) {
    while let Ok(typed) = Typed::read(&mut from) {
        match typed {
            Typed::Bytes(bytes) => {
                if keys.write_all(&bytes).is_err() {
                    return;
                }
            }
            Typed::Size(size) => {
                let size = form(size);
                // The programs at the terminal get SIGWINCH by it.
                // SAFETY: the size lives through the call.
                unsafe { libc::ioctl(keys.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
            }
        }
    }
}

fn form(size: ScreenSize) -> libc::winsize {
    libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}
