//! Controllers, made of the disks that are on them.
//!
//! A virtio block device is one disk, and so is an NVMe controller without a name; disks that name the same controller are
//! its namespaces or ports. SATA disks that name none share controllers, in the order of the description, as many as a
//! controller has ports.

use std::collections::BTreeSet;
use std::sync::Arc;

use config::{BootIndex, ControllerName, DiskModel};
use devices::ahci::{Ahci, AhciDisk, AhciPort};
use devices::{Namespace, Nvme, NvmeOptions, VirtioBlk};
use disk::Disk;
use pci::{Address, Bus, DeviceNumber, Function, PciError};
use virtio::{Message, Report, VirtioPci};

use super::resizes::{Listener, tell_people};
use super::sata_port::{SataController, SataPort};
use super::{Model, OpenDisk, Place};
use crate::error::StartError;
use crate::uefi::{BootKind, Bootable};

/// Characters of an NVMe controller's serial number at most (bytes 4 to 23 of the Identify Controller data structure).
const SERIAL: usize = 20;
/// Ports of a SATA controller at most (AHCI 1.3.1, 3.1.1).
const PORTS: usize = 32;
/// Ports that it has at least, as an ICH9 has.
const LEAST_PORTS: usize = 6;
/// Ports that are free at the start, for disks that come later, as far as there is room.
const SPARE_PORTS: usize = 2;

/// The disks as they are described, where each namespace of an NVMe controller says what any of them says of the
/// controller.
pub fn settled(disks: &[config::Disk]) -> Vec<config::Disk> {
    disks.iter().map(|disk| with_its_controller(disk, disks)).collect()
}

fn with_its_controller(disk: &config::Disk, all: &[config::Disk]) -> config::Disk {
    if disk.controller.is_none() || !matches!(disk.model, DiskModel::Nvme { .. }) {
        return disk.clone();
    }
    let shared = || all.iter().filter(|other| other.controller == disk.controller);
    config::Disk {
        model: DiskModel::Nvme { queues: shared().find_map(|other| other.model.queues()) },
        serial: shared().find_map(|other| other.serial.clone()),
        product: shared().find_map(|other| other.product.clone()),
        firmware: shared().find_map(|other| other.firmware.clone()),
        ..disk.clone()
    }
}

/// How many controllers all these disks will be on.
pub fn controllers_of(disks: &[config::Disk]) -> usize {
    let sata = |disk: &&config::Disk| matches!(disk.model, DiskModel::Ahci | DiskModel::AhciCd);
    let names: BTreeSet<Option<&ControllerName>> =
        disks.iter().filter(sata).map(|disk| disk.controller.as_ref()).collect();
    let of_name = |name| disks.iter().filter(sata).filter(|disk| disk.controller.as_ref() == name).count();
    let of_sata: usize = names.into_iter().map(|name| of_name(name).div_ceil(PORTS)).sum();
    let others = || disks.iter().filter(|disk| !sata(disk));
    let named: BTreeSet<&ControllerName> = others().filter_map(|disk| disk.controller.as_ref()).collect();
    of_sata + named.len() + others().filter(|disk| disk.controller.is_none()).count()
}

/// A function of the bus.
pub(super) enum Controller {
    VirtioBlk(Box<VirtioBlk>, Described),
    Nvme { name: Option<ControllerName>, options: NvmeOptions, disks: Vec<(Arc<Disk>, Described)> },
    Ahci { name: Option<ControllerName>, ports: Vec<(AhciPort, Described)> },
}

/// Where a disk stands in the description, and which place in the boot order that gives it.
#[derive(Clone, Copy)]
pub(super) struct Described {
    nth: usize,
    boot_index: Option<BootIndex>,
}

impl Described {
    /// Of a port that is free: what is plugged in there comes behind all that is described.
    const LAST: Described = Described { nth: usize::MAX, boot_index: None };

    fn bootable(self, at: Address, kind: BootKind) -> (usize, Bootable) {
        (self.nth, Bootable { at, kind, index: self.boot_index })
    }
}

/// The controllers of all disks, in the order of their first ones.
pub(super) fn controllers(disks: Vec<OpenDisk>) -> Vec<Controller> {
    let mut controllers: Vec<Controller> = Vec::new();
    for (nth, OpenDisk { disk, model, controller, boot_index, .. }) in disks.into_iter().enumerate() {
        let described = Described { nth, boot_index };
        match model {
            Model::VirtioBlk(device) => controllers.push(Controller::VirtioBlk(device, described)),
            Model::Nvme(options) => add_namespace(&mut controllers, controller, options, (disk, described)),
            Model::Ahci(port) => add_port(&mut controllers, controller, (port, described)),
        }
    }
    tell_apart(&mut controllers);
    controllers
}

fn add_namespace(
    controllers: &mut Vec<Controller>,
    wanted: Option<ControllerName>,
    options: NvmeOptions,
    disk: (Arc<Disk>, Described),
) {
    let shared = controllers.iter_mut().find_map(|controller| match controller {
        Controller::Nvme { name, options, disks } if wanted.is_some() && *name == wanted => {
            Some((options, disks))
        }
        _ => None,
    });
    match shared {
        Some((of_all, disks)) => {
            // Each queue of the controller may use each of its disks.
            of_all.queues = of_all.queues.min(options.queues);
            disks.push(disk);
        }
        None => {
            let short = wanted.as_ref().map_or(options.name, ToString::to_string);
            let is_taken = |name: &String| {
                controllers
                    .iter()
                    .any(|other| matches!(other, Controller::Nvme { options, .. } if options.name == *name))
            };
            let options = NvmeOptions { name: unused(&short, usize::MAX, is_taken), ..options };
            controllers.push(Controller::Nvme { name: wanted, options, disks: vec![disk] });
        }
    }
}

/// The text, or where that is taken, with the first number behind it that makes another one, in so many characters of ASCII.
fn unused(text: &str, longest: usize, is_taken: impl Fn(&String) -> bool) -> String {
    let (mut found, mut number) = (text.to_owned(), 1);
    while is_taken(&found) {
        number += 1;
        let end = format!("-{number}");
        found = text.chars().take(longest - end.len()).chain(end.chars()).collect();
    }
    found
}

/// Gives each NVMe controller a serial number of its own, unless the description gives it one: guests refuse the second of
/// two controllers that show the same, as those over two partitions of a disk would, or over two namespaces.
fn tell_apart(controllers: &mut [Controller]) {
    let nvme = controllers.iter_mut().filter_map(|controller| match controller {
        Controller::Nvme { options, disks, .. } => Some((options, disks)),
        _ => None,
    });
    let (given, own): (Vec<_>, Vec<_>) = nvme.partition(|(options, _)| options.serial.is_some());
    let mut taken: BTreeSet<String> =
        given.into_iter().filter_map(|(options, _)| options.serial.clone()).collect();
    for (options, disks) in own {
        let disks: Vec<Arc<Disk>> = disks.iter().map(|(disk, _)| disk.clone()).collect();
        let serial = unused(&options.serial_over(&disks), SERIAL, |serial| taken.contains(serial));
        taken.insert(serial.clone());
        options.serial = Some(serial);
    }
}

fn add_port(controllers: &mut Vec<Controller>, wanted: Option<ControllerName>, port: (AhciPort, Described)) {
    let with_room = controllers.iter_mut().find_map(|controller| match controller {
        Controller::Ahci { name, ports } if *name == wanted && ports.len() < PORTS => Some(ports),
        _ => None,
    });
    match with_room {
        Some(ports) => ports.push(port),
        None => controllers.push(Controller::Ahci { name: wanted, ports: vec![port] }),
    }
}

/// What came of putting controllers on the bus.
#[derive(Default)]
pub(super) struct Attached {
    /// Notified when a disk has another size.
    pub listeners: Vec<Listener>,
    /// Where SATA disks and the discs of drives are.
    pub sata_ports: Vec<(Arc<Disk>, SataPort)>,
    /// The SATA controllers.
    pub sata: Vec<SataController>,
    /// What can be booted, with its place in the description.
    pub bootable: Vec<(usize, Bootable)>,
}

impl Attached {
    pub fn add(&mut self, other: Attached) {
        self.listeners.extend(other.listeners);
        self.sata_ports.extend(other.sata_ports);
        self.sata.extend(other.sata);
        self.bootable.extend(other.bootable);
    }
}

impl Controller {
    /// Puts it on the bus.
    pub fn put_on(self, place: Place<'_>) -> Result<Attached, StartError> {
        let Place { bus, ram, services, events } = place;
        let at = bus.free_address(DeviceNumber::Shared)?;
        let (ram, services, windows) = (ram.clone(), services.clone(), bus.windows());
        let events = events.clone();
        let report: Report = Arc::new(move |message| match message {
            Message::Driver(what) => events.provoked(what),
            Message::Host(what) => events.trouble(what),
        });
        match self {
            Controller::VirtioBlk(device, described) => {
                let (disk, notice) = (device.disk().clone(), device.size_notice());
                let function = VirtioPci::new(device, at, ram, services, windows, report);
                add(bus, at, Arc::new(function.map_err(PciError::from)?))?;
                let listeners = vec![Listener::new(&disk, move || notice.send())?];
                let bootable = vec![described.bootable(at, BootKind::VirtioBlk)];
                Ok(Attached { listeners, bootable, ..Attached::default() })
            }
            Controller::Nvme { options, disks, .. } => {
                let bootable = (1..)
                    .zip(&disks)
                    .map(|(nsid, (_, described))| described.bootable(at, BootKind::Namespace(nsid)));
                let bootable = bootable.collect();
                let namespaces = disks.iter().map(|(disk, _)| Namespace::new(disk.clone())).collect();
                let nvme = Arc::new(Nvme::new(namespaces, &options, at, ram, services, windows, report)?);
                add(bus, at, nvme.clone())?;
                let listeners = (1..).zip(&disks).map(|(nsid, (disk, _))| {
                    let nvme = nvme.clone();
                    Listener::new(disk, move || nvme.namespace_changed(nsid))
                });
                let listeners = listeners.collect::<Result<_, _>>()?;
                Ok(Attached { listeners, bootable, ..Attached::default() })
            }
            Controller::Ahci { name, mut ports } => {
                ports.resize_with(with_spare(ports.len()), || (AhciPort::Empty, Described::LAST));
                let bootable = (0u8..).zip(&ports).map(|(number, (port, described))| {
                    let kind = match port {
                        AhciPort::Cd(_) => BootKind::SataDrive(number),
                        AhciPort::Disk(_) | AhciPort::Empty => BootKind::SataDisk(number),
                    };
                    described.bootable(at, kind)
                });
                let bootable = bootable.collect();
                let ports: Vec<AhciPort> = ports.into_iter().map(|(port, _)| port).collect();
                let people = ports.iter().filter_map(|port| match port {
                    AhciPort::Disk(AhciDisk { disk, .. }) => Some(tell_people(disk, place.events.clone())),
                    AhciPort::Cd(_) | AhciPort::Empty => None,
                });
                let listeners = people.collect::<Result<Vec<Listener>, StartError>>()?;
                let there = (0u8..).zip(&ports).filter_map(|(port, what)| match what {
                    AhciPort::Disk(AhciDisk { disk, .. }) => Some((disk.clone(), port)),
                    AhciPort::Cd(drive) => Some((drive.disc.clone()?, port)),
                    AhciPort::Empty => None,
                });
                let there: Vec<(Arc<Disk>, u8)> = there.collect();
                let ahci = Arc::new(Ahci::new(ports, at, ram, services, windows, report)?);
                add(bus, at, ahci.clone())?;
                let sata_ports =
                    there.into_iter().map(|(disk, port)| (disk, SataPort::new(&ahci, port))).collect();
                Ok(Attached { listeners, sata_ports, sata: vec![SataController { name, ahci }], bootable })
            }
        }
    }
}

/// How many ports a controller of so many disks and drives has.
fn with_spare(taken: usize) -> usize {
    (taken + SPARE_PORTS).clamp(LEAST_PORTS, PORTS)
}

fn add(bus: &Bus, at: Address, function: Arc<dyn Function>) -> Result<(), StartError> {
    bus.add(at, function)?;
    Ok(bus.place_bars(at)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::{CheckedDisk, check};
    use config::{DiskSource, Writes};

    fn disk(model: DiskModel, controller: &str) -> config::Disk {
        let source = DiskSource::Ram("1M".parse().unwrap());
        // Without a name, but never with a wrong one.
        let controller = (!controller.is_empty()).then(|| controller.parse().unwrap());
        config::Disk { model, controller, writes: Writes::Refused, ..config::Disk::new(source) }
    }

    fn made(disks: &[config::Disk]) -> Vec<Controller> {
        let open =
            settled(disks).into_iter().map(|disk| match check(&disk, config::Cpus::default()).unwrap() {
                CheckedDisk::Open(open) => open,
                CheckedDisk::Driven(_) => panic!("memory needs no driver"),
            });
        controllers(open.collect())
    }

    fn words(made: &[Controller]) -> Vec<String> {
        let word = |controller: &Controller| match controller {
            Controller::VirtioBlk(..) => "virtio-blk".to_owned(),
            Controller::Nvme { options, disks, .. } => format!("nvme {} {}", options.name, disks.len()),
            Controller::Ahci { ports, .. } => format!("ahci {}", ports.len()),
        };
        made.iter().map(word).collect()
    }

    const NVME: DiskModel = DiskModel::Nvme { queues: None };

    #[test]
    fn sata_disks_share_controllers_of_32_ports_and_others_have_their_own() {
        let mut models = vec![DiskModel::Ahci; 31];
        models.insert(7, NVME);
        models.extend([DiskModel::AhciCd, DiskModel::Ahci, DiskModel::default()]);
        let disks: Vec<config::Disk> = models.into_iter().map(|model| disk(model, "")).collect();
        let made = made(&disks);
        assert_eq!(words(&made), ["ahci 32", "nvme ram 1", "ahci 1", "virtio-blk"]);
        assert_eq!(controllers_of(&disks), made.len());
        let Controller::Ahci { ports, .. } = &made[0] else { panic!("the first is SATA's") };
        assert!(matches!(ports[31].0, AhciPort::Cd(_)) && matches!(ports[30].0, AhciPort::Disk(_)));
    }

    #[test]
    fn a_controller_has_ports_to_spare_as_long_as_it_can() {
        assert_eq!([1, 4, 5, 29, 31, 32].map(with_spare), [6, 6, 7, 31, 32, 32]);
    }

    #[test]
    fn disks_of_one_name_share_a_controller_wherever_they_stand() {
        let disks = [
            disk(NVME, "a"),
            disk(DiskModel::Ahci, "s"),
            disk(NVME, ""),
            disk(DiskModel::Ahci, ""),
            disk(NVME, "b"),
            disk(NVME, "a"),
            disk(DiskModel::AhciCd, "s"),
        ];
        assert_eq!(words(&made(&disks)), ["nvme a 2", "ahci 2", "nvme ram 1", "ahci 1", "nvme b 1"]);
    }

    #[test]
    fn nvme_controllers_over_disks_of_the_same_name_are_told_apart() {
        let disks = [disk(NVME, ""), disk(NVME, ""), disk(NVME, "ram-2"), disk(NVME, "")];
        assert_eq!(words(&made(&disks)), ["nvme ram 1", "nvme ram-2 1", "nvme ram-2-2 1", "nvme ram-3 1"]);
    }

    #[test]
    fn no_two_nvme_controllers_show_the_same_serial_number_unless_they_are_given_it() {
        let given = |serial: &str| config::Disk { serial: serial.parse().ok(), ..disk(NVME, "") };
        let disks = [disk(NVME, ""), given("skep-ram"), given("skep-ram-2"), given("G"), given("G")];
        let serials: Vec<_> = made(&disks)
            .iter()
            .map(|controller| match controller {
                Controller::Nvme { options, .. } => options.serial.clone().unwrap(),
                _ => panic!("all are NVMe"),
            })
            .collect();
        assert_eq!(serials, ["skep-ram-3", "skep-ram", "skep-ram-2", "G", "G"]);
        let twenty = "ABCDEFGHIJKLMNOPQRST";
        let ten: Vec<String> = (1..10).fold(vec![twenty.to_owned()], |all, _| {
            [&all[..], &[unused(twenty, SERIAL, |text| all.contains(text))]].concat()
        });
        assert_eq!([&*ten[1], &ten[9]], ["ABCDEFGHIJKLMNOPQR-2", "ABCDEFGHIJKLMNOPQ-10"]);
    }

    #[test]
    fn what_one_namespace_says_of_its_controller_holds_for_the_controller() {
        let said = config::Disk {
            model: DiskModel::Nvme { queues: 3.try_into().ok() },
            product: "P".parse().ok(),
            ..disk(NVME, "a")
        };
        let other = config::Disk { serial: "S".parse().ok(), firmware: "F".parse().ok(), ..disk(NVME, "a") };
        let made = made(&[disk(NVME, "a"), said, other, disk(NVME, "b")]);
        let Controller::Nvme { options, disks, .. } = &made[0] else { panic!("the first is a's") };
        let NvmeOptions { queues, serial, model, firmware, .. } = options;
        assert_eq!((*queues, disks.len()), (3, 3));
        let texts = [serial, model, firmware].map(|text| text.as_deref().unwrap());
        assert_eq!(texts, ["S", "P", "F"]);
        let Controller::Nvme { options, .. } = &made[1] else { panic!("the second is b's") };
        assert_eq!((options.serial.as_deref(), options.queues), (Some("skep-b"), 2));
    }
}
