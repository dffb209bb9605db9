//! A conversation over a Unix socket, which busybox's nc does not do.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

/// Sends standard input to the socket and what comes back to standard output, until the other side ends.
pub fn talk(path: &str) -> Result<String, String> {
    let fail = |e: io::Error| format!("{path}: {e}");
    let mut socket = UnixStream::connect(path).map_err(fail)?;
    let mut there = socket.try_clone().map_err(fail)?;
    thread::spawn(move || {
        let sent = copy(&mut io::stdin(), &mut there).and_then(|_| there.shutdown(Shutdown::Write));
        if let Err(error) = sent {
            eprintln!("lab-io talk: cannot send: {error}");
        }
    });
    let received = copy(&mut socket, &mut io::stdout()).map_err(fail)?;
    Ok(format!("{path}: {received} bytes came"))
}

/// What comes is passed on at once.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<usize> {
    let (mut bytes, mut total) = ([0; 4096], 0);
    loop {
        let n = from.read(&mut bytes)?;
        if n == 0 {
            return Ok(total);
        }
        to.write_all(&bytes[..n])?;
        to.flush()?;
        total += n;
    }
}
