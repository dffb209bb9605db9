//! DMA that failed: where the news comes from, and one type for all of it.
//!
//! If the IOMMU blocks DMA, the device seldom learns of it, nor do its driver and its guest. What is known is
//! scattered: lines in the kernel's log, of which most are withheld when faults come fast; the IOMMU's line in
//! `/proc/interrupts`, which counts but names nobody; tracepoints, and a probe on the kernel's own fault handler.
//! A [`Watch`] reads them all, takes each for an observer that may have missed something, and reports [`Fault`]s:
//! how many faults are known to be a device's, and how many are known only to have happened.
//!
//! ```no_run
//! use faults::{Fault, Inputs, Place, Watch, Watched};
//!
//! // Early: before devices can do DMA and before privileges go.
//! let inputs = Inputs::open();
//! // Where the description's devices are known:
//! let devices = vec![Watched { device: "0000:01:00.0".parse()?, domain: "guest".into() }];
//! let classify = |_domain: &str, iova: dma::Iova| if iova.0 < 1 << 28 { Place::Ram } else { Place::Hole };
//! let tell = |fault: Fault| eprintln!("{fault}");
//! let watch = Watch::start(inputs, devices, Box::new(classify), Box::new(tell))?;
//! eprintln!("{}", watch.sources());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Errors that arrive in other ways (VFIO's error interrupt, a host driver's time-out, a map that failed) are
//! reported by a [`FaultReporter`]. What the watch reports, its [`Tally`] counts.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod account;
mod amd;
mod bursts;
mod fault;
mod inbox;
mod intel;
mod interrupts;
mod kmsg;
mod line;
mod place;
mod requester;
mod sources;
mod stale_tracing;
mod tally;
mod tracing;
mod watch;

pub use fault::{Count, Direction, Fault, Source};
pub use inbox::FaultReporter;
pub use kmsg::{Entry, KernelLog, Record};
pub use line::{Line, Report, parse_line};
pub use place::Place;
pub use requester::{BadRequester, Requester};
pub use sources::{Inputs, Sources};
pub use stale_tracing::Leftover;
pub use tally::{Counts, Tally};
pub use watch::{Classify, Tell, Watch, Watched};
