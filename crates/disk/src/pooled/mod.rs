//! Disks whose requests go to a ring or to threads, whichever can do them.

mod emulation;
mod hybrid;

use std::io;
use std::sync::{Arc, OnceLock};

use crate::contract::{Backend, Engine, Geometry, Poll, QueueCounters, QueueError, Sectors};
use crate::kernel::{BounceRoom, Handle, Ring};
use crate::registered::BufferTable;
use crate::threads::{Pool, Work};
use crate::uring::{hint_after, ring_is_refused};
pub(crate) use emulation::Emulation;
use hybrid::Hybrid;

/// Threads of one disk.
const THREADS: usize = 4;

/// Who may carry requests out.
enum Route {
    /// A ring of each queue what goes straight to these files, the pool the rest.
    Both(Vec<Arc<Handle>>),
    /// The pool alone.
    PoolOnly,
}

/// A disk with a pool.
pub(crate) struct PooledDisk {
    name: Arc<str>,
    geometry: Geometry,
    route: Route,
    flush_can_be_repeated: bool,
    pool: Arc<Pool>,
    size: Box<dyn Fn() -> io::Result<Sectors> + Send + Sync>,
    poll: Poll,
    buffers: OnceLock<Arc<BufferTable>>,
    bounces: Arc<BounceRoom>,
}

impl PooledDisk {
    /// A disk of which a ring can do a part, in these files.
    pub(crate) fn with_ring(
        name: Arc<str>,
        geometry: Geometry,
        files: Vec<Arc<Handle>>,
        work: Arc<dyn Work>,
    ) -> io::Result<PooledDisk> {
        let flush_can_be_repeated = files.iter().all(|file| file.flush_can_be_repeated());
        let route = if ring_is_refused().is_some() { Route::PoolOnly } else { Route::Both(files) };
        let disk = PooledDisk::new(name, geometry, route, work)?;
        Ok(PooledDisk { flush_can_be_repeated, ..disk })
    }

    /// A device or file as it is, all of which is the pool's to do.
    pub(crate) fn without_ring(
        name: Arc<str>,
        geometry: Geometry,
        file: Arc<Handle>,
    ) -> io::Result<PooledDisk> {
        let flush_can_be_repeated = file.flush_can_be_repeated();
        let disk = PooledDisk::new(name, geometry, Route::PoolOnly, file)?;
        Ok(PooledDisk { flush_can_be_repeated, ..disk })
    }

    fn new(name: Arc<str>, geometry: Geometry, route: Route, work: Arc<dyn Work>) -> io::Result<PooledDisk> {
        let capacity = geometry.capacity;
        let pool = Arc::new(Pool::new("disk", THREADS, work)?);
        let size = Box::new(move || Ok(capacity));
        let buffers = OnceLock::new();
        Ok(PooledDisk {
            name,
            geometry,
            route,
            flush_can_be_repeated: false,
            pool,
            size,
            poll: Poll::Off,
            buffers,
            bounces: Arc::default(),
        })
    }

    /// The same, whose queues look for what comes before they sleep: for a disk whose requests nearly all go to the ring.
    pub(crate) fn polling(self, poll: Poll) -> PooledDisk {
        PooledDisk { poll, ..self }
    }

    /// The same, whose size is asked for like this.
    pub(crate) fn sized_by(
        self,
        size: impl Fn() -> io::Result<Sectors> + Send + Sync + 'static,
    ) -> PooledDisk {
        PooledDisk { size: Box::new(size), ..self }
    }

    fn make(&self, depth: u16, counters: Arc<QueueCounters>) -> io::Result<Hybrid> {
        match &self.route {
            Route::Both(files) => {
                let (buffers, bounces) = (self.buffers.get().cloned(), self.bounces.clone());
                let ring = Ring::new(files.clone(), depth, counters.clone(), buffers, bounces)?;
                Hybrid::with_ring(ring, depth, self.pool.clone(), counters)
            }
            Route::PoolOnly => Hybrid::without_ring(self.pool.clone(), counters),
        }
    }
}

impl Backend for PooledDisk {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn capacity(&self) -> io::Result<Sectors> {
        (self.size)()
    }

    fn poll(&self) -> Poll {
        self.poll
    }

    fn flush_can_be_repeated(&self) -> bool {
        self.flush_can_be_repeated
    }

    fn has_rings(&self) -> bool {
        matches!(self.route, Route::Both(_))
    }

    fn use_buffers(&self, table: &Arc<BufferTable>) -> bool {
        self.has_rings() && self.buffers.set(table.clone()).is_ok()
    }

    fn engine(&self, depth: u16, counters: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        match self.make(depth, counters) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(cause) => Err(QueueError { disk: self.name.clone(), depth, hint: hint_after(&cause), cause }),
        }
    }
}
