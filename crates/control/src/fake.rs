//! A VM for tests, which obeys every request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use disk::{Counters, Reading};
use dma::fake::FakeIommu;
use dma::{Domain, Kind, OwnMemory, P2pWish};
use memory::{Gpa, GpaRange, MemoryMap, Ram};

use crate::api::{Drive, Eject, EventKind, Info, Insert, Plug, Plugged, State, Unplug, Unplugged, VERSION};
use crate::journal::Journal;
use crate::source::{Refused, Source};

/// 1 MiB of RAM at 0 and 512 KiB at 2 MiB; a guest and a host domain, and a driver's queues in the latter; a disk,
/// a CD drive whose tray is locked while a disc is in it, and a SATA controller with room for one more disk.
pub struct FakeVm {
    name: String,
    map: Arc<MemoryMap>,
    domains: Vec<Arc<Domain>>,
    _queues: OwnMemory,
    journal: Arc<Journal>,
    state: Mutex<State>,
    disc: Mutex<Option<String>>,
    plugged: Mutex<Option<String>>,
    listens: AtomicBool,
}

impl FakeVm {
    /// One that runs.
    pub fn new(name: &str) -> FakeVm {
        let range = |start, len| GpaRange::new(Gpa(start), len).expect("a range");
        let ram = Ram::new(&[range(0, 0x10_0000), range(0x20_0000, 0x8_0000)]).expect("little memory");
        let map = MemoryMap::new(Arc::new(ram));
        let guest = FakeIommu::new().domain("guest", Kind::Guest(P2pWish::Off));
        let host = FakeIommu::new().domain("host", Kind::Host);
        for domain in [&guest, &host] {
            map.attach(domain.clone()).expect("the fake takes all");
        }
        let queues = host.map_own("NVMe queues", 0x2000).expect("room above the RAM");
        FakeVm {
            name: name.to_owned(),
            map: Arc::new(map),
            domains: vec![guest, host],
            _queues: queues,
            journal: Arc::new(Journal::new()),
            state: Mutex::new(State::Running),
            disc: Mutex::new(Some("/images/a.iso".to_owned())),
            plugged: Mutex::default(),
            listens: AtomicBool::new(true),
        }
    }

    /// Whether its guest listens to the power button from now on; at first it does.
    pub fn set_listens_to_button(&self, listens: bool) {
        self.listens.store(listens, Ordering::SeqCst);
    }

    /// Makes all calls about the drive wait until this is dropped.
    #[cfg(test)]
    pub(crate) fn hold_the_drive(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.disc.lock().expect("no code panics with this lock held")
    }

    /// Its drive, whose tray the guest has locked while a disc is in it.
    fn change_disc(&self, drive: &str, force: bool, disc: Option<&str>) -> Result<Drive, Refused> {
        let mut now = self.disc.lock().expect("no code panics with this lock held");
        if drive != "cd0" && now.as_deref() != Some(drive) {
            return Err(Refused(format!("there is no CD drive {drive}. There is: cd0")));
        }
        if now.is_some() && !force {
            return Err(Refused(
                "the guest has locked the tray. Take the disc by force (--force)".to_owned(),
            ));
        }
        *now = disc.map(str::to_owned);
        Ok(Drive { name: "cd0".to_owned(), disc: now.clone(), leaving: None })
    }

    fn become_state(&self, state: State, text: &str) -> Result<State, Refused> {
        let mut now = self.state.lock().expect("no code panics with this lock held");
        if *now == State::Ending {
            return Err(Refused(format!("the VM {} is ending. Start it again", self.name)));
        }
        *now = state;
        self.journal.record(EventKind::Life, text);
        Ok(state)
    }
}

impl Source for FakeVm {
    fn info(&self) -> Info {
        Info {
            api: VERSION,
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: *self.state.lock().expect("no code panics with this lock held"),
            reason: None,
            pid: std::process::id(),
            since: "2026-11-22T20:30:55.000Z".to_owned(),
            listens_to_button: self.listens.load(Ordering::SeqCst),
        }
    }

    fn domains(&self) -> Vec<Arc<Domain>> {
        self.domains.clone()
    }

    fn memory(&self) -> Option<Arc<MemoryMap>> {
        Some(self.map.clone())
    }

    fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    fn disks(&self) -> Vec<Reading> {
        let counters = Counters { reads: 7, bytes_read: 28672, bytes_direct: 28672, ..Counters::default() };
        let first = Reading { name: "/dev/sda".to_owned(), counters, waiting: None };
        let plugged = self.plugged.lock().expect("no code panics with this lock held").clone();
        let plugged = plugged.map(|name| Reading { name, counters: Counters::default(), waiting: None });
        std::iter::once(first).chain(plugged).collect()
    }

    fn drives(&self) -> Vec<Drive> {
        let disc = self.disc.lock().expect("no code panics with this lock held").clone();
        vec![Drive { name: "cd0".to_owned(), disc, leaving: None }]
    }

    fn insert(&self, insert: &Insert) -> Result<Drive, Refused> {
        self.change_disc(&insert.drive, insert.force, Some(&insert.disc))
    }

    fn eject(&self, eject: &Eject) -> Result<Drive, Refused> {
        self.change_disc(&eject.drive, eject.force, None)
    }

    fn plug(&self, Plug { disk }: &Plug) -> Result<Plugged, Refused> {
        let disk = config::describe_disk("plug", disk, config::ModelName::Ahci);
        let disk = disk.map_err(|findings| Refused(findings.to_string()))?;
        let mut plugged = self.plugged.lock().expect("no code panics with this lock held");
        let config::DiskSource::File(file) = disk.source else {
            return Err(Refused("this disk is no file or device. Write path=/dev/sdb".to_owned()));
        };
        if plugged.is_some() {
            return Err(Refused("all ports of ahci 00:03.0 are in use. Unplug a disk first".to_owned()));
        }
        *plugged = Some(file.path.to_string());
        Ok(Plugged { disk: file.path.to_string(), place: "ahci 00:03.0, port 1".to_owned() })
    }

    fn unplug(&self, Unplug { disk }: &Unplug) -> Result<Unplugged, Refused> {
        let mut plugged = self.plugged.lock().expect("no code panics with this lock held");
        if plugged.as_ref() != Some(disk) {
            return Err(Refused(format!("the VM has no disk called {disk}. It has no SATA disk now")));
        }
        *plugged = None;
        Ok(Unplugged { disk: disk.clone(), leaving: false })
    }

    fn pause(&self) -> Result<State, Refused> {
        self.become_state(State::Paused, "The vCPUs are stopped.")
    }

    fn resume(&self) -> Result<State, Refused> {
        self.become_state(State::Running, "The vCPUs go on.")
    }

    fn press_power_button(&self) -> Result<State, Refused> {
        self.become_state(State::Running, "The power button was pressed.")
    }

    fn stop(&self) -> Result<State, Refused> {
        self.become_state(State::Ending, "The VM got an order to end.")
    }
}
