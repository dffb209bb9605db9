//! Bringing to stable storage what a disk's cache holds, apart from any queue of the guest's.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use disk::{Disk, Event, Operation, Request};
use memory::{Buffers, Gpa, GpaRange, Ram};

/// Why a flush brought nothing.
pub(crate) type FlushError = Box<dyn Error + Send + Sync>;

/// Flushes the disk, however long that takes. The failure is not held back by `on-error=pause`.
pub(crate) fn flush(disk: &Disk) -> Result<(), FlushError> {
    let mut queue = disk.prepare_queue(1)?.start()?;
    // No data goes with it; but buffers lie in some memory.
    let page = GpaRange::new(Gpa(0), 4096).expect("not empty");
    let buffers = Buffers::new(Arc::new(Ram::new(&[page])?));
    let submitted = queue.submit(Request { tag: 0, operation: Operation::Flush, buffers });
    submitted.map_err(|refused| refused.error)?;
    let mut events = Vec::new();
    loop {
        queue.wait(&mut events)?;
        for event in events.drain(..) {
            if let Event::Done { result, .. } = event {
                return Ok(result?);
            }
        }
    }
}

/// Flushes on a thread of its own, for those who cannot wait for ever. There is one such thread at most.
#[derive(Default)]
pub(crate) struct Flusher {
    last: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Flushes the disk, and waits for it so long at most.
    pub(crate) fn flush_within(&mut self, disk: &Arc<Disk>, patience: Duration) -> Result<(), FlushError> {
        let late = || -> FlushError { io::Error::from(io::ErrorKind::TimedOut).into() };
        if self.last.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Err(late());
        }
        let (answer, answered) = channel();
        let theirs = disk.clone();
        let thread = thread::Builder::new().name(format!("flush-{}", disk.name()));
        self.last = Some(thread.spawn(move || {
            // Nobody may be waiting any more.
            answer.send(flush(&theirs)).ok();
        })?);
        answered.recv_timeout(patience).map_err(|why| match why {
            RecvTimeoutError::Timeout => late(),
            RecvTimeoutError::Disconnected => "its thread has ended".into(),
        })?
    }
}
