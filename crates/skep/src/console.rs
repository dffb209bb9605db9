//! The guest's serial console: where its output goes, and where its input comes from.

mod file;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use config::Console;
use control::{Callers, OwnSocket, SocketError};
use parking_lot::Mutex;

pub use file::{ConsoleFile, folder};
use file::{ConsoleFileError, Sink};

/// An opened console.
pub struct Opened {
    /// Takes the guest's output.
    pub output: Box<dyn Write + Send>,
    /// Gives the guest's input.
    pub input: Input,
    /// A file that takes the output once the VM starts.
    pub file: Option<Arc<ConsoleFile>>,
    /// A socket, whose file goes when this is dropped.
    pub socket: Option<OwnSocket>,
}

/// Where input comes from.
pub enum Input {
    /// Standard input, perhaps a terminal.
    Standard,
    /// Nowhere.
    Nothing,
    /// Whoever connects to a socket.
    Socket(Socket),
}

/// A console that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// A file.
    #[error(transparent)]
    File(#[from] ConsoleFileError),
    /// A socket.
    #[error("the console cannot be served: {0} (--console socket:PATH)")]
    Socket(#[from] SocketError),
}

/// What to say of a kernel's command line that sends no messages to the VM's console, which then stays dark until a
/// program in the guest writes to it. `None` if it does.
pub fn nothing_will_show(cmdline: &str) -> Option<&'static str> {
    // What follows `--` is for the guest's first program.
    let mut words = cmdline.split_whitespace().take_while(|word| *word != "--");
    let serial = |word: &str| {
        ["console=ttyS0", "console=uart", "earlyprintk=", "earlycon="]
            .iter()
            .any(|kind| word.starts_with(kind))
    };
    (!words.any(serial)).then_some(
        "the kernel's command line has no console=ttyS0, so its messages do not appear here. Add it to --cmdline to see them.",
    )
}

/// Opens the console that the description names, but for a file, which is only looked at: [`ConsoleFile::begin`].
pub fn open(console: &Console) -> Result<Opened, ConsoleError> {
    match console {
        Console::Stdio => {
            Ok(Opened { output: Box::new(io::stdout()), input: Input::Standard, file: None, socket: None })
        }
        Console::File(path) => {
            let file = Arc::new(ConsoleFile::look(path.as_path())?);
            let output = Box::new(Sink(file.clone()));
            Ok(Opened { output, input: Input::Nothing, file: Some(file), socket: None })
        }
        Console::Socket(path) => {
            let socket = OwnSocket::at(path.as_path())?;
            let peer = Peer::default();
            let input = Socket { callers: socket.callers(), peer: peer.clone() };
            let output = Box::new(peer);
            Ok(Opened { output, input: Input::Socket(input), file: None, socket: Some(socket) })
        }
    }
}

/// A console on a Unix socket: one peer at a time, the next one waits.
pub struct Socket {
    callers: Callers,
    peer: Peer,
}

impl Socket {
    /// Serves one peer after the other until the socket is gone; what they send goes to `give`.
    pub fn serve(&self, mut give: impl FnMut(&[u8])) {
        let turn_away = |mut stranger: &UnixStream| {
            let why = b"This VM belongs to another user. Its owner and root may use its console.\n";
            // Nobody waits for a peer that does not take it.
            drop(stranger.set_nonblocking(true).and_then(|()| stranger.write_all(why)));
        };
        while let Some(mut stream) = self.callers.next(turn_away) {
            // Without a second descriptor it cannot be served, and it sees its end.
            let Ok(own) = stream.try_clone() else { continue };
            *self.peer.lock() = Some(own);
            let mut buffer = [0; 256];
            loop {
                match stream.read(&mut buffer) {
                    Ok(len @ 1..) => give(&buffer[..len]),
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => break,
                }
            }
            *self.peer.lock() = None;
        }
    }
}

/// Whoever is connected now. Output without a peer goes nowhere, as on a serial line.
#[derive(Clone, Default)]
struct Peer(Arc<Mutex<Option<UnixStream>>>);

impl Peer {
    fn lock(&self) -> parking_lot::MutexGuard<'_, Option<UnixStream>> {
        self.0.lock()
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stream = match self.lock().as_ref().map(UnixStream::try_clone) {
            Some(Ok(stream)) => Some(stream),
            // As without a peer, for this time: the next try may find a descriptor.
            Some(Err(_)) | None => None,
        };
        if let Some(mut stream) = stream
            && stream.write_all(bytes).is_err()
        {
            *self.lock() = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_writes_nothing_on_the_console_is_announced() {
        for silent in ["", "quiet root=/dev/vda1", "console=tty0", "a -- console=ttyS0", "netconsole=ttyS0"] {
            assert!(nothing_will_show(silent).is_some_and(|word| word.contains("console=ttyS0")), "{silent}");
        }
        for heard in
            ["console=ttyS0", "a console=ttyS0,115200 b", "console=tty0 console=ttyS0", "earlyprintk=serial"]
        {
            assert_eq!(nothing_will_show(heard), None, "{heard}");
        }
    }
}
