//! What went through a disk, and what of it was copied.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why data was copied on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bounced {
    /// The guest's memory was not aligned as the disk needs it.
    Alignment,
    /// The user asked for it ([`crate::Bounce::Always`]).
    Asked,
    /// The file system has no direct I/O, so the host's page cache lies in between.
    PageCache,
    /// The guest's sectors are smaller than the disk's ([`crate::DiskOptions::logical_block`]).
    SectorEmulation,
    /// The image's format keeps the data in another form, such as compressed.
    ImageFormat,
    /// The disk is reached through a socket.
    Transport,
}

/// A reading of a disk's counters since it was opened: requests that succeeded, their bytes, and failures.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards and zeroed ranges.
    pub discards: u64,
    /// Bytes read from the disk.
    pub bytes_read: u64,
    /// Bytes written to the disk.
    pub bytes_written: u64,
    /// Bytes that went between guest RAM and disk without a copy.
    pub bytes_direct: u64,
    /// Those of them that went by registered buffers ([`crate::BufferTable`]).
    pub bytes_registered: u64,
    /// Bytes copied because of the alignment of guest memory.
    pub bytes_bounced_alignment: u64,
    /// Bytes copied because the user asked for it.
    pub bytes_bounced_asked: u64,
    /// Bytes that went through the host's page cache.
    pub bytes_bounced_page_cache: u64,
    /// Bytes copied because the guest's sectors are smaller than the disk's.
    pub bytes_bounced_sector_emulation: u64,
    /// Bytes copied because of the form that an image's format keeps them in.
    pub bytes_bounced_image_format: u64,
    /// Bytes copied by a socket.
    pub bytes_bounced_transport: u64,
    /// Writes of less than a block of the disk, which read the block, change it and write it back.
    pub read_modify_writes: u64,
    /// Requests that failed or were refused, as the guest was told.
    pub errors: u64,
    /// Requests that failed and of which the guest was told that they went well ([`crate::OnError::Ignore`]); they count
    /// among the writes, flushes and discards as well.
    pub ignored: u64,
}

impl Counters {
    /// Bytes copied, for whatever reason.
    pub fn bytes_bounced(&self) -> u64 {
        self.bytes_bounced_alignment
            + self.bytes_bounced_asked
            + self.bytes_bounced_page_cache
            + self.bytes_bounced_sector_emulation
            + self.bytes_bounced_image_format
            + self.bytes_bounced_transport
    }
}

macro_rules! queue_counters {
    ($($name:ident),*) => {
        /// One queue's share of a disk's counters. Only the queue's own thread counts; anybody may read.
        #[derive(Default, Debug)]
        #[repr(align(128))]
        pub struct QueueCounters { $($name: AtomicU64),* }

        impl QueueCounters {
            pub(crate) fn add_to(&self, sum: &mut Counters) {
                $(sum.$name += self.$name.load(Relaxed);)*
            }
        }
    };
}
queue_counters!(
    reads,
    writes,
    flushes,
    discards,
    bytes_read,
    bytes_written,
    bytes_direct,
    bytes_registered,
    bytes_bounced_alignment,
    bytes_bounced_asked,
    bytes_bounced_page_cache,
    bytes_bounced_sector_emulation,
    bytes_bounced_image_format,
    bytes_bounced_transport,
    read_modify_writes,
    errors,
    ignored
);

/// There is one writer, so a plain load and store are enough and spare the bus lock.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed) + amount, Relaxed);
}

impl QueueCounters {
    /// A read of `bytes` succeeded.
    pub fn read(&self, bytes: u64) {
        add(&self.reads, 1);
        add(&self.bytes_read, bytes);
    }

    /// A write of `bytes` succeeded.
    pub fn write(&self, bytes: u64) {
        add(&self.writes, 1);
        add(&self.bytes_written, bytes);
    }

    /// A flush succeeded.
    pub fn flush(&self) {
        add(&self.flushes, 1);
    }

    /// A discard or write of zeroes succeeded.
    pub fn discard(&self) {
        add(&self.discards, 1);
    }

    /// A request failed or was refused.
    pub fn error(&self) {
        add(&self.errors, 1);
    }

    /// A request failed that its user is told went well.
    pub fn ignored(&self) {
        add(&self.ignored, 1);
    }

    /// So many writes of less than a block read it first.
    pub fn read_modify_write(&self, times: u64) {
        add(&self.read_modify_writes, times);
    }

    /// `bytes` of those that went without a copy did so by a registered buffer.
    pub fn registered(&self, bytes: u64) {
        add(&self.bytes_registered, bytes);
    }

    /// `bytes` went without a copy, or with one for the given reason.
    pub fn moved(&self, bytes: u64, bounced: Option<Bounced>) {
        let counter = match bounced {
            None => &self.bytes_direct,
            Some(Bounced::Alignment) => &self.bytes_bounced_alignment,
            Some(Bounced::Asked) => &self.bytes_bounced_asked,
            Some(Bounced::PageCache) => &self.bytes_bounced_page_cache,
            Some(Bounced::SectorEmulation) => &self.bytes_bounced_sector_emulation,
            Some(Bounced::ImageFormat) => &self.bytes_bounced_image_format,
            Some(Bounced::Transport) => &self.bytes_bounced_transport,
        };
        add(counter, bytes);
    }
}
