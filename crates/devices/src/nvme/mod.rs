//! An NVMe controller (NVM Express Base Specification 1.4, PCIe transport).
//!
//! A controller has a thread of its own, `nvme-NAME`, which serves the admin queue and does what the registers order
//! (`controller`); each I/O submission queue has one too, `nvme-NAME-N`, with a queue of its own to the disk
//! (`io`). vCPUs only leave a note and wake a thread: none of them ever waits for a disk or for a thread.
//!
//! - *Doorbells.* A driver that uses shadow doorbells (Linux does) keeps tails and heads in memory; while a queue's
//!   thread is awake it looks there by itself, and asks for a doorbell only before it sleeps. Such a doorbell is an
//!   eventfd, and costs no way through skep. Without shadow doorbells every one is an exit to here, because its
//!   value counts.
//! - *Completions* of one round are posted together, with one interrupt.
//! - *Data* goes between guest memory and disk as PRPs and SGLs name it. Through memory of skep's own goes only what
//!   is compared, and zeroes for disks that cannot write them themselves; [`Nvme::copied`] counts that.
//! - *Bus mastering* switched off closes a [gate](Gate): threads end and answer what is under way, and then nothing
//!   is taken, written to guest memory or told until it is on again.

mod abort;
mod admin;
mod completion;
mod controller;
mod data;
mod doorbells;
#[cfg(any(test, feature = "driver"))]
pub mod driver;
mod events;
mod function;
mod identify;
mod interrupts;
mod io;
mod ioeventfds;
mod log;
mod namespace;
mod registers;
mod ring;
mod shared;
#[cfg(test)]
mod tests;
mod waker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ::pci::{Address, ConfigSpace, Gate, Msix, Pin, ServiceError, Services, Windows};
use memory::Ram;
use parking_lot::Mutex;
use virtio::{Report, Reports};

use crate::serial_number;
use doorbells::Doorbells;
use events::{Event, Events};
use interrupts::Interrupts;
use ioeventfds::IoEventFds;
use log::Log;
use namespace::Attached;
pub use namespace::Namespace;
pub use nvme_spec as spec;
use registers::Registers;
use shared::Shared;
use waker::Waker;

/// Vendor and device: those that bhyve's controllers show. No driver knows quirks of them.
const VENDOR: u16 = 0xfb5d;
const DEVICE: u16 = 0x0a0a;
/// The firmware's revision, unless the options name one.
const FIRMWARE: &str = env!("CARGO_PKG_VERSION");
const MODEL_LENGTH: usize = 40;
const FIRMWARE_LENGTH: usize = 8;
/// How long disks may take to end what is under way when their controller goes.
const REMOVAL_LIMIT: Duration = Duration::from_secs(5);
/// How often to look whether they have.
const LOOK: Duration = Duration::from_millis(1);
/// As many I/O queue pairs as EDK II creates without asking.
const LEAST_QUEUES: u16 = 2;
/// Most namespaces of a controller: each may cost every queue a thread.
const MAX_NAMESPACES: usize = 32;

/// How a controller appears.
#[derive(Clone, Debug)]
pub struct NvmeOptions {
    /// A short name, for messages and thread names: "disk0".
    pub name: String,
    /// Number of I/O queue pairs offered, 1 to 64; one for each vCPU serves best. UEFI firmware (EDK II) does not work
    /// with less than two, so two are there in any case; a queue costs nothing until the guest creates it.
    pub queues: u16,
    /// The serial number shown, 20 bytes at most. If none is given: that of the only disk, or "skep-" and the name.
    pub serial: Option<String>,
    /// The model shown, 40 bytes at most. If none is given: that of the only disk, or "skep NVMe disk".
    pub model: Option<String>,
    /// The firmware revision shown, 8 bytes at most; skep's version if none is given.
    pub firmware: Option<String>,
}

impl NvmeOptions {
    /// One queue pair, and the disk's own serial number and model.
    pub fn new(name: impl Into<String>) -> NvmeOptions {
        NvmeOptions { name: name.into(), queues: 1, serial: None, model: None, firmware: None }
    }

    /// The serial number that a controller over these disks shows.
    pub fn serial_over(&self, disks: &[Arc<disk::Disk>]) -> String {
        let own = match disks {
            [only] => only.geometry().serial.clone(),
            _ => None,
        };
        let own = || serial_number::shown(&own.unwrap_or_else(|| format!("skep-{}", self.name)));
        self.serial.clone().unwrap_or_else(own)
    }

    /// Whether a controller can be so, and have this disk among its namespaces, as far as it is known before it is made.
    pub fn check(&self, disk: &disk::Disk) -> Result<(), NvmeError> {
        self.check_queues()?;
        let block = disk.geometry().logical_block;
        if namespace::takes_blocks(block) { Ok(()) } else { Err(wrong_blocks(&self.name, disk)) }
    }

    fn check_queues(&self) -> Result<(), NvmeError> {
        match self.queues {
            1..=64 => Ok(()),
            queues => Err(NvmeError::Queues { name: self.name.clone(), queues }),
        }
    }
}

fn wrong_blocks(name: &str, disk: &disk::Disk) -> NvmeError {
    let (name, block) = (name.to_owned(), disk.geometry().logical_block);
    NvmeError::Block { name, disk: disk.name().to_owned(), block }
}

/// Why there cannot be such a controller.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// Too few queues or too many.
    #[error("nvme {name}: {queues} queues. Give it 1 to 64 (`queues`).")]
    Queues {
        /// The controller.
        name: String,
        /// Queue pairs asked for.
        queues: u16,
    },
    /// Too few namespaces or too many.
    #[error("nvme {name}: {count} disks. Give a controller 1 to 32 disks, and further ones to another.")]
    Namespaces {
        /// The controller.
        name: String,
        /// Disks given.
        count: usize,
    },
    /// A disk with blocks that NVMe drivers do not know.
    #[error(
        "nvme {name}: disk {disk} has blocks of {block} bytes. NVMe takes 512 to 4096; use virtio-blk for this disk."
    )]
    Block {
        /// The controller.
        name: String,
        /// The disk.
        disk: String,
        /// Bytes of its logical blocks.
        block: u32,
    },
    /// Longer than the guest can be shown.
    #[error("nvme {name}: the {what} {text:?} is longer than {max} bytes. Choose a shorter one.")]
    TooLong {
        /// The controller.
        name: String,
        /// Serial number, model or firmware revision.
        what: &'static str,
        /// What was given.
        text: String,
        /// Bytes there are for it.
        max: usize,
    },
    /// The machine could not do what the controller asked.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// What a controller says it is.
struct Identity {
    serial: String,
    model: String,
    firmware: String,
}

impl Identity {
    fn new(options: &NvmeOptions, namespaces: &[Namespace]) -> Result<Identity, NvmeError> {
        let only = match namespaces {
            [only] => Some(only.disk.geometry()),
            _ => None,
        };
        let given = |what, given: &Option<String>, max: usize| match given {
            Some(text) if text.len() > max => {
                Err(NvmeError::TooLong { name: options.name.clone(), what, text: text.clone(), max })
            }
            other => Ok(other.clone()),
        };
        given("serial number", &options.serial, serial_number::LENGTH)?;
        let disks: Vec<_> = namespaces.iter().map(|namespace| namespace.disk.clone()).collect();
        let model = given("model", &options.model, MODEL_LENGTH)?;
        let firmware = given("firmware revision", &options.firmware, FIRMWARE_LENGTH)?;
        let own = |field: fn(&disk::Geometry) -> &Option<String>| only.and_then(|disk| field(disk).clone());
        Ok(Identity {
            serial: options.serial_over(&disks),
            model: model.or_else(|| own(|disk| &disk.model)).unwrap_or_else(|| "skep NVMe disk".into()),
            firmware: firmware.unwrap_or_else(|| FIRMWARE.into()),
        })
    }
}

/// Disks as namespaces of an NVMe controller on the PCI bus.
pub struct Nvme {
    shared: Arc<Shared>,
    config: Mutex<ConfigSpace>,
    power_at: u16,
    msix_at: u16,
    thread: Option<JoinHandle<()>>,
}

impl Nvme {
    /// Makes a controller for `at`, whose namespaces are numbered from 1 in the order given. The first one is served
    /// with the least effort. `report` gets sentences about faults of its driver and failures of the host.
    pub fn new(
        namespaces: Vec<Namespace>,
        options: &NvmeOptions,
        at: Address,
        ram: Arc<Ram>,
        services: Arc<dyn Services>,
        windows: &Windows,
        report: Report,
    ) -> Result<Nvme, NvmeError> {
        let short = options.name.clone();
        options.check_queues()?;
        if !(1..=MAX_NAMESPACES).contains(&namespaces.len()) {
            return Err(NvmeError::Namespaces { name: short, count: namespaces.len() });
        }
        let identity = Identity::new(options, &namespaces)?;
        let namespaces = attach(&short, namespaces, &identity.serial)?;
        let caches = namespaces.iter().any(|namespace| namespace.caches());
        let deallocates = namespaces.iter().any(|namespace| namespace.geometry().discard.is_some());
        let name = format!("nvme {short}");
        let failed = |cause| ServiceError { device: at, what: format!("set up {name}"), cause };

        // The admin queues beside the others.
        let pairs = options.queues.max(LEAST_QUEUES) + 1;
        let mut msix = Msix::new(at, services.clone(), pairs);
        msix.set_bus_master(false).expect("no vector is there yet");
        let (config, power_at, msix_at) = function::config_space(at, &msix, windows);
        let interrupts = Arc::new(Interrupts::new(msix, services.line(at, Pin::of(at))));
        let waker = Waker::new().map_err(failed)?;
        let events = Arc::new(Events::new(waker.another().map_err(failed)?));
        let doorbells = Arc::new(Doorbells::new(pairs, &waker, events.clone()).map_err(failed)?);
        let gate = Gate::shut();
        let pass = Arc::new(gate.pass(waker.eventfd()).map_err(failed)?);
        let shared = Arc::new(Shared {
            identity: identify::controller(&identity, namespaces.len() as u32, caches, deallocates),
            reports: Reports::new(name.clone(), report),
            short: short.clone(),
            ram,
            executors: usize::from(pairs - 1) * namespaces.len(),
            gate,
            waker,
            registers: Registers::default(),
            ioeventfds: IoEventFds::new(at, services, doorbells.clone()),
            doorbells,
            interrupts,
            events,
            namespaces,
            write_cache: AtomicBool::new(true),
            completion_queues: Mutex::default(),
            fulfilled: Mutex::default(),
            log: Mutex::new(Log::new()),
            copied: AtomicU64::new(0),
        });
        let theirs = shared.clone();
        let thread = thread::Builder::new().name(format!("nvme-{short}"));
        let thread = thread.spawn(move || controller::run(&theirs, &pass)).map_err(failed)?;
        Ok(Nvme { shared, config: Mutex::new(config), power_at, msix_at, thread: Some(thread) })
    }

    /// A disk has got another size: the driver is told to look at the namespace (1 for the first) again.
    pub fn namespace_changed(&self, nsid: u32) {
        if self.shared.namespace(nsid).is_some() {
            self.shared.log.lock().changed(nsid);
            self.shared.events.raise(Event::NamespaceChanged);
        }
    }

    /// Bytes that went through memory of skep's own: compared data, and zeroes written to disks that cannot write
    /// them themselves. Copies for the sake of a disk are that disk's to count.
    pub fn copied(&self) -> u64 {
        self.shared.copied.load(Ordering::Relaxed)
    }
}

fn attach(name: &str, namespaces: Vec<Namespace>, serial: &str) -> Result<Vec<Arc<Attached>>, NvmeError> {
    let attach = |(nsid, namespace): (u32, Namespace)| {
        let disk = namespace.disk.clone();
        let attached = Attached::new(nsid, namespace, serial);
        attached.map(Arc::new).ok_or_else(|| wrong_blocks(name, &disk))
    };
    (1..).zip(namespaces).map(attach).collect()
}

impl Drop for Nvme {
    /// Ends all threads, and waits for everything under way, but not for ever: threads whose disk does not answer in that
    /// time are left behind, with their share in RAM and disks.
    fn drop(&mut self) {
        self.shared.registers.quit();
        self.shared.waker.wake();
        let Some(thread) = self.thread.take() else { return };
        // It has all queues end together, and ends when they have.
        let until = Instant::now() + REMOVAL_LIMIT;
        while !thread.is_finished() && Instant::now() < until {
            thread::sleep(LOOK);
        }
        if thread.is_finished() {
            // A thread that panicked has said so.
            thread.join().ok();
        } else {
            self.shared.host_failed(&format_args!(
                "a disk has not ended in {} s what is under way. The controller's threads are left behind; see the host's log for the disk.",
                REMOVAL_LIMIT.as_secs()
            ));
        }
    }
}
