//! Plugging and unplugging on the controllers of a machine without a guest.

use std::path::PathBuf;
use std::sync::Arc;

use disk::{Disk, DiskOptions};
use memory::{Gpa, GpaRange, Ram};
use pci::fake::FakeServices;
use pci::{Bus, Services, Windows};

use super::*;
use crate::disks::registered::Registered;
use crate::disks::{Disks, OpenDisk, Place, settled};
use crate::events::{Inbox, events};
use crate::uefi::{BootKind, Bootable};
use config::BootIndex;

/// Disks over files of a folder of their own.
struct Machine {
    disks: Disks,
    bootable: Vec<Bootable>,
    inbox: Inbox,
    bus: Bus,
    folder: Folder,
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

impl Folder {
    /// A disk of a file in it, of 1 MiB, unless the text says what holds the data.
    fn described(&self, text: &str) -> config::Disk {
        let (name, _) = text.split_once(',').unwrap_or((text, ""));
        let path = self.0.join(name);
        let whole = if name.contains('=') { text.to_owned() } else { format!("{}/{text}", self.0.display()) };
        if !name.contains('=') && !path.exists() {
            std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        }
        config::describe_disk("disk", &whole, ModelName::Ahci).unwrap()
    }

    fn open(&self, name: &str) -> Disk {
        Disk::open(&DiskOptions::new(self.0.join(name))).unwrap()
    }
}

impl Machine {
    /// With these disks, of files of these names.
    fn new(test: &str, disks: &[&str]) -> Machine {
        let folder = std::env::temp_dir().join(format!("skep-plug-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let folder = Folder(folder);
        let windows = Windows {
            memory32: GpaRange::new(Gpa(0xc000_0000), 0x2000_0000).unwrap(),
            memory64: Some(GpaRange::new(Gpa(1 << 40), 1 << 30).unwrap()),
            ports: (0xc000, 0xffff),
        };
        let bus = Bus::new(&windows);
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
        let services: Arc<dyn Services> = Arc::new(FakeServices::default());
        let (sender, inbox) = events(Box::new(|_| {}));
        let described: Vec<config::Disk> = disks.iter().map(|text| folder.described(text)).collect();
        let open = settled(&described).into_iter().map(|disk| {
            match check(&disk, config::Cpus::default()).unwrap() {
                CheckedDisk::Open(open) => open,
                CheckedDisk::Driven(_) => panic!("files need no driver"),
            }
        });
        let open: Vec<OpenDisk> = open.collect();
        let place = Place { bus: &bus, ram: &ram, services: &services, events: &sender };
        let (disks, bootable) = Disks::put_on(open, place, Registered::default()).unwrap();
        Machine { disks, bootable, inbox, bus, folder }
    }

    fn plug(&self, text: &str) -> Result<Plugged, PlugError> {
        self.disks.outside().plug(&self.folder.described(text))
    }

    /// Why it cannot be plugged in; its file is not claimed.
    fn refusal(&self, text: &str) -> String {
        let why = self.plug(text).unwrap_err().to_string();
        assert!(why.contains(". "), "{why:?} has no hint");
        if let DiskSource::File(file) = self.folder.described(text).source {
            Disk::open(&DiskOptions::new(file.path.as_path())).unwrap();
        }
        why
    }

    fn path(&self, name: &str) -> String {
        self.folder.0.join(name).to_str().unwrap().to_owned()
    }

    fn unplug(&self, name: &str) -> Result<Unplugged, UnplugError> {
        self.disks.outside().unplug(&self.path(name))
    }

    /// Names of files that are there now.
    fn now(&self) -> Vec<String> {
        self.disks.outside().read().into_iter().map(|disk| short(&disk.name)).collect()
    }

    fn tallies(&self) -> Vec<String> {
        self.disks.tallies().iter().map(|tally| short(tally.name())).collect()
    }

    fn told(&self) -> Vec<String> {
        let told = self.inbox.waiting().into_iter().filter_map(|event| match event {
            Event::DisksChanged(what) => Some(what.replace(&format!("{}/", self.folder.0.display()), "")),
            _ => None,
        });
        told.collect()
    }
}

fn short(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

#[test]
fn a_disk_comes_and_goes_is_counted_and_is_free_for_others_afterwards() {
    let machine = Machine::new("comes", &["a", "v,model=virtio-blk", "c,model=ahci-cd"]);
    let plugged = machine.plug("b,serial=B").unwrap();
    assert_eq!(plugged.name, machine.path("b"));
    assert_eq!(machine.now(), ["a", "v", "c", "b"]);
    let twice = machine.plug("b").unwrap_err().to_string();
    assert!(twice.contains("in use") && twice.contains(&machine.path("b")), "{twice}");
    let unplugged = machine.unplug("b").unwrap();
    assert_eq!(unplugged, Unplugged { name: machine.path("b"), state: Letting::Closed });
    drop(machine.folder.open("b"));
    // As those of the start do.
    machine.unplug("a").unwrap();
    assert_eq!(machine.now(), ["v", "c"]);
    machine.plug("b").unwrap();
    assert_eq!(machine.now(), ["v", "c", "b"]);
    assert_eq!(machine.tallies(), ["a", "v", "c", "b", "b"]);
    let told = machine.told();
    let at = told[0].strip_prefix("disk b was plugged in (").unwrap().strip_suffix(", port 2)").unwrap();
    assert!(at.starts_with("ahci 00:"), "{at}");
    assert_eq!(
        told[1..],
        [
            format!("disk b was unplugged ({at}, port 2)"),
            format!("disk a was unplugged ({at}, port 0)"),
            format!("disk b was plugged in ({at}, port 0)"),
        ]
    );
}

#[test]
fn what_cannot_be_plugged_or_unplugged_is_said_with_the_reason_and_a_way_out() {
    let machine =
        Machine::new("cannot", &["a,controller=s", "v,model=virtio-blk", "n,model=nvme", "c,model=ahci-cd"]);
    for (text, said) in [
        ("b,model=virtio-blk", "model=virtio-blk cannot be plugged in"),
        ("b,model=nvme", "give the VM the disk at its start"),
        ("b,model=ahci-cd", "skep cd"),
        ("nvme=0000:03:00.0", "path=/dev/nvme0n1"),
        ("b,controller=t", "no SATA controller called t. It has s (ahci 00:"),
        ("b,buffers=registered", "buffers=registered. Remove that setting"),
        ("b,format=qcow2", "qcow2"),
        ("b,bootindex=1", "Remove bootindex"),
    ] {
        let why = machine.refusal(text);
        assert!(why.contains(said), "{text}: {why}");
    }
    let refused = |name: &str| {
        let why = machine.disks.outside().unplug(name).unwrap_err().to_string();
        assert!(why.contains(". "), "{why:?} has no hint");
        why
    };
    assert!(refused(&machine.path("v")).contains("its model is virtio-blk"));
    assert!(refused(&machine.path("n")).contains("its model is nvme"));
    for disc in ["cd0", &machine.path("c")] {
        assert!(refused(disc).contains("skep cd VM cd0 eject"));
    }
    let missing = refused("/nowhere");
    assert!(
        missing.contains("no disk called /nowhere. Its SATA disks are ") && missing.ends_with("/a"),
        "{missing}"
    );
    assert_eq!(machine.now(), ["a", "v", "n", "c"]);
    assert_eq!(machine.told(), [""; 0]);
    let none = Machine::new("none", &["v,model=virtio-blk"]);
    assert!(none.refusal("b").contains("the VM has no SATA controller"));
    assert!(none.refusal("b,controller=s").contains("It has none at all"));
}

#[test]
fn firmware_is_told_of_all_disks_as_they_are_described_and_then_of_ports_where_others_may_come() {
    let machine =
        Machine::new("told", &["a", "v,model=virtio-blk", "s,controller=s", "c,model=ahci-cd,bootindex=3"]);
    let kinds: Vec<BootKind> = machine.bootable.iter().map(|one| one.kind).collect();
    let described =
        [BootKind::SataDisk(0), BootKind::VirtioBlk, BootKind::SataDisk(0), BootKind::SataDrive(1)];
    assert_eq!(kinds[..4], described);
    let free = |ports: std::ops::Range<u8>| ports.map(BootKind::SataDisk);
    assert_eq!(kinds[4..], free(2..6).chain(free(1..6)).collect::<Vec<_>>());
    assert_eq!(machine.bootable[3].index.map(BootIndex::get), Some(3));
    assert_ne!(machine.bootable[0].at, machine.bootable[2].at);
}

#[test]
fn ports_are_taken_in_order_until_there_are_none_and_a_named_controller_is_the_one() {
    let machine = Machine::new("full", &["a", "s,controller=s"]);
    let place = |text: &str| machine.plug(text).unwrap().place;
    let [first, named] =
        ["b1", "t,controller=s"].map(|text| place(text).strip_suffix('1').unwrap().to_owned());
    assert_ne!(first, named);
    for port in 2..6 {
        assert_eq!(place(&format!("b{port}")), format!("{first}{port}"));
    }
    assert_eq!(place("b6"), format!("{named}2"));
    for port in 3..6 {
        place(&format!("t{port},controller=s"));
    }
    let full = machine.refusal("u");
    assert!(full.starts_with("all ports of ahci 00:") && full.contains(" and s (ahci 00:"), "{full}");
    machine.unplug("b3").unwrap();
    assert!(machine.refusal("u,controller=s").starts_with("all ports of s (ahci 00:"));
    assert_eq!(place("u"), format!("{first}3"));
}

#[test]
fn once_the_vm_is_taken_apart_nothing_is_plugged_in_and_everything_is_closed() {
    let machine = Machine::new("end", &["a"]);
    machine.plug("b").unwrap();
    machine.disks.close();
    assert!(machine.refusal("c").contains("the VM is ending"));
    assert_eq!(machine.tallies(), ["a", "b"]);
    let (outside, disk) = (machine.disks.outside(), machine.folder.described("a"));
    // Somebody looks while it ends.
    let list = outside.list().unwrap();
    let Machine { disks, bus, folder, .. } = machine;
    drop((bus, disks));
    assert!(["a", "b"].into_iter().all(|name| folder.open(name).capacity().0 == 2048));
    drop(list);
    assert!(matches!(outside.plug(&disk), Err(PlugError::Ending)));
    assert!(matches!(outside.unplug("a"), Err(UnplugError::Ending)));
    assert!(outside.read().is_empty());
}

#[test]
fn disks_that_come_and_go_while_the_vm_ends_are_closed_in_any_case() {
    for round in 0..8 {
        let machine = Machine::new("race", &["a"]);
        let (outside, disk) = (machine.disks.outside(), machine.folder.described("b"));
        let plugging = std::thread::spawn(move || {
            loop {
                match outside.plug(&disk) {
                    Err(PlugError::Ending) => return,
                    Err(other) => panic!("{other}"),
                    Ok(plugged) => match outside.unplug(&plugged.name) {
                        Ok(Unplugged { state: Letting::Closed, .. })
                        | Err(UnplugError::Ending | UnplugError::Missing { .. }) => {}
                        other => panic!("{other:?}"),
                    },
                }
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(3 * round));
        machine.disks.close();
        let Machine { disks, bus, folder, .. } = machine;
        drop((bus, disks));
        plugging.join().unwrap();
        drop((folder.open("a"), folder.open("b")));
    }
}
