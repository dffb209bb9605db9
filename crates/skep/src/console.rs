//! The guest's serial console: where its output goes, and where its input comes from.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use config::Console;

/// An opened console.
pub struct Opened {
    /// Takes the guest's output.
    pub output: Box<dyn Write + Send>,
    /// Gives the guest's input.
    pub input: Input,
    /// A file whose old contents go once the VM starts.
    pub stale: Option<File>,
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
#[derive(Debug)]
pub struct ConsoleError {
    path: PathBuf,
    what: &'static str,
    cause: io::Error,
    hint: &'static str,
}

impl std::fmt::Display for ConsoleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot {} the console {}: {}. {}", self.what, self.path.display(), self.cause, self.hint)
    }
}

/// Opens the console that the description names.
pub fn open(console: &Console) -> Result<Opened, ConsoleError> {
    match console {
        Console::Stdio => Ok(Opened { output: Box::new(io::stdout()), input: Input::Standard, stale: None }),
        Console::File(path) => {
            let path = path.as_path().to_owned();
            let hint = "Check that its folder exists and may be written to (--console file:PATH).";
            let opened = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .and_then(|file| Ok((file.try_clone()?, file)));
            let (stale, file) = opened.map_err(|cause| ConsoleError { path, what: "create", cause, hint })?;
            let is_plain = file.metadata().is_ok_and(|metadata| metadata.is_file());
            Ok(Opened { output: Box::new(file), input: Input::Nothing, stale: is_plain.then_some(stale) })
        }
        Console::Socket(path) => {
            let path = path.as_path().to_owned();
            let hint = "If no other VM uses it, remove the file that is left there (--console socket:PATH).";
            let listener = UnixListener::bind(&path).map_err(|cause| ConsoleError {
                path: path.clone(),
                what: "listen on",
                cause,
                hint,
            })?;
            let socket = Socket { listener, path, peer: Peer::default() };
            Ok(Opened { output: Box::new(socket.peer.clone()), input: Input::Socket(socket), stale: None })
        }
    }
}

/// A console on a Unix socket: one peer at a time, the next one waits. The socket's file goes with it.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    peer: Peer,
}

impl Socket {
    /// What is to be removed at the end.
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Serves one peer after the other, for ever; what they send goes to `give`.
    pub fn serve(&self, mut give: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let (mut stream, _) = self.listener.accept()?;
            *self.peer.lock() = Some(stream.try_clone()?);
            let mut buffer = [0; 256];
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                give(&buffer[..len]);
            }
            *self.peer.lock() = None;
        }
    }
}

/// Whoever is connected now. Output without a peer goes nowhere, as on a serial line.
#[derive(Clone, Default)]
struct Peer(Arc<Mutex<Option<UnixStream>>>);

impl Peer {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.0.lock().expect("no code panics with this lock held")
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stream = self.lock().as_ref().map(UnixStream::try_clone).transpose()?;
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
