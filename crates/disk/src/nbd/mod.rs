//! Disks on a server, by the network block device protocol.

mod connection;
mod end;
mod engine;
mod error;
mod link;
mod socket;
mod under_way;
mod url;
mod wire;

use std::sync::Arc;

pub use error::NbdError;
pub(crate) use error::ONLY_READ;
use parking_lot::Mutex;
pub use url::{BadNbdUrl, NbdServer, NbdUrl};

use crate::contract::{
    Access, AfterDiscard, Backend, Discard, Engine, Geometry, QueueCounters, QueueError, Sectors, WriteCache,
    WriteZeroes,
};
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
        let mut links = self.links.lock();
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
