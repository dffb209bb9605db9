//! What a device model is to its transport.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ::pci::Pass;
use vmm_sys_util::eventfd::EventFd;

use crate::features::Features;
use crate::interrupt::{ConfigChange, Interrupt};
use crate::queue::Queue;

/// A queue that a driver has taken into use, with all that its thread needs.
pub struct QueueSetup {
    /// Number of the queue.
    pub index: u16,
    /// The queue, at its beginning.
    pub queue: Queue,
    /// Written when the driver kicks, and by [`Worker::stop`]. Never read by anybody else.
    pub kick: EventFd,
    /// Tells the driver about used buffers.
    pub interrupt: Interrupt,
    /// What was negotiated.
    pub features: Features,
    /// Says when the thread may touch guest memory, which the queue is in. `kick` wakes the thread when that changes.
    pub pass: Pass,
}

/// Why a device could not take a queue into use.
pub type StartError = Box<dyn Error + Send + Sync>;

/// A virtio device without its transport. Calls come one at a time, from vCPU threads; work is done by the
/// threads of its queues.
pub trait VirtioDevice: Send {
    /// A name for people: "virtio-blk disk0".
    fn name(&self) -> &str;

    /// Device type (VIRTIO 1.2, 5): 2 for a block device.
    fn device_type(&self) -> u16;

    /// PCI class code in 24 bits.
    fn class(&self) -> u32;

    /// Features offered, beside those of the transport.
    fn features(&self) -> Features;

    /// The longest size of each queue, a power of two. Drivers may choose less.
    fn queue_sizes(&self) -> &[u16];

    /// Hands over the means to tell the driver that configuration space has changed by itself.
    fn attach(&mut self, _change: ConfigChange) {}

    /// Driver and device have agreed on these features (2.2). No queue runs yet.
    fn negotiated(&mut self, _features: Features) {}

    /// Reads the device's configuration space; bytes it does not have are 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver wrote to configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Starts to serve a queue, on a thread of its own. The thread ends when it is asked to, and before that
    /// waits for everything that may still touch guest memory. It keeps its pass as long, and looks at it after each wait.
    fn start_queue(&mut self, setup: QueueSetup) -> Result<Worker, StartError>;

    /// Back to the state before any driver; all queues have stopped.
    fn reset(&mut self);
}

/// Asked by a queue's thread whether it should end.
#[derive(Clone, Debug)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether to end. It becomes true before the kick that tells of it.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The thread of a queue. Dropping it stops the thread and waits for its end, however long that takes: whoever must not
/// wait for ever asks [`Worker::ends_within`] first, and may [`Worker::leave`] it then.
#[derive(Debug)]
pub struct Worker {
    stop: Stop,
    kick: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread. It sleeps on `kick` and then looks at its [`Stop`].
    pub fn spawn(
        name: String,
        kick: &EventFd,
        body: impl FnOnce(Stop) + Send + 'static,
    ) -> io::Result<Worker> {
        let kick = kick.try_clone()?;
        let stop = Stop(Arc::default());
        let theirs = stop.clone();
        let thread = thread::Builder::new().name(name).spawn(move || body(theirs))?;
        Ok(Worker { stop, kick, thread: Some(thread) })
    }

    /// Asks the thread to end, without waiting.
    pub fn stop(&self) {
        self.stop.0.store(true, Ordering::Release);
        // The only failure is a counter at its limit, which wakes the thread as well.
        self.kick.write(1).ok();
    }

    /// Asks the thread to end and waits so long for it at most; whether it has ended.
    pub fn ends_within(&self, patience: Duration) -> bool {
        self.stop();
        let begin = Instant::now();
        while !self.has_ended() && begin.elapsed() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        self.has_ended()
    }

    /// Nobody waits for the thread any more, which has been asked to end and holds what it uses until it does.
    pub fn leave(mut self) {
        self.stop();
        self.thread = None;
    }

    /// Whether the thread has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended, and said so.
            thread.join().ok();
        }
    }
}
