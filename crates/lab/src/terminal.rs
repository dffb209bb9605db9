//! A person's terminal, which the command in the emulated host has as its own.
//!
//! The command gets a pseudo-terminal of the emulated host. What it writes there comes as [`Event::Output`]; what the
//! person types, and how large the terminal is, goes the other way over the same virtio-serial port as [`Typed`].
//!
//! [`Event::Output`]: crate::Event::Output

use std::io::Write;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::wire::{Screen, ScreenSize, Typed};

/// So many pieces of typing wait for a host that is slow to take them.
const WAITING: usize = 256;

/// The terminal. Its clones are the same one.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kind: String,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    size: ScreenSize,
    host: Option<SyncSender<Typed>>,
}

impl Terminal {
    /// A terminal of this kind (`$TERM`) and size.
    pub fn new(kind: &str, size: ScreenSize) -> Terminal {
        Terminal(Arc::new(Inner { kind: kind.to_owned(), now: Mutex::new(Now { size, host: None }) }))
    }

    /// Passes on what the person typed. As at any terminal, it is lost when nobody reads it and too much waits.
    pub fn typed(&self, bytes: &[u8]) {
        self.send(&self.now(), Typed::Bytes(bytes.to_vec()));
    }

    /// The terminal has another size now.
    pub fn resized(&self, size: ScreenSize) {
        let mut now = self.now();
        if now.size != size {
            now.size = size;
            self.send(&now, Typed::Size(size));
        }
    }

    /// What the emulated host must know of it before the command starts.
    pub(crate) fn screen(&self) -> Screen {
        Screen { kind: self.0.kind.clone(), size: self.now().size }
    }

    /// From now on, what is typed goes to this host. It goes by a thread, so that a host that takes nothing holds nobody up.
    pub(crate) fn connect(&self, mut host: impl Write + Send + 'static) {
        let (sender, typed) = sync_channel::<Typed>(WAITING);
        self.now().host = Some(sender);
        thread::spawn(move || {
            // The host may be gone: its end is told by whoever reads from it.
            while typed.recv().is_ok_and(|typed| typed.write(&mut host).is_ok()) {}
        });
    }

    fn send(&self, now: &Now, typed: Typed) {
        if let Some(host) = &now.host {
            // Full, or gone.
            let _lost = host.try_send(typed);
        }
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const SIZE: ScreenSize = ScreenSize { rows: 24, columns: 80 };
    const LARGER: ScreenSize = ScreenSize { rows: 50, columns: 132 };

    #[test]
    fn what_is_typed_goes_to_the_host_in_its_order_and_a_new_size_goes_once() {
        let terminal = Terminal::new("xterm", SIZE);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        terminal.connect(ours);
        terminal.typed(b"ls");
        terminal.resized(SIZE);
        terminal.resized(LARGER);
        terminal.typed(b"\r");
        let wanted = [Typed::Bytes(b"ls".to_vec()), Typed::Size(LARGER), Typed::Bytes(b"\r".to_vec())];
        for typed in wanted {
            assert_eq!(Typed::read(&mut theirs).unwrap(), typed);
        }
    }

    #[test]
    fn a_size_that_changed_before_the_host_was_there_is_the_one_it_starts_with() {
        let terminal = Terminal::new("xterm", SIZE);
        terminal.resized(LARGER);
        assert_eq!(terminal.screen(), Screen { kind: "xterm".into(), size: LARGER });
    }

    #[test]
    fn a_host_that_takes_nothing_holds_up_nobody() {
        let terminal = Terminal::new("xterm", SIZE);
        let (ours, theirs) = UnixStream::pair().unwrap();
        terminal.connect(ours);
        for _ in 0..10 * WAITING {
            terminal.typed(&[b'x'; 4096]);
        }
        drop(theirs);
    }
}
