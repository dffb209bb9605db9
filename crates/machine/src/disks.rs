//! Disks: opened, and shown to the guest on controllers.
//!
//! A virtio block device and an NVMe controller are one disk each. SATA disks and CD drives share controllers, in the
//! order of the description, as many as a controller has ports.

use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use config::{DiskModel, DiskSource, FileDisk, OnError, Writes};
use devices::ahci::{Ahci, AhciCd, AhciDisk, AhciPort, AtaText};
use devices::{InitialCache, Namespace, Nvme, NvmeOptions, Rings, VirtioBlk, VirtioBlkOptions};
use disk::{Allocation, Bounce, Claim, Disk, DiskOptions, Format, NbdUrl, Sectors, Size, SizeWatch, Source};
use memory::Ram;
use pci::{Address, Bus, Function, PciError, Services};
use virtio::{Report, VirtioPci};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::buffers::Choice;
use crate::error::{StartError, system};
use crate::events::Events;
use crate::failures;

/// Ports of a SATA controller (AHCI 1.3.1, 3.1.1).
const PORTS: usize = 32;
/// Queues of a model at most.
const MOST_QUEUES: u16 = 64;
/// Queue pairs that an NVMe controller has at least, which firmware relies on.
const LEAST_NVME_QUEUES: u16 = 2;

/// A disk as far as it can be had before devices are taken.
pub enum CheckedDisk {
    /// Open.
    Open(OpenDisk),
    /// On a controller that skep drives: it is looked at when the controller is skep's.
    Driven(config::Disk),
}

/// A disk that is open and claimed, and what the guest is to see of it.
pub struct OpenDisk {
    disk: Arc<Disk>,
    model: Model,
    on_error: Option<OnError>,
    buffers: Choice,
}

/// What the guest is to see, as far as it is made without a place on the bus.
enum Model {
    VirtioBlk(Box<VirtioBlk>),
    Nvme(NvmeOptions),
    Ahci(AhciPort),
}

/// Opens a disk, which claims it: nobody else can mount it or give it to another VM until it is closed.
pub fn check(disk: &config::Disk, cpus: config::Cpus) -> Result<CheckedDisk, StartError> {
    let (options, name) = match &disk.source {
        DiskSource::Nvme { .. } => return Ok(CheckedDisk::Driven(disk.clone())),
        DiskSource::File(file) => (file_options(file), short_name(file.path.as_path())),
        DiskSource::Nbd(address) => {
            let url: NbdUrl = address.as_str().parse()?;
            let name = if url.export.is_empty() { "nbd".into() } else { short_name(Path::new(&url.export)) };
            (DiskOptions::over(Source::Nbd(url)), name)
        }
        DiskSource::Ram(size) => {
            (DiskOptions::over(Source::Memory(Sectors::in_bytes(size.bytes()))), "ram".into())
        }
    };
    let options = match disk.writes {
        Writes::Kept => options,
        Writes::Refused => options.read_only(),
        Writes::ThrownAway => options.throw_away(),
    };
    Ok(CheckedDisk::Open(OpenDisk::new(Disk::open(&options)?, &name, disk, queues(disk, cpus))?))
}

fn file_options(file: &FileDisk) -> DiskOptions {
    let FileDisk { path, format, logical, preallocate, bounce, force, buffers: _ } = file;
    DiskOptions {
        format: format.map(|format| match format {
            config::Format::Raw => Format::Raw,
            config::Format::Qcow2 => Format::Qcow2,
            config::Format::Vmdk => Format::Vmdk,
        }),
        bounce: match bounce {
            config::Bounce::Needed => Bounce::WhenNeeded,
            config::Bounce::Always => Bounce::Always,
        },
        allocation: if *preallocate { Allocation::AtOnce } else { Allocation::AsWritten },
        claim: if *force { Claim::Forced } else { Claim::Exclusive },
        logical_block: logical.map(config::LogicalBlock::bytes),
        ..DiskOptions::new(path.as_path())
    }
}

fn short_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// How many queues of a disk its model may take into use: as many as there are vCPUs, unless somebody wants it
/// otherwise.
pub fn queues(disk: &config::Disk, cpus: config::Cpus) -> u16 {
    let wanted = disk.model.queues().map_or(cpus.get().get().min(MOST_QUEUES), |queues| queues.get().get());
    match disk.model {
        DiskModel::VirtioBlk { .. } => wanted,
        DiskModel::Nvme { .. } => wanted.max(LEAST_NVME_QUEUES),
        DiskModel::Ahci | DiskModel::AhciCd => 1,
    }
}

impl OpenDisk {
    /// The model that the guest sees of a disk, with so many queues where it has a choice.
    pub fn new(opened: Disk, name: &str, disk: &config::Disk, queues: u16) -> Result<OpenDisk, StartError> {
        let opened = Arc::new(opened);
        let serial = disk.serial.as_ref().map(|serial| serial.as_str().to_owned());
        let ata_serial = || serial.as_deref().map(AtaText::new).transpose();
        let model = match disk.model {
            DiskModel::VirtioBlk { packed, write_cache, .. } => {
                let options = VirtioBlkOptions {
                    queues,
                    serial,
                    rings: if packed { Rings::Packed } else { Rings::Split },
                    write_cache: if write_cache { InitialCache::OfDisk } else { InitialCache::Off },
                    ..VirtioBlkOptions::new(name)
                };
                Model::VirtioBlk(Box::new(VirtioBlk::new(opened.clone(), options)?))
            }
            DiskModel::Nvme { .. } => Model::Nvme(NvmeOptions { queues, serial, ..NvmeOptions::new(name) }),
            DiskModel::Ahci => {
                let serial = ata_serial()?;
                Model::Ahci(AhciPort::Disk(AhciDisk { serial, ..AhciDisk::new(name, opened.clone()) }))
            }
            DiskModel::AhciCd => {
                let serial = ata_serial()?;
                Model::Ahci(AhciPort::Cd(AhciCd { serial, ..AhciCd::new(name, Some(opened.clone())) }))
            }
        };
        let buffers = Choice::of(&disk.source);
        Ok(OpenDisk { disk: opened, model, on_error: disk.on_error, buffers })
    }

    /// What holds its data.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Whether RAM is to be registered for it.
    pub fn buffers(&self) -> Choice {
        self.buffers
    }
}

/// What people should know of how disks were opened.
pub fn remarks(disks: &[OpenDisk]) -> impl Iterator<Item = &String> {
    disks.iter().flat_map(|disk| disk.disk.remarks())
}

/// Where controllers are put, and what they need there.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub bus: &'a Bus,
    pub ram: &'a Arc<Ram>,
    pub services: &'a Arc<dyn Services>,
    pub events: &'a Events,
}

/// The disks of a VM, which are watched for changes of their sizes.
pub struct Disks {
    // First, for they use the disks.
    _teller: Option<SizeTeller>,
    _watch: Option<SizeWatch>,
    all: Vec<Arc<Disk>>,
}

/// A function of the bus.
enum Controller {
    VirtioBlk(Box<VirtioBlk>),
    Nvme(NvmeOptions, Arc<Disk>),
    Ahci(Vec<AhciPort>),
}

impl Disks {
    /// Makes controllers of disks and puts them on the bus, at the first addresses that are free.
    pub fn put_on(disks: Vec<OpenDisk>, place: Place<'_>) -> Result<Disks, StartError> {
        // Before any of their queues is prepared.
        disks.iter().for_each(|disk| failures::watch(&disk.disk, disk.on_error, place.events));
        let all: Vec<Arc<Disk>> = disks.iter().map(|disk| disk.disk.clone()).collect();
        let mut listeners = Vec::new();
        for controller in controllers(disks) {
            listeners.extend(controller.put_on(place)?);
        }
        let watched = system("watch the sizes of disks");
        let watch = if all.is_empty() { None } else { Some(SizeWatch::over(&all).map_err(watched)?) };
        let teller = SizeTeller::new(listeners).map_err(system("listen to changes of disks"))?;
        Ok(Disks { _teller: teller, _watch: watch, all })
    }
}

impl Deref for Disks {
    type Target = [Arc<Disk>];

    fn deref(&self) -> &[Arc<Disk>] {
        &self.all
    }
}

/// SATA disks go to the last controller of theirs that has a port left.
fn controllers(disks: Vec<OpenDisk>) -> Vec<Controller> {
    let mut controllers = Vec::new();
    for OpenDisk { disk, model, .. } in disks {
        let port = match model {
            Model::VirtioBlk(device) => {
                controllers.push(Controller::VirtioBlk(device));
                continue;
            }
            Model::Nvme(options) => {
                controllers.push(Controller::Nvme(options, disk));
                continue;
            }
            Model::Ahci(port) => port,
        };
        let with_room = controllers.iter_mut().find_map(|controller| match controller {
            Controller::Ahci(ports) if ports.len() < PORTS => Some(ports),
            _ => None,
        });
        match with_room {
            Some(ports) => ports.push(port),
            None => controllers.push(Controller::Ahci(vec![port])),
        }
    }
    controllers
}

impl Controller {
    /// Puts it on the bus. Returns who is to be told when one of its disks has another size.
    fn put_on(self, place: Place<'_>) -> Result<Vec<Listener>, StartError> {
        let Place { bus, ram, services, events } = place;
        let at = bus.free_address()?;
        let (ram, services, windows) = (ram.clone(), services.clone(), bus.windows());
        let events = events.clone();
        let report: Report = Arc::new(move |what: String| events.trouble(what));
        match self {
            Controller::VirtioBlk(device) => {
                let (disk, notice) = (device.disk().clone(), device.size_notice());
                let function = VirtioPci::new(device, at, ram, services, windows, report);
                add(bus, at, Arc::new(function.map_err(PciError::from)?))?;
                Ok(vec![Listener::new(&disk, move || notice.send())?])
            }
            Controller::Nvme(options, disk) => {
                let namespace = vec![Namespace::new(disk.clone())];
                let nvme = Arc::new(Nvme::new(namespace, &options, at, ram, services, windows, report)?);
                add(bus, at, nvme.clone())?;
                Ok(vec![Listener::new(&disk, move || nvme.namespace_changed(1))?])
            }
            Controller::Ahci(ports) => {
                let people = ports.iter().filter_map(|port| match port {
                    AhciPort::Disk(AhciDisk { disk, .. }) => Some(tell_people(disk, place.events.clone())),
                    AhciPort::Cd(_) | AhciPort::Empty => None,
                });
                let people = people.collect::<Result<Vec<Listener>, StartError>>()?;
                add(bus, at, Arc::new(Ahci::new(ports, at, ram, services, windows, report)?))?;
                Ok(people)
            }
        }
    }
}

/// ATA has no word for another size, so people are told what to do about it. To unplug the disk for a moment would
/// tell the driver, but not those in the guest who have mounted it.
fn tell_people(disk: &Disk, events: Events) -> Result<Listener, StartError> {
    let (name, size) = (disk.name().to_owned(), disk.size());
    Listener::new(disk, move || events.trouble(resized_on_sata(&name, &size)))
}

fn resized_on_sata(name: &str, size: &Size) -> String {
    let mib = size.now().0 >> 11;
    format!(
        "disk {name} has {mib} MiB now. SATA has no word for this: the guest learns of it when it finds the disk anew \
         (Linux, with nothing of it mounted: echo 1 > /sys/block/sdX/device/delete, then echo '- - -' > \
         /sys/class/scsi_host/hostN/scan), or at its next start."
    )
}

fn add(bus: &Bus, at: Address, function: Arc<dyn Function>) -> Result<(), StartError> {
    bus.add(at, function)?;
    Ok(bus.place_bars(at)?)
}

/// Who is to be told when a disk has another size.
struct Listener {
    resized: EventFd,
    tell: Box<dyn Fn() + Send>,
}

impl Listener {
    fn new(disk: &Disk, tell: impl Fn() + Send + 'static) -> Result<Listener, StartError> {
        let resized = disk.resized().map_err(system("listen to changes of a disk"))?;
        Ok(Listener { resized, tell: Box::new(tell) })
    }
}

/// A thread that tells controllers of other sizes of their disks, until it is dropped.
struct SizeTeller {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl SizeTeller {
    /// `None` when nobody listens.
    fn new(listeners: Vec<Listener>) -> std::io::Result<Option<SizeTeller>> {
        if listeners.is_empty() {
            return Ok(None);
        }
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let end = stop.try_clone()?;
        let thread = std::thread::Builder::new().name("disk-resizes".into()).spawn(move || {
            while wait(&end, &listeners) {
                // Only those that were written have something to read.
                let told = listeners.iter().filter(|listener| listener.resized.read().is_ok());
                told.for_each(|listener| (listener.tell)());
            }
        })?;
        Ok(Some(SizeTeller { stop, thread: Some(thread) }))
    }
}

impl Drop for SizeTeller {
    fn drop(&mut self) {
        // A counter that is full is readable already.
        self.stop.write(1).unwrap_or_default();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on its own.
            thread.join().unwrap_or_default();
        }
    }
}

/// Waits for a change; false when it is time to end.
fn wait(stop: &EventFd, listeners: &[Listener]) -> bool {
    let eventfds = listeners.iter().map(|listener| &listener.resized);
    let mut fds: Vec<libc::pollfd> = std::iter::once(stop)
        .chain(eventfds)
        .map(|eventfd| libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the array is ours and as long as said; it waits without end, which a signal may cut short.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    fds[0].revents == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(model: DiskModel) -> OpenDisk {
        let source = DiskSource::Ram("1M".parse().unwrap());
        let serial = "s".parse().ok();
        let disk = config::Disk { source, model, writes: Writes::Refused, serial, on_error: None };
        match check(&disk, config::Cpus::default()).unwrap() {
            CheckedDisk::Open(open) => open,
            CheckedDisk::Driven(_) => panic!("memory needs no driver"),
        }
    }

    #[test]
    fn sata_disks_share_controllers_of_32_ports_and_others_have_their_own() {
        let mut models = vec![DiskModel::Ahci; 31];
        models.insert(7, DiskModel::Nvme { queues: None });
        models.extend([DiskModel::AhciCd, DiskModel::Ahci, DiskModel::default()]);
        let made = controllers(models.into_iter().map(open).collect());
        let words: Vec<String> = made
            .iter()
            .map(|controller| match controller {
                Controller::VirtioBlk(_) => "virtio-blk".to_owned(),
                Controller::Nvme(..) => "nvme".to_owned(),
                Controller::Ahci(ports) => format!("ahci {}", ports.len()),
            })
            .collect();
        assert_eq!(words, ["ahci 32", "nvme", "ahci 1", "virtio-blk"]);
        let Controller::Ahci(ports) = &made[0] else { panic!("the first is SATA's") };
        assert!(matches!(ports[31], AhciPort::Cd(_)) && matches!(ports[30], AhciPort::Disk(_)));
    }

    #[test]
    fn a_listener_is_told_of_another_size_and_the_thread_ends_with_its_owner() {
        let file = std::env::temp_dir().join(format!("skep-resized-{}", std::process::id()));
        std::fs::write(&file, vec![0; 1 << 20]).unwrap();
        let disk = Disk::open(&DiskOptions::new(&file)).unwrap();
        let (sender, told) = std::sync::mpsc::channel();
        let listener = Listener::new(&disk, move || sender.send(()).unwrap()).unwrap();
        let teller = SizeTeller::new(vec![listener]).unwrap();
        std::fs::write(&file, vec![0; 2 << 20]).unwrap();
        assert_eq!(disk.look_again().unwrap(), Some(Sectors::in_bytes(2 << 20)));
        told.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        drop(teller);
        assert!(told.recv().is_err(), "the thread took its listener along");
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn of_a_sata_disk_that_grows_people_are_told() {
        let file = std::env::temp_dir().join(format!("skep-sata-grown-{}", std::process::id()));
        std::fs::write(&file, vec![0; 1 << 20]).unwrap();
        let disk = Disk::open(&DiskOptions::new(&file)).unwrap();
        let (events, inbox) = crate::events::events(Box::new(|_| {}));
        let listener = tell_people(&disk, events).unwrap();
        std::fs::write(&file, vec![0; 2 << 20]).unwrap();
        disk.look_again().unwrap();
        assert!(listener.resized.read().is_ok());
        (listener.tell)();
        let Ok(crate::events::Event::Trouble(what)) = inbox.next(None) else { panic!("nothing was told") };
        assert!(what.contains("has 2 MiB now"), "{what}");
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_wrong_address_of_a_server_is_a_finding() {
        let source = DiskSource::Nbd("nbd+unix:///a".parse().unwrap());
        let (model, writes) = (DiskModel::default(), Writes::Kept);
        let disk = config::Disk { source, model, writes, serial: None, on_error: None };
        let error = check(&disk, config::Cpus::default()).err().unwrap().to_string();
        assert!(error.contains("nbd+unix needs socket=PATH"), "{error}");
    }
}
