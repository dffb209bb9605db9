//! Disks on a server, by the network block device protocol.

mod connection;
mod end;
mod engine;
mod link;
mod socket;
mod under_way;
mod url;
mod wire;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

pub use url::{BadNbdUrl, NbdServer, NbdUrl};

use crate::backend::{Backend, Engine};
use crate::counters::QueueCounters;
use crate::disk::QueueError;
use crate::geometry::{Access, AfterDiscard, Discard, Geometry, Sectors, WriteCache, WriteZeroes};
use engine::NbdEngine;
use link::Link;
use under_way::Promises;
use wire::{Export, flag};

/// A disk has no more connections than this.
const MOST_LINKS: usize = 8;
/// Longest range of zeroes or discards in one request, in bytes.
const LONGEST_RANGE: u64 = 1 << 30;
/// Such a range makes no more requests of the server than this, however short its longest transfer is.
const MOST_PARTS_OF_RANGE: u64 = 1024;

/// What a person can do when a server lets nobody write.
pub(crate) const ONLY_READ: &str = "Use readonly=on.";

/// Why a disk cannot be had from a server.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// It could not be reached, or hung up.
    #[error(
        "disk {url}: cannot talk to the server: {cause}. Check that it runs, listens there, and can be reached."
    )]
    Connection {
        /// The disk.
        url: NbdUrl,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// It did not agree.
    #[error("disk {url}: the server does not give it: {what}. `nbdinfo --list` shows what a server offers.")]
    Protocol {
        /// The disk.
        url: NbdUrl,
        /// What happened.
        what: String,
    },
    /// It is only for reading.
    #[error("disk {url}: the server lets nobody write to it. {}", ONLY_READ)]
    ReadOnly {
        /// The disk.
        url: NbdUrl,
    },
    /// It is too small to be a disk.
    #[error(
        "disk {url}: the server says that it has {bytes} bytes, which is less than one block of {block}. Offer \
         another one."
    )]
    Size {
        /// The disk.
        url: NbdUrl,
        /// Its size.
        bytes: u64,
        /// Its block in bytes.
        block: u32,
    },
}

/// A disk on a server.
pub(crate) struct NbdDisk {
    url: NbdUrl,
    geometry: Geometry,
    promises: Arc<Promises>,
    export: Export,
    /// The first is for any number of queues; others, if the server allows them, for one each.
    links: Mutex<Vec<Arc<Link>>>,
}

impl NbdDisk {
    pub(crate) fn open(url: &NbdUrl, access: Access) -> Result<NbdDisk, NbdError> {
        let promises = Arc::new(Promises::default());
        let link = Link::new(url, promises.clone())?;
        let export = link.export();
        let geometry = geometry(url, &export, access)?;
        Ok(NbdDisk { url: url.clone(), geometry, promises, export, links: Mutex::new(vec![Arc::new(link)]) })
    }

    /// Bytes of the export, also those behind its last whole block.
    pub(crate) fn bytes(&self) -> u64 {
        self.export.size
    }

    /// A connection that no queue has, if there can be several and a further one can be made.
    fn link(&self) -> Arc<Link> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unused) = links.iter().find(|link| Arc::strong_count(link) == 1) {
            return unused.clone();
        }
        if self.export.flags & flag::MULTI_CONN != 0
            && links.len() < MOST_LINKS
            && let Ok(link) = Link::new(&self.url, self.promises.clone())
            && link.export() == self.export
        {
            links.push(Arc::new(link));
        }
        let fewest = links.iter().min_by_key(|link| Arc::strong_count(link));
        fewest.expect("the first connection stays").clone()
    }
}

fn geometry(url: &NbdUrl, export: &Export, access: Access) -> Result<Geometry, NbdError> {
    let has = |flag| export.flags & flag != 0;
    let block = export.block;
    let capacity = Sectors::in_bytes(export.size - export.size % u64::from(block));
    if capacity.0 == 0 {
        return Err(NbdError::Size { url: url.clone(), bytes: export.size, block });
    }
    if has(flag::READ_ONLY) && access == Access::ReadWrite {
        return Err(NbdError::ReadOnly { url: url.clone() });
    }
    let preferred = if export.preferred.is_power_of_two() { export.preferred } else { block };
    let preferred = preferred.clamp(block, 64 << 10);
    let range = LONGEST_RANGE.min(u64::from(export.longest) * MOST_PARTS_OF_RANGE) / Sectors::SIZE;
    Ok(Geometry {
        capacity,
        logical_block: block,
        physical_block: preferred,
        alignment_offset: 0,
        minimum_io: preferred,
        optimal_io: 0,
        access,
        write_cache: if has(flag::FLUSH) { WriteCache::WriteBack } else { WriteCache::WriteThrough },
        fua: has(flag::FUA),
        rotational: has(flag::ROTATIONAL),
        discard: has(flag::TRIM).then_some(Discard {
            max: Sectors(range),
            granularity: preferred,
            after: AfterDiscard::Unspecified,
        }),
        write_zeroes: has(flag::WRITE_ZEROES).then_some(WriteZeroes { max: Sectors(range) }),
        model: None,
        serial: None,
    })
}

impl Backend for NbdDisk {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// That a server lost what it had not flushed is told once, by the next flush.
    fn flush_can_be_repeated(&self) -> bool {
        false
    }

    fn engine(&self, depth: u16, counters: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        let fua = self.export.flags & flag::FUA != 0;
        match NbdEngine::new(self.link(), fua, counters) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(cause) => {
                let disk = self.url.to_string().into();
                Err(QueueError { disk, depth, cause, hint: "Raise the limit of open files (ulimit -n)." })
            }
        }
    }
}
