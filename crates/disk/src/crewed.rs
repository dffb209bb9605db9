//! Disks whose requests go to a ring or to threads, whichever can do them.

use std::io;
use std::sync::{Arc, OnceLock};

use crate::backend::{Backend, Engine};
use crate::counters::QueueCounters;
use crate::disk::QueueError;
use crate::geometry::{Geometry, Sectors};
use crate::kernel::{BounceRoom, Handle, Ring, hint_after, ring_is_refused};
use crate::registered::BufferTable;
use crate::spin::Poll;
use crate::threads::{Crew, Hybrid, Work};

/// Threads of one disk.
const THREADS: usize = 4;

/// Who may carry requests out.
enum Lane {
    /// A ring of each queue what goes straight to these files, the crew the rest.
    Both(Vec<Arc<Handle>>),
    /// The crew alone.
    CrewOnly,
}

/// A disk with a crew.
pub(crate) struct CrewedDisk {
    name: Arc<str>,
    geometry: Geometry,
    lane: Lane,
    flush_can_be_repeated: bool,
    crew: Arc<Crew>,
    size: Box<dyn Fn() -> io::Result<Sectors> + Send + Sync>,
    poll: Poll,
    buffers: OnceLock<Arc<BufferTable>>,
    bounces: Arc<BounceRoom>,
}

impl CrewedDisk {
    /// A disk of which a ring can do a part, in these files.
    pub(crate) fn with_ring(
        name: Arc<str>,
        geometry: Geometry,
        files: Vec<Arc<Handle>>,
        work: Arc<dyn Work>,
    ) -> io::Result<CrewedDisk> {
        let flush_can_be_repeated = files.iter().all(|file| file.flush_can_be_repeated());
        let lane = if ring_is_refused().is_some() { Lane::CrewOnly } else { Lane::Both(files) };
        let disk = CrewedDisk::new(name, geometry, lane, work)?;
        Ok(CrewedDisk { flush_can_be_repeated, ..disk })
    }

    /// A device or file as it is, all of which is the crew's to do.
    pub(crate) fn without_ring(
        name: Arc<str>,
        geometry: Geometry,
        file: Arc<Handle>,
    ) -> io::Result<CrewedDisk> {
        let flush_can_be_repeated = file.flush_can_be_repeated();
        let disk = CrewedDisk::new(name, geometry, Lane::CrewOnly, file)?;
        Ok(CrewedDisk { flush_can_be_repeated, ..disk })
    }

    fn new(name: Arc<str>, geometry: Geometry, lane: Lane, work: Arc<dyn Work>) -> io::Result<CrewedDisk> {
        let capacity = geometry.capacity;
        let crew = Arc::new(Crew::new("disk", THREADS, work)?);
        let size = Box::new(move || Ok(capacity));
        let buffers = OnceLock::new();
        Ok(CrewedDisk {
            name,
            geometry,
            lane,
            flush_can_be_repeated: false,
            crew,
            size,
            poll: Poll::Off,
            buffers,
            bounces: Arc::default(),
        })
    }

    /// The same, whose queues look for what comes before they sleep: for a disk whose requests nearly all go to the ring.
    pub(crate) fn polling(self, poll: Poll) -> CrewedDisk {
        CrewedDisk { poll, ..self }
    }

    /// The same, whose size is asked for like this.
    pub(crate) fn sized_by(
        self,
        size: impl Fn() -> io::Result<Sectors> + Send + Sync + 'static,
    ) -> CrewedDisk {
        CrewedDisk { size: Box::new(size), ..self }
    }

    fn make(&self, depth: u16, counters: Arc<QueueCounters>) -> io::Result<Hybrid> {
        match &self.lane {
            Lane::Both(files) => {
                let (buffers, bounces) = (self.buffers.get().cloned(), self.bounces.clone());
                let ring = Ring::new(files.clone(), depth, counters.clone(), buffers, bounces)?;
                Hybrid::with_ring(ring, depth, self.crew.clone(), counters)
            }
            Lane::CrewOnly => Hybrid::without_ring(self.crew.clone(), counters),
        }
    }
}

impl Backend for CrewedDisk {
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
        matches!(self.lane, Lane::Both(_))
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
