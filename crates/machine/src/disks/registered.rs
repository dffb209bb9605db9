//! Guest RAM registered with io_uring, for the disks that use it.
//!
//! Registering pins all of RAM. Where it stays present in any case, because it is wired or devices reach it, that costs
//! nothing that was not spent already, and so it is done unless a disk is not to have it; other RAM the host may use
//! until the guest touches it, and so it is done only when it is asked for.

use std::sync::Arc;

use config::{Bounce, Buffers, DiskSource};
use disk::{BufferTable, BufferTableError, Disk};
use memory::MemoryMap;

use crate::disks::{OpenDisk, PlugError};
use crate::error::StartError;
use crate::events::notice::{Life, Notice, Reporter};

/// Whether a disk's queues get RAM as registered buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The description says so.
    Asked,
    /// If RAM stays present in any case.
    WhereRamStays,
    /// Not at all.
    Never,
}

impl Choice {
    /// What a disk's description chooses.
    pub fn of(source: &DiskSource) -> Choice {
        let buffers = match source {
            // The kernel would see nothing of RAM but what is copied.
            DiskSource::File(file) if file.bounce == Bounce::Always => file.buffers.or(Some(Buffers::Plain)),
            DiskSource::File(file) => file.buffers,
            DiskSource::Ram(_) => None,
            // Neither has a ring.
            DiskSource::Nvme { .. } | DiskSource::Nbd(_) => Some(Buffers::Plain),
        };
        match buffers {
            Some(Buffers::Registered) => Choice::Asked,
            Some(Buffers::Plain) => Choice::Never,
            None => Choice::WhereRamStays,
        }
    }
}

/// What on this host prevents RAM from being registered for the disks that ask for it, as far as it is known before there
/// is RAM. `open` are those of the disks that could be opened.
pub fn check<'a>(disks: &[config::Disk], open: impl Iterator<Item = &'a OpenDisk>) -> Vec<StartError> {
    let all = disks.iter().filter(|disk| Choice::of(&disk.source) == Choice::Asked).count();
    let asked = open.filter(|disk| disk.buffers() == Choice::Asked).map(OpenDisk::disk);
    in_the_way(asked.map(|disk| (disk.name(), disk.has_rings())), all, || BufferTable::new().map(drop))
}

/// The same of those that are open, by name, each with whether it has rings; `all` are the disks that ask for it, open
/// or not. A table is tried only if a disk may use it.
fn in_the_way<'a>(
    open: impl Iterator<Item = (&'a str, bool)>,
    all: usize,
    try_table: impl FnOnce() -> Result<(), BufferTableError>,
) -> Vec<StartError> {
    let without: Vec<_> = open.filter(|(_, has_rings)| !has_rings).collect();
    let tried = if without.len() == all { Ok(()) } else { try_table() };
    let without = without.into_iter().map(|(name, _)| StartError::NoRing(name.to_owned()));
    without.chain(tried.err().map(StartError::from)).collect()
}

/// What of RAM was registered at the start, for disks that come later.
#[derive(Default)]
pub struct Registered {
    table: Option<Arc<BufferTable>>,
    /// Whether all of RAM is present for the VM's life anyway.
    stays: bool,
}

impl Registered {
    /// Gives the registered buffers to a disk that is plugged in while the VM runs, if it wants them. RAM is
    /// registered at the start only: where it was not, a disk that leaves the choice reaches it as ordinary memory,
    /// and one that asks for more is refused.
    pub fn give(&self, disk: &OpenDisk) -> Result<(), PlugError> {
        let given = match &self.table {
            Some(table) if wants(disk.buffers(), self.stays) => disk.disk().use_buffers(table),
            _ => false,
        };
        if given || disk.buffers() != Choice::Asked {
            return Ok(());
        }
        let name = disk.disk().name().to_owned();
        Err(if disk.disk().has_rings() {
            PlugError::NotRegistered(name)
        } else {
            StartError::NoRing(name).into()
        })
    }
}

/// Registers RAM for the disks that want it, and says what came of it. `stays` says whether all of RAM stays present for
/// the VM's life anyway. A failure is one only if a disk asked for it.
pub fn register(
    disks: &[OpenDisk],
    map: &MemoryMap,
    stays: bool,
    report: &Reporter,
) -> Result<Registered, StartError> {
    let plain = Ok(Registered { table: None, stays });
    let users: Vec<&OpenDisk> = disks.iter().filter(|disk| wants(disk.buffers(), stays)).collect();
    if users.is_empty() {
        return plain;
    }
    let asked = users.iter().any(|disk| disk.buffers() == Choice::Asked);
    let table = match table(map) {
        Ok(table) => table,
        Err(error) if asked => return Err(error),
        Err(error) => {
            let said = format!("disks reach the guest's RAM as ordinary memory: {error}");
            report(&Notice::Life(Life::Made(said)));
            return plain;
        }
    };
    let (with, without): (Vec<&OpenDisk>, Vec<&OpenDisk>) =
        users.into_iter().partition(|disk| disk.disk().use_buffers(&table));
    if let Some(disk) = without.iter().find(|disk| disk.buffers() == Choice::Asked) {
        return Err(StartError::NoRing(disk.disk().name().to_owned()));
    }
    if with.is_empty() {
        // No disk uses it.
        let mirror: Arc<dyn memory::Mirror> = table;
        map.detach(&mirror)?;
        return plain;
    }
    let names: Vec<&str> = with.iter().map(|disk| Disk::name(disk.disk())).collect();
    let said = format!(
        "{} MiB of the guest's RAM are pinned as registered buffers of {}",
        table.bytes() >> 20,
        names.join(", ")
    );
    report(&Notice::Life(Life::Made(said)));
    Ok(Registered { table: Some(table), stays })
}

fn wants(choice: Choice, stays: bool) -> bool {
    match choice {
        Choice::Asked => true,
        Choice::WhereRamStays => stays,
        Choice::Never => false,
    }
}

/// A table that mirrors the map.
fn table(map: &MemoryMap) -> Result<Arc<BufferTable>, StartError> {
    let table = Arc::new(BufferTable::new()?);
    map.attach(table.clone())?;
    Ok(table)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use memory::{Ram, ram_ranges};

    fn described(buffers: Option<Buffers>, bounce: Bounce, folder: &std::path::Path) -> config::Disk {
        let path = folder.join(format!("{buffers:?}-{bounce}"));
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let path = path.to_str().unwrap().parse().unwrap();
        let file = config::FileDisk { buffers, bounce, ..config::FileDisk::new(path) };
        config::Disk::new(DiskSource::File(file))
    }

    fn open(buffers: Option<Buffers>, bounce: Bounce, folder: &std::path::Path) -> OpenDisk {
        let disk = described(buffers, bounce, folder);
        match crate::disks::check(&disk, config::Cpus::default()).unwrap() {
            crate::disks::CheckedDisk::Open(open) => open,
            crate::disks::CheckedDisk::Driven(_) => panic!("a file needs no driver"),
        }
    }

    /// What is said, and which mirrors there are.
    fn registered(disks: &[OpenDisk], stays: bool) -> (Vec<String>, usize) {
        let map = MemoryMap::new(Arc::new(Ram::new(&ram_ranges(4 << 20)).unwrap()));
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let report: Reporter = Box::new(move |notice| sink.lock().push(notice.to_string()));
        register(disks, &map, stays, &report).unwrap();
        let audits = map.audit();
        assert!(audits.iter().all(|(_, audit)| audit.is_ok()), "{audits:?}");
        let told = told.lock().clone();
        (told, audits.len())
    }

    #[test]
    fn ram_is_registered_where_it_is_asked_for_or_stays_and_a_sentence_says_for_whom() {
        match BufferTable::new() {
            Err(BufferTableError::NoClones(_)) => return,
            other => drop(other.unwrap()),
        }
        let folder = std::env::temp_dir().join(format!("skep-buffers-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let one = |buffers| vec![open(buffers, Bounce::Needed, &folder)];
        assert_eq!(registered(&one(None), false), (vec![], 0));
        assert_eq!(registered(&one(Some(Buffers::Plain)), true), (vec![], 0));
        // What is always copied has no use for it.
        assert_eq!(registered(&[open(None, Bounce::Always, &folder)], true), (vec![], 0));
        let asked = one(Some(Buffers::Registered));
        let disk = described(Some(Buffers::Registered), Bounce::Needed, &folder);
        assert!(check(&[disk], asked.iter()).is_empty());
        drop(asked);
        for (buffers, stays) in [(None, true), (Some(Buffers::Registered), false)] {
            let (said, mirrors) = registered(&one(buffers), stays);
            assert_eq!(mirrors, 1);
            assert!(said[0].starts_with("4 MiB of the guest's RAM are pinned"), "{said:?}");
            assert!(said[0].contains(folder.to_str().unwrap()), "{said:?}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_host_that_cannot_register_what_is_asked_for_says_so_for_every_disk_before_the_start() {
        let refused = || Err(BufferTableError::NoClones(std::io::Error::from_raw_os_error(libc::EINVAL)));
        let said = |asked: &[(&str, bool)]| -> Vec<String> {
            let errors = in_the_way(asked.iter().copied(), asked.len(), refused);
            errors.iter().map(StartError::to_string).collect()
        };
        assert_eq!(said(&[]), [""; 0], "nobody asks");
        let errors = said(&[("/a", false), ("/b", true), ("/c", false)]);
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors[0].starts_with("disk /a: io_uring is not allowed here"), "{errors:?}");
        assert!(errors[1].starts_with("disk /c: "), "{errors:?}");
        assert!(errors[2].contains("Use Linux 6.12 or later"), "{errors:?}");
        assert!(in_the_way([("/b", true)].into_iter(), 1, || Ok(())).is_empty());
        let errors = in_the_way(std::iter::empty(), 1, refused);
        assert_eq!(errors.len(), 1, "though the disk that asks could not be opened");
    }
}
