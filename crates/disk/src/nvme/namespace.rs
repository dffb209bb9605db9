//! A namespace: what the disk is, and queues to it.

use std::io;
use std::sync::Arc;

use super::controller::Controller;
use super::error::NvmeError;
use super::identify::{ControllerData, NamespaceData, Refusal};
use super::queue::{BOUNCE_SIZE, Facts, NvmeQueue};
use super::transfer::{LONGEST, Limits};
use crate::contract::{
    Access, AfterDiscard, Backend, Discard, Engine, Geometry, Poll, QueueCounters, QueueError, Sectors,
    WriteCache, WriteZeroes,
};
use nvme_spec::{Command, cns};

/// Blocks that one write of zeroes covers at most: its field has 16 bits.
const MOST_ZEROED: u64 = 1 << 16;
/// Blocks that one discard covers at most; the field has 32 bits, but controllers take their time with the largest.
const MOST_DISCARDED: u64 = 1 << 21;

/// A namespace of a controller: the back end of a disk.
pub struct Namespace {
    controller: Arc<Controller>,
    geometry: Geometry,
    facts: Facts,
}

impl Namespace {
    pub(super) fn open(
        controller: Arc<Controller>,
        data: &ControllerData,
        number: u32,
    ) -> Result<Namespace, NvmeError> {
        let refuse =
            |why| NvmeError::Namespace { device: controller.name().to_owned(), namespace: number, why };
        if number == 0 || number > data.namespaces {
            return Err(refuse(Refusal::Absent));
        }
        let page = controller.identify("identify a namespace", cns::NAMESPACE, number)?;
        let namespace = NamespaceData::read(&page).map_err(refuse)?;
        let cache = data.volatile_cache && write_cache_is_on(&controller)?;
        let block = u64::from(namespace.block);
        let direct = data.max_transfer.unwrap_or(LONGEST).min(LONGEST);
        let limits = Limits { block, direct, bounced: direct.min(BOUNCE_SIZE) };
        let facts = Facts { namespace: number, block: namespace.block, limits, poll: Poll::Adaptive };
        let geometry =
            geometry(data, &namespace, if cache { WriteCache::WriteBack } else { WriteCache::WriteThrough });
        Ok(Namespace { controller, geometry, facts })
    }

    /// The same, with queues that poll like this; adaptive is the default. With [`Poll::On`] they have no interrupts.
    #[must_use]
    pub fn polled(mut self, poll: Poll) -> Namespace {
        self.facts.poll = poll;
        self
    }

    /// The same, for reading only.
    #[must_use]
    pub fn read_only(mut self) -> Namespace {
        self.geometry.access = Access::ReadOnly;
        self
    }
}

/// A controller that does not tell has it on.
fn write_cache_is_on(controller: &Controller) -> Result<bool, NvmeError> {
    match controller.run("say whether its write cache is on", &Command::get_write_cache()) {
        Ok(value) => Ok(value & 1 != 0),
        Err(NvmeError::Refused { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn geometry(data: &ControllerData, namespace: &NamespaceData, write_cache: WriteCache) -> Geometry {
    let block = namespace.block;
    let sectors = |blocks: u64| Sectors(blocks * u64::from(block) / Sectors::SIZE);
    // What a device claims may be anything; what guests are shown is a power of two of reasonable size.
    let unit = |blocks: u32| {
        let bytes = blocks.saturating_mul(block);
        if bytes.is_power_of_two() && bytes <= 1 << 20 { bytes } else { block }
    };
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Geometry {
        capacity: sectors(namespace.blocks),
        logical_block: block,
        physical_block: unit(namespace.write_granularity),
        alignment_offset: 0,
        minimum_io: unit(namespace.write_granularity),
        optimal_io: namespace.optimal_write.saturating_mul(block),
        access: if namespace.read_only { Access::ReadOnly } else { Access::ReadWrite },
        write_cache,
        fua: true,
        rotational: false,
        discard: data.deallocate.then(|| Discard {
            max: sectors(MOST_DISCARDED),
            granularity: unit(namespace.deallocate_granularity),
            after: if namespace.zeroes_after_deallocate {
                AfterDiscard::Zeroes
            } else {
                AfterDiscard::Unspecified
            },
        }),
        write_zeroes: data.write_zeroes.then(|| WriteZeroes { max: sectors(MOST_ZEROED) }),
        model: text(&data.model),
        serial: text(&data.serial),
    }
}

impl Backend for Namespace {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn poll(&self) -> Poll {
        self.facts.poll
    }

    fn engine(&self, depth: u16, counters: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        match NvmeQueue::new(&self.controller, self.facts, depth, counters) {
            Ok(queue) => Ok(Box::new(queue)),
            Err(error) => Err(QueueError {
                disk: format!("{} namespace {}", self.controller.name(), self.facts.namespace).into(),
                depth,
                cause: io::Error::other(error),
                hint: "Use fewer or shorter queues (`queues`).",
            }),
        }
    }
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Namespace").field("facts", &self.facts).field("geometry", &self.geometry).finish()
    }
}
