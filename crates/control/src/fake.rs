//! A VM for tests, which obeys every request.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::api::{
    Address, Audit, BackEnd, Count, Disk, Dma, Domain, DomainKind, Done, Drive, Eject, EventKind, Info,
    Insert, Mapping, Memory, MemoryFiles, Mirror, P2p, Permission, Plug, Plugged, Range, Segment, Source,
    State, Stats, Target, Unplug, Unplugged, VERSION,
};
use crate::endpoint::Refused;
use crate::journal::Journal;

/// The guest addresses of its RAM: first address and length of each segment.
const RAM: [(u64, u64); 2] = [(0, 0x10_0000), (0x20_0000, 0x8_0000)];
/// A driver's queues, above the RAM.
const QUEUES: (u64, u64) = (0x7f_ffff_e000, 0x2000);

/// 1 MiB of RAM at 0 and 512 KiB at 2 MiB; a guest and a host domain, and a driver's queues in the latter; a disk,
/// a CD drive whose tray is locked while a disc is in it, and a SATA controller with room for one more disk.
pub struct FakeVm {
    name: String,
    ram: Vec<File>,
    journal: Arc<Journal>,
    state: Mutex<State>,
    disc: Mutex<Option<String>>,
    plugged: Mutex<Option<String>>,
    listens: AtomicBool,
}

impl FakeVm {
    /// One that runs.
    pub fn new(name: &str) -> FakeVm {
        let file = |(_, len)| {
            let file = tempfile::tempfile()?;
            file.set_len(len).map(|()| file)
        };
        FakeVm {
            name: name.to_owned(),
            ram: RAM.into_iter().map(file).collect::<io::Result<_>>().expect("room for little memory"),
            journal: Arc::new(Journal::new()),
            state: Mutex::new(State::Running),
            disc: Mutex::new(Some("/images/a.iso".to_owned())),
            plugged: Mutex::default(),
            listens: AtomicBool::new(true),
        }
    }

    /// Writes to its RAM.
    pub fn write_ram(&self, gpa: u64, bytes: &[u8]) {
        let (file, at) = self.ram_at(gpa);
        file.write_all_at(bytes, at).expect("a file in memory takes all");
    }

    /// Reads its RAM.
    pub fn read_ram(&self, gpa: u64, bytes: &mut [u8]) {
        let (file, at) = self.ram_at(gpa);
        file.read_exact_at(bytes, at).expect("the segment has them");
    }

    fn ram_at(&self, gpa: u64) -> (&File, u64) {
        let segments = RAM.iter().zip(&self.ram);
        let mut there = segments.filter(|((first, len), _)| (*first..first + len).contains(&gpa));
        let ((first, _), file) = there.next().expect("RAM");
        (file, gpa - first)
    }

    /// Whether its guest listens to the power button from now on; at first it does.
    pub fn set_listens_to_button(&self, listens: bool) {
        self.listens.store(listens, Ordering::SeqCst);
    }

    /// Makes all calls about the drive wait until this is dropped.
    #[cfg(test)]
    pub(crate) fn hold_the_drive(&self) -> parking_lot::MutexGuard<'_, Option<String>> {
        self.disc.lock()
    }

    /// Its drive, whose tray the guest has locked while a disc is in it.
    fn change_disc(&self, drive: &str, force: bool, disc: Option<&str>) -> Result<Drive, Refused> {
        let mut now = self.disc.lock();
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

    fn become_state(&self, state: State, text: &str) -> Result<Done, Refused> {
        let mut now = self.state.lock();
        if *now == State::Ending {
            return Err(Refused(format!("the VM {} is ending. Start it again", self.name)));
        }
        *now = state;
        self.journal.record(EventKind::Life, text);
        Ok(Done { state })
    }
}

fn range((first, len): (u64, u64)) -> Range {
    Range { first: Address(first), last: Address(first + len - 1) }
}

fn domain(kind: DomainKind, queues: Option<Mapping>) -> Domain {
    let ram = RAM.into_iter().enumerate().map(|(number, ram)| Mapping {
        iova: range(ram),
        target: Target::Ram { gpa: range(ram), segment: Some(number) },
        offset: Address(0),
        page_size: Some(4096),
        permission: Permission::ReadWrite,
    });
    let mappings: Vec<Mapping> = ram.chain(queues).collect();
    Domain {
        name: kind.to_string(),
        kind,
        back_end: BackEnd::Fake,
        groups: Vec::new(),
        devices: Vec::new(),
        map_calls: mappings.len() as u64,
        unmap_calls: 0,
        pinned: mappings.iter().map(|mapping| mapping.iova.bytes()).sum(),
        mappings,
        p2p: P2p::Off,
        audit: Audit::Same,
        faults: Count::default(),
    }
}

impl Source for FakeVm {
    fn info(&self) -> Result<Info, Refused> {
        Ok(Info {
            api: VERSION,
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: *self.state.lock(),
            reason: None,
            pid: std::process::id(),
            since: "2026-11-22T20:30:55.000Z".to_owned(),
            listens_to_button: self.listens.load(Ordering::SeqCst),
        })
    }

    fn dma(&self) -> Result<Dma, Refused> {
        let queues = Mapping {
            iova: range(QUEUES),
            target: Target::Own { what: "NVMe queues".to_owned() },
            offset: Address(0),
            page_size: Some(4096),
            permission: Permission::ReadWrite,
        };
        let domains = vec![domain(DomainKind::Guest, None), domain(DomainKind::Host, Some(queues))];
        // They share the RAM.
        Ok(Dma { pinned: domains[1].pinned, domains, other_faults: Count::default() })
    }

    fn memory(&self) -> Result<Memory, Refused> {
        let segment = |ram| Segment { gpa: range(ram), offset: Address(0), page_size: 4096, node: None };
        let mirror = |domain| Mirror { name: format!("DMA domain {domain}"), audit: Audit::Same };
        Ok(Memory {
            segments: RAM.into_iter().map(segment).collect(),
            devices: Vec::new(),
            mirrors: ["guest", "host"].into_iter().map(mirror).collect(),
        })
    }

    fn memory_fds(&self) -> Result<MemoryFiles, Refused> {
        let files: io::Result<Vec<_>> = self.ram.iter().map(|file| Ok(file.try_clone()?.into())).collect();
        let files = files.map_err(|cause| Refused(cause.to_string()))?;
        Ok(MemoryFiles { memory: self.memory()?, files })
    }

    fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    fn stats(&self) -> Result<Stats, Refused> {
        let name = "/dev/sda".to_owned();
        let first = Disk { name, reads: 7, bytes_read: 28672, bytes_direct: 28672, ..Disk::default() };
        let plugged = self.plugged.lock().clone();
        let plugged = plugged.map(|name| Disk { name, ..Disk::default() });
        let disc = self.disc.lock().clone();
        let drive = Drive { name: "cd0".to_owned(), disc, leaving: None };
        Ok(Stats { disks: std::iter::once(first).chain(plugged).collect(), drives: vec![drive] })
    }

    fn insert(&self, insert: &Insert) -> Result<Drive, Refused> {
        self.change_disc(&insert.drive, insert.force, Some(&insert.disc))
    }

    fn eject(&self, eject: &Eject) -> Result<Drive, Refused> {
        self.change_disc(&eject.drive, eject.force, None)
    }

    fn plug(&self, Plug { disk }: &Plug) -> Result<Plugged, Refused> {
        let disk = disk.describe().map_err(|findings| Refused(findings.to_string()))?;
        let mut plugged = self.plugged.lock();
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
        let mut plugged = self.plugged.lock();
        if plugged.as_ref() != Some(disk) {
            return Err(Refused(format!("the VM has no disk called {disk}. It has no SATA disk now")));
        }
        *plugged = None;
        Ok(Unplugged { disk: disk.clone(), leaving: false })
    }

    fn pause(&self) -> Result<Done, Refused> {
        self.become_state(State::Paused, "The vCPUs are stopped.")
    }

    fn resume(&self) -> Result<Done, Refused> {
        self.become_state(State::Running, "The vCPUs go on.")
    }

    fn press_power_button(&self) -> Result<Done, Refused> {
        self.become_state(State::Running, "The power button was pressed.")
    }

    fn stop(&self) -> Result<Done, Refused> {
        self.become_state(State::Ending, "The VM got an order to end.")
    }
}
