//! The virtio block device (VIRTIO 1.2, 5.2).
//!
//! Each queue has a thread of its own, named `vq-DISK-N`, with a queue of its own to the disk. The thread takes
//! chains, turns each into one request whose buffers are the guest's own memory, and hands all of them to the
//! kernel in the system call in which it also waits for completions and kicks.

mod config;
mod queue;
mod request;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use disk::{Access, Disk, WriteCache};
use virtio::{ConfigChange, Features, QueueSetup, StartError, VirtioDevice, Worker};

use config::Config;
use queue::BlockQueue;
use request::SERIAL_LENGTH;

use crate::durability::Flusher;
use crate::serial_number;
use crate::stock::Stock;

/// How long a vCPU waits for the flush with which the write cache is switched off.
const CACHE_OFF_LIMIT: Duration = Duration::from_secs(5);
/// Device type of a block device.
const BLOCK: u16 = 2;
/// PCI class: mass storage, SCSI by name, as every hypervisor has it.
const CLASS: u32 = 0x01_0000;

/// Feature bits of block devices (5.2.3).
pub(super) mod feature {
    use virtio::Features;

    pub const SIZE_MAX: Features = Features(1 << 1);
    pub const SEG_MAX: Features = Features(1 << 2);
    pub const RO: Features = Features(1 << 5);
    pub const BLK_SIZE: Features = Features(1 << 6);
    pub const FLUSH: Features = Features(1 << 9);
    pub const TOPOLOGY: Features = Features(1 << 10);
    pub const CONFIG_WCE: Features = Features(1 << 11);
    pub const MQ: Features = Features(1 << 12);
    pub const DISCARD: Features = Features(1 << 13);
    pub const WRITE_ZEROES: Features = Features(1 << 14);
}

/// How a disk appears.
#[derive(Clone, Debug)]
pub struct VirtioBlkOptions {
    /// A short name, for messages and thread names: "disk0".
    pub name: String,
    /// Number of queues, 1 to 64; one for each vCPU serves best.
    pub queues: u16,
    /// Descriptors in each queue: a power of two, 4 to 1024.
    pub queue_size: u16,
    /// The serial number shown, if not the disk's own; 20 bytes at most.
    pub serial: Option<String>,
    /// Which kinds of queues a driver may choose from.
    pub rings: Rings,
    /// The write cache that a driver finds.
    pub write_cache: InitialCache,
}

/// Kinds of queues (VIRTIO 1.2, 2.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rings {
    /// Split queues only.
    Split,
    /// Packed queues for drivers that have them, else split ones.
    Packed,
}

/// The write cache that a driver finds after a reset. It may choose the other one: without a cache a write completes
/// when it is on stable storage; with one, a flush brings it there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitialCache {
    /// As the disk has it.
    OfDisk,
    /// None.
    Off,
}

impl VirtioBlkOptions {
    /// One split queue of 256 descriptors, and serial number and write cache of the disk.
    pub fn new(name: impl Into<String>) -> VirtioBlkOptions {
        VirtioBlkOptions {
            name: name.into(),
            queues: 1,
            queue_size: 256,
            serial: None,
            rings: Rings::Split,
            write_cache: InitialCache::OfDisk,
        }
    }
}

/// Why there cannot be such a device.
#[derive(Debug, thiserror::Error)]
pub enum VirtioBlkError {
    /// Too few queues or too many.
    #[error("disk {name}: {queues} queues. Give it 1 to 64 (`queues`).")]
    Queues {
        /// The disk.
        name: String,
        /// Queues asked for.
        queues: u16,
    },
    /// No size for a queue.
    #[error("disk {name}: queues of {size} descriptors. The size is a power of two from 4 to 1024.")]
    QueueSize {
        /// The disk.
        name: String,
        /// Descriptors asked for.
        size: u16,
    },
    /// Longer than the guest can be shown.
    #[error("disk {name}: the serial number {serial:?} is longer than 20 bytes. Choose a shorter one.")]
    Serial {
        /// The disk.
        name: String,
        /// The serial number.
        serial: String,
    },
}

/// A disk as a virtio block device.
pub struct VirtioBlk {
    /// "virtio-blk disk0".
    name: String,
    /// "disk0", for threads.
    short: String,
    disk: Arc<Disk>,
    queue_sizes: Vec<u16>,
    config: Config,
    serial: [u8; SERIAL_LENGTH],
    rings: Rings,
    initial_cache: WriteCache,
    /// Whether completed writes may wait in a cache until the next flush; the driver may change it.
    write_back: Arc<AtomicBool>,
    flusher: Flusher,
    size_notice: SizeNotice,
}

/// Tells the driver of a device that its disk has another size.
#[derive(Clone, Default)]
pub struct SizeNotice(Arc<OnceLock<ConfigChange>>);

impl SizeNotice {
    /// Call it after the change. Without a transport there is nobody to tell.
    pub fn send(&self) {
        if let Some(change) = self.0.get() {
            change.notify();
        }
    }
}

impl VirtioBlk {
    /// A device over a disk that others may use only through the same `disk`.
    pub fn new(disk: Arc<Disk>, options: VirtioBlkOptions) -> Result<VirtioBlk, VirtioBlkError> {
        let VirtioBlkOptions { name, queues, queue_size, serial, rings, write_cache } = options;
        if !(1..=64).contains(&queues) {
            return Err(VirtioBlkError::Queues { name, queues });
        }
        if !queue_size.is_power_of_two() || !(4..=1024).contains(&queue_size) {
            return Err(VirtioBlkError::QueueSize { name, size: queue_size });
        }
        if let Some(serial) = serial.as_ref().filter(|serial| serial.len() > SERIAL_LENGTH) {
            return Err(VirtioBlkError::Serial { name, serial: serial.clone() });
        }
        let geometry = disk.geometry();
        let own = || geometry.serial.as_deref().map(serial_number::shown);
        let shown = serial.or_else(own).unwrap_or_default();
        let mut serial = [0; SERIAL_LENGTH];
        for (to, from) in serial.iter_mut().zip(shown.bytes()) {
            *to = from;
        }
        let initial_cache = match write_cache {
            InitialCache::OfDisk => geometry.write_cache,
            InitialCache::Off => WriteCache::WriteThrough,
        };
        Ok(VirtioBlk {
            name: format!("virtio-blk {name}"),
            config: Config::new(geometry, queues, queue_size),
            write_back: Arc::new(AtomicBool::new(initial_cache == WriteCache::WriteBack)),
            rings,
            initial_cache,
            queue_sizes: vec![queue_size; usize::from(queues)],
            serial,
            short: name,
            flusher: Flusher::default(),
            size_notice: SizeNotice::default(),
            disk,
        })
    }

    /// The disk behind it.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// The driver switches its cache on or off (5.2.5.2). A driver that has switched it off sends no flushes any more, so what
    /// the cache holds goes to stable storage first; if that cannot be done, the cache stays on, which the driver reads.
    fn set_write_back(&mut self, on: bool) {
        let was_on = self.write_back.swap(on, Ordering::SeqCst);
        if on || !was_on || self.disk.geometry().write_cache == WriteCache::WriteThrough {
            return;
        }
        if let Err(why) = self.flusher.flush_within(&self.disk, CACHE_OFF_LIMIT) {
            self.write_back.store(true, Ordering::SeqCst);
            if let Some(transport) = self.size_notice.0.get() {
                transport.report(&format_args!(
                    "the flush failed with which the guest's write cache is switched off: {why}. The cache stays on."
                ));
            }
        }
    }

    /// To tell the driver of another size of the disk, which it sees from then on.
    pub fn size_notice(&self) -> SizeNotice {
        self.size_notice.clone()
    }
}

impl VirtioDevice for VirtioBlk {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u16 {
        BLOCK
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> Features {
        let geometry = self.disk.geometry();
        let when =
            |condition: bool, features: Features| if condition { features } else { Features::default() };
        let writable = geometry.access == Access::ReadWrite;
        Features::INDIRECT_DESC
            | Features::EVENT_IDX
            | feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::TOPOLOGY
            | feature::FLUSH
            | feature::CONFIG_WCE
            | when(self.rings == Rings::Packed, Features::RING_PACKED)
            | when(self.queue_sizes.len() > 1, feature::MQ)
            | when(!writable, feature::RO)
            | when(writable && geometry.discard.is_some(), feature::DISCARD)
            | when(writable && geometry.write_zeroes.is_some(), feature::WRITE_ZEROES)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn attach(&mut self, change: ConfigChange) {
        // A device has one transport for its life.
        self.size_notice.0.set(change).ok();
    }

    fn negotiated(&mut self, features: Features) {
        // Without flushes nothing would ever leave a cache (5.2.5.2).
        let cached = self.initial_cache == WriteCache::WriteBack && features.contains(feature::FLUSH);
        self.write_back.store(cached, Ordering::Relaxed);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.config.bytes(self.disk.capacity(), self.write_back.load(Ordering::Relaxed));
        for (to, from) in data.iter_mut().zip(bytes.iter().skip(offset as usize)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (config::WRITEBACK, [value @ (0 | 1)]) = (offset, data) {
            self.set_write_back(*value == 1);
        }
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<Worker, StartError> {
        let kick = setup.kick.try_clone()?;
        let prepared = self.disk.prepare_queue(setup.queue.size())?;
        let disk = self.disk.clone();
        let stock = Stock::new(setup.queue.ram().clone(), self.queue_sizes.len());
        let (serial, write_back) = (self.serial, self.write_back.clone());
        let thread = format!("vq-{}-{}", self.short, setup.index);
        Ok(Worker::spawn(thread, &kick, move |stop| {
            BlockQueue::run(setup, prepared, &disk, stock, serial, write_back, stop);
        })?)
    }

    fn reset(&mut self) {
        self.write_back.store(self.initial_cache == WriteCache::WriteBack, Ordering::Relaxed);
    }
}
