//! What goes wrong with a controller while it runs, for events and people.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dma::Iova;

use crate::contract::Operation;
use nvme_spec::Status;

/// Where troubles go. Called on the thread that met the trouble; it should return soon.
pub type ReportTrouble = Arc<dyn Fn(&NvmeTrouble) + Send + Sync>;

/// Which way data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The device reads memory: a write to the disk.
    FromMemory,
    /// The device writes memory: a read from the disk.
    ToMemory,
}

/// Something went wrong with a controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NvmeTrouble {
    /// The controller's PCI address.
    pub device: String,
    /// The domain that its DMA goes through.
    pub domain: String,
    /// What it is.
    pub kind: TroubleKind,
}

/// Kinds of trouble.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TroubleKind {
    /// The controller says that it could not move data: its DMA was blocked.
    BlockedDma {
        /// Where the transfer began (its first PRP).
        iova: Iova,
        /// Bytes of the transfer.
        bytes: u64,
        /// Which way it went.
        direction: Direction,
        /// What the command was part of.
        operation: Operation,
    },
    /// A command was not answered in time.
    TimedOut {
        /// The I/O queue.
        queue: u16,
        /// What the command was part of.
        operation: Operation,
        /// How long it was given.
        after: Duration,
        /// Where its data begins (its first PRP); 0 without data.
        iova: Iova,
    },
    /// The controller was disabled and enabled again; what was under way is asked for again.
    Reset {
        /// Why.
        why: String,
    },
    /// The controller is given up. All requests to it fail from now on.
    Lost {
        /// Why.
        why: String,
    },
    /// It did not shut down in order at the end; what its cache held may be lost.
    NotShutDown {
        /// Why not.
        why: String,
    },
    /// A completion that belongs to no command under way; it was ignored.
    StrayCompletion {
        /// The I/O queue.
        queue: u16,
        /// The command that it names.
        command: u16,
        /// What it says.
        status: Status,
    },
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::FromMemory => "from memory",
            Direction::ToMemory => "to memory",
        })
    }
}

impl fmt::Display for NvmeTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NvmeTrouble { device, domain, kind } = self;
        write!(f, "NVMe controller {device}: ")?;
        match kind {
            TroubleKind::BlockedDma { iova, bytes, direction, operation } => write!(
                f,
                "DMA of {bytes} bytes {direction} at IOVA {iova} was blocked in DMA domain {domain} ({operation}). The \
                 guest gets an error; `skep dma` shows what the domain maps"
            ),
            TroubleKind::TimedOut { queue, operation, after, iova } => write!(
                f,
                "no answer on queue {queue} to a {operation} within {} s (data at IOVA {iova}, DMA domain {domain}); it \
                 is aborted",
                after.as_secs_f32()
            ),
            TroubleKind::Reset { why } => write!(f, "it was reset, and goes on: {why}"),
            TroubleKind::Lost { why } => write!(f, "given up: {why}. The guest gets errors from this disk"),
            TroubleKind::NotShutDown { why } => write!(f, "it was not shut down in order: {why}"),
            TroubleKind::StrayCompletion { queue, command, status } => {
                write!(f, "queue {queue} completed command {command}, which is not under way, with {status}")
            }
        }
    }
}
