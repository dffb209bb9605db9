//! The guest's console output, on its way to a sink that may be slow.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
/// A vCPU waits when so many bytes wait for the sink; nothing is dropped.
const BOUND: usize = 64 << 10;

/// How long the end of a VM waits for a sink to take the rest.
const SINK_LIMIT: Duration = Duration::from_secs(2);

/// A bounded pipe from the serial port to a sink, with a thread of its own, so that a vCPU writes into memory
/// instead of making a system call a byte.
pub struct Console {
    pipe: Arc<Pipe>,
}

#[derive(Default)]
struct Pipe {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// No more bytes come.
    closed: bool,
    /// All that came is out, or the sink failed.
    done: bool,
    /// vCPUs do not wait for room now; output without room is dropped.
    hurried: bool,
}

/// The end into which the serial port writes.
pub struct ConsoleWriter(Arc<Pipe>);

impl Console {
    /// Starts the thread that writes to `sink`.
    pub fn new(mut sink: Box<dyn Write + Send>) -> io::Result<Console> {
        let pipe = Arc::new(Pipe::default());
        let end = pipe.clone();
        std::thread::Builder::new().name("console".into()).spawn(move || {
            end.drain(sink.as_mut());
            end.lock().done = true;
            end.changed.notify_all();
        })?;
        Ok(Console { pipe })
    }

    /// A new end to write into.
    pub fn writer(&self) -> ConsoleWriter {
        ConsoleWriter(self.pipe.clone())
    }

    /// Whether vCPUs wait for a slow sink, as they should while the VM runs, or not, so that they can be held.
    pub fn hurry(&self, hurried: bool) {
        self.pipe.lock().hurried = hurried;
        self.pipe.changed.notify_all();
    }
}

impl Drop for Console {
    /// Waits until all output is written, for a limited time: a terminal that is stopped, or a pipe that nobody
    /// reads, must not keep a VM from ending. Its thread then ends with the process.
    fn drop(&mut self) {
        let mut state = self.pipe.lock();
        state.closed = true;
        self.pipe.changed.notify_all();
        let end = Instant::now() + SINK_LIMIT;
        while !state.done {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return };
            self.pipe.changed.wait_for(&mut state, left);
        }
    }
}

impl Pipe {
    fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Writes what comes until the pipe closes or the sink fails.
    fn drain(&self, sink: &mut (dyn Write + Send)) {
        let mut bytes = Vec::new();
        loop {
            {
                let mut state = self.lock();
                while state.bytes.is_empty() {
                    if state.closed {
                        return;
                    }
                    self.changed.wait(&mut state);
                }
                bytes.clear();
                std::mem::swap(&mut bytes, &mut state.bytes);
            }
            self.changed.notify_all();
            if sink.write_all(&bytes).and_then(|()| sink.flush()).is_err() {
                return;
            }
        }
    }
}

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        while state.bytes.len() >= BOUND && !state.hurried && !state.done {
            self.0.changed.wait(&mut state);
        }
        if state.bytes.len() < BOUND && !state.done {
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
            self.0.lock().extend(some);
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
        assert!(*slow.0.lock() == sent);
    }

    #[test]
    fn a_sink_that_stands_still_holds_up_neither_a_vcpu_in_a_hurry_nor_the_end() {
        struct Still;
        impl Write for Still {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                loop {
                    std::thread::park();
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let console = Console::new(Box::new(Still)).unwrap();
        let mut writer = console.writer();
        let vcpu = std::thread::spawn(move || (0..1000).for_each(|_| writer.write_all(&[0; 4096]).unwrap()));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!vcpu.is_finished(), "it waits while the VM runs");
        console.hurry(true);
        vcpu.join().unwrap();
        drop(console);
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
