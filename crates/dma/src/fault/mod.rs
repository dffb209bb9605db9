//! DMA that failed: where the news comes from, and one kind of event for all of it.
//!
//! If the IOMMU blocks DMA, the device seldom learns of it, nor do its driver and its guest. What is known is
//! scattered: lines in the kernel's log, of which most are withheld when faults come fast; the IOMMU's line in
//! `/proc/interrupts`, which counts but names nobody; tracepoints, and a probe on the kernel's own fault handler.
//! A [`Watch`] reads them all, takes each for a witness that may have missed something, and reports [`Event`]s:
//! how many faults are known to be a device's, and how many are known only to have happened.
//!
//! ```no_run
//! use dma::fault::{Event, Inputs, Place, Watch, Watched};
//!
//! // Early: before devices can do DMA and before privileges go.
//! let inputs = Inputs::open();
//! // Where the description's devices are known:
//! let devices = vec![Watched { device: "0000:01:00.0".parse()?, domain: "guest".into() }];
//! let classify = |_domain: &str, iova: dma::Iova| if iova.0 < 1 << 28 { Place::Ram } else { Place::Hole };
//! let tell = |event: Event| eprintln!("{event}");
//! let watch = Watch::start(inputs, devices, Box::new(classify), Box::new(tell))?;
//! eprintln!("{}", watch.sources());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Errors that arrive in other ways (VFIO's error interrupt, a host driver's time-out, a map that failed) become
//! the same [`Event`] by [`Event::single`].

mod account;
mod amd;
mod bursts;
mod event;
mod heard;
mod intel;
mod interrupts;
mod kmsg;
mod leftovers;
mod line;
mod place;
mod requester;
mod sources;
mod tracing;
mod watch;

pub use event::{Count, Direction, Event, Fault, Source};
pub use heard::Witness;
pub use kmsg::{Entry, KernelLog, Record};
pub use leftovers::Leftover;
pub use line::{Line, Report, parse_line};
pub use place::Place;
pub use requester::{BadRequester, Requester};
pub use sources::{Inputs, Sources};
pub use watch::{Classify, Tell, Watch, Watched};

/// A witness, and what it has reported since the last call.
#[cfg(test)]
pub(crate) fn listener() -> (Witness, impl Fn() -> Vec<Fault>) {
    let heard = std::sync::Arc::new(heard::Heard::new().unwrap());
    let told = heard.clone();
    (Witness::new(heard), move || told.take().into_iter().map(|(fault, _)| fault).collect())
}
