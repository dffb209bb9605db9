//! The guest's console output, on its way to a sink that may be slow.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// A vCPU waits when the sink is behind by this much; nothing is dropped.
const BOUND: usize = 64 << 10;

/// A bounded pipe from the serial port to a sink, with a thread of its own, so that a vCPU writes into memory
/// instead of making a system call a byte.
pub struct Console {
    pipe: Arc<Pipe>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Pipe {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
    /// The sink failed, or nobody will wait for it any more; what finds no room goes nowhere.
    broken: bool,
}

/// The end into which the serial port writes.
pub struct ConsoleWriter(Arc<Pipe>);

impl Console {
    /// Starts the thread that writes to `sink`.
    pub fn new(mut sink: Box<dyn Write + Send>) -> io::Result<Console> {
        let pipe = Arc::new(Pipe::default());
        let end = pipe.clone();
        let thread =
            std::thread::Builder::new().name("console".into()).spawn(move || end.drain(sink.as_mut()))?;
        Ok(Console { pipe, thread: Some(thread) })
    }

    /// A new end to write into.
    pub fn writer(&self) -> ConsoleWriter {
        ConsoleWriter(self.pipe.clone())
    }
}

impl ConsoleWriter {
    /// Nobody waits for the sink from now on, so that a vCPU cannot be held up by a terminal that stands still.
    pub fn stop_waiting(&self) {
        self.0.lock().broken = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Console {
    /// Waits until all that was written is out.
    fn drop(&mut self) {
        self.pipe.lock().closed = true;
        self.pipe.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Pipe {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no code panics with this lock held")
    }

    fn drain(&self, sink: &mut (dyn Write + Send)) {
        let mut bytes = Vec::new();
        loop {
            {
                let mut state = self.lock();
                while state.bytes.is_empty() {
                    if state.closed {
                        return;
                    }
                    state = self.changed.wait(state).expect("no code panics with this lock held");
                }
                bytes.clear();
                std::mem::swap(&mut bytes, &mut state.bytes);
            }
            self.changed.notify_all();
            if sink.write_all(&bytes).and_then(|()| sink.flush()).is_err() {
                self.lock().broken = true;
                self.changed.notify_all();
                return;
            }
        }
    }
}

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        while state.bytes.len() >= BOUND && !state.broken {
            state = self.0.changed.wait(state).expect("no code panics with this lock held");
        }
        if state.bytes.len() < BOUND {
            let was_empty = state.bytes.is_empty();
            state.bytes.extend_from_slice(bytes);
            drop(state);
            if was_empty {
                self.0.changed.notify_all();
            }
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

    #[derive(Clone, Default)]
    struct Slow(Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            std::thread::sleep(std::time::Duration::from_millis(1));
            let some = &bytes[..bytes.len().min(4096)];
            self.0.lock().unwrap().extend(some);
            Ok(some.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_sink_loses_nothing_and_all_is_out_when_the_console_closes() {
        let slow = Slow::default();
        let console = Console::new(Box::new(slow.clone())).unwrap();
        let mut writer = console.writer();
        let sent: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        for piece in sent.chunks(7) {
            writer.write_all(piece).unwrap();
        }
        drop(console);
        assert!(*slow.0.lock().unwrap() == sent);
    }

    #[test]
    fn a_sink_that_went_away_does_not_stop_the_guest() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let console = Console::new(Box::new(Gone)).unwrap();
        let mut writer = console.writer();
        for _ in 0..100 {
            writer.write_all(&[0; 4096]).unwrap();
        }
    }
}
