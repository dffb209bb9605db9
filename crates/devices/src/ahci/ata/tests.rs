use super::*;
use disk::{Access, AfterDiscard, Backend, Discard, Engine, QueueCounters, QueueError, SectorRange};

/// A disk that is only looked at. It is twice as large when it is looked at again.
struct Described(Geometry);

impl Backend for Described {
    fn geometry(&self) -> &Geometry {
        &self.0
    }

    fn capacity(&self) -> std::io::Result<Sectors> {
        Ok(Sectors(2 * self.0.capacity.0))
    }

    fn engine(
        &self,
        depth: u16,
        _: std::sync::Arc<QueueCounters>,
    ) -> Result<Box<dyn Engine + Send>, QueueError> {
        let cause = std::io::ErrorKind::Unsupported.into();
        Err(QueueError { disk: "a disk".into(), depth, cause, hint: "" })
    }
}

pub fn geometry(logical_block: u32, physical_block: u32) -> Geometry {
    Geometry {
        capacity: Sectors(1 << 20),
        logical_block,
        physical_block,
        alignment_offset: 0,
        minimum_io: physical_block,
        optimal_io: 0,
        access: Access::ReadWrite,
        write_cache: WriteCache::WriteBack,
        fua: true,
        rotational: false,
        discard: Some(Discard { max: Sectors(1 << 12), granularity: 4096, after: AfterDiscard::Zeroes }),
        write_zeroes: None,
        model: None,
        serial: None,
    }
}

pub fn disk(geometry: &Geometry) -> HardDisk {
    over(&described(geometry))
}

fn described(geometry: &Geometry) -> Arc<Disk> {
    Arc::new(Disk::new("a disk", Box::new(Described(geometry.clone()))))
}

fn over(disk: &Arc<Disk>) -> HardDisk {
    let names = Names {
        serial: AtaSerial::new("S-1").unwrap(),
        firmware: AtaFirmware::new("F").unwrap(),
        model: AtaModel::new("a disk").unwrap(),
    };
    HardDisk::new(disk, names)
}

pub fn fis(command: u8) -> CommandFis {
    CommandFis {
        is_command: true,
        command,
        features: 0,
        lba: 0,
        device: LBA,
        count: 0,
        control: 0,
        auxiliary: 0,
    }
}

fn read(at: u64) -> Operation {
    Operation::Read { at: Sectors(at) }
}

#[test]
fn counts_of_zero_are_the_largest_and_blocks_become_sectors() {
    let mut disk = disk(&geometry(4096, 4096));
    let dma = |operation, bytes| Action::Transfer { operation, bytes, protocol: Protocol::Dma };
    let short = CommandFis { lba: 0x10, device: LBA | 1, ..fis(0xc8) };
    assert_eq!(disk.execute(&short, 0), dma(read((0x10 + (1 << 24)) * 8), 256 * 4096));
    let long = CommandFis { lba: 3, ..fis(0x25) };
    assert_eq!(disk.execute(&long, 0), dma(read(24), 65536 * 4096));
    let queued = CommandFis { lba: 3, features: 2, count: 5 << 3, ..fis(0x60) };
    let action = Action::Transfer { operation: read(24), bytes: 8192, protocol: Protocol::Queued };
    assert_eq!(disk.execute(&queued, 5), action);
    assert_eq!(disk.execute(&queued, 6), Action::Done(Taskfile::aborted()), "another tag");
    let old = CommandFis { device: 0, ..fis(0x25) };
    assert!(matches!(disk.execute(&old, 0), Action::Done(taskfile) if taskfile.error == error::ABORTED));
}

#[test]
fn writes_are_durable_as_asked_and_without_a_cache_always() {
    let mut disk = disk(&geometry(512, 512));
    let mut durability =
        |command, device| match disk.execute(&CommandFis { device, count: 0, ..fis(command) }, 0) {
            Action::Transfer { operation: Operation::Write { durability, .. }, .. } => durability,
            other => panic!("{other:?}"),
        };
    assert_eq!(durability(0x35, LBA), Durability::Cached);
    assert_eq!(durability(0x3d, LBA), Durability::Stable);
    assert_eq!(durability(0x61, LBA), Durability::Cached);
    assert_eq!(durability(0x61, LBA | FUA), Durability::Stable);
    let set = |features| CommandFis { features, ..fis(0xef) };
    assert_eq!(disk.execute(&set(0x82), 0), Action::Series(vec![Change::Flush]));
    assert_eq!(disk.durability(), Durability::Stable);
    disk.execute(&set(0x02), 0);
    assert_eq!(disk.durability(), Durability::Cached);
    disk.execute(&set(0x82), 0);
    disk.reset();
    assert_eq!(disk.durability(), Durability::Cached);
}

#[test]
fn a_software_reset_ends_with_the_signature() {
    let mut disk = disk(&geometry(512, 512));
    let control = |control| CommandFis { is_command: false, control, ..fis(0) };
    assert_eq!(disk.execute(&control(0), 0), Action::Control { busy: false });
    assert_eq!(disk.execute(&control(4), 0), Action::Control { busy: true });
    assert_eq!(disk.execute(&control(0), 0), Action::Signature(Signature::Ata.taskfile()));
    assert_eq!(disk.execute(&control(0), 0), Action::Control { busy: false });
}

#[test]
fn power_modes_are_remembered_until_the_medium_is_used() {
    let mut disk = disk(&geometry(512, 512));
    let mode = |disk: &mut HardDisk| match disk.execute(&fis(0xe5), 0) {
        Action::Done(taskfile) => taskfile.count,
        other => panic!("{other:?}"),
    };
    assert_eq!(mode(&mut disk), 0xff);
    assert_eq!(disk.execute(&fis(0xe0), 0), Action::Series(vec![Change::Flush]));
    assert_eq!(mode(&mut disk), 0);
    disk.execute(&fis(0x25), 0);
    assert_eq!(mode(&mut disk), 0xff);
}

#[test]
fn no_command_panics_and_unknown_ones_are_aborted() {
    let mut disk = disk(&geometry(512, 4096));
    for command in 0..=255 {
        for features in [0, 1, 0xd0, 0xd1, 0xd5, 0xda, 0xffff] {
            for lba in [0, 0xc24f00, 0xc24f01, 0x0030, 0xffff_ffff_ffff] {
                for count in [0, 1, 8, 0xffff] {
                    disk.execute(&CommandFis { features, lba, count, ..fis(command) }, 0);
                }
            }
        }
    }
    assert_eq!(disk.execute(&fis(0xa1), 0), Action::Done(Taskfile::aborted()));
    assert_eq!(disk.execute(&fis(0x63), 0), Action::Done(Taskfile::aborted()));
}

#[test]
fn a_failed_queued_command_is_in_the_log() {
    let mut disk = disk(&geometry(512, 512));
    let queued = CommandFis { lba: 0x1234, features: 8, count: 7 << 3, ..fis(0x60) };
    let fault = disk.failed(DiskError::Media, &queued, Protocol::Queued, 7);
    assert_eq!(fault.taskfile.error, error::UNCORRECTABLE);
    let log = CommandFis { lba: 0x10, count: 1, ..fis(0x2f) };
    let Action::Send(page, Protocol::Pio) = disk.execute(&log, 0) else { panic!() };
    assert_eq!((page[0], page[2], page[3]), (7, 0x51, 0x40));
    assert_eq!(page[4..7], [0x34, 0x12, 0]);
    assert_eq!(page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    let Action::Send(page, _) = disk.execute(&log, 0) else { panic!() };
    assert_eq!(page[0] & 0x80, 0x80, "read once, it is gone");
}

#[test]
fn trims_are_checked_before_anything_is_discarded() {
    let disk = disk(&geometry(4096, 4096));
    let entry = |lba: u64, count: u64| (lba | count << 48).to_le_bytes();
    let range = |start, count| SectorRange { start: Sectors(start), count: Sectors(count) };
    let mut data = [entry(8, 8), entry(16, 8), entry(0, 0), entry(100, 1)].concat();
    data.resize(512, 0);
    let pieces = |data: &[u8]| {
        let mut rest = disk.trim(data).unwrap();
        std::iter::from_fn(|| disk.next_change(&mut rest)).collect::<Vec<_>>()
    };
    assert_eq!(pieces(&data), [Change::Discard(range(64, 128)), Change::Discard(range(800, 8))]);
    let long = [Change::Discard(range(0, 1 << 12)), Change::Discard(range(1 << 12, 1 << 12))];
    assert_eq!(pieces(&entry(0, 1024)), long);
    let behind = disk.trim(&entry((1 << 17) - 1, 2)).unwrap_err();
    assert_eq!(behind, error::NOT_FOUND);
}

#[test]
fn a_disk_that_has_grown_is_identified_with_its_new_size() {
    let described = described(&geometry(512, 512));
    let disk = over(&described);
    let blocks = || u32::from_le_bytes(disk.identify()[200..204].try_into().unwrap());
    assert_eq!(blocks(), 1 << 20);
    described.look_again().unwrap();
    assert_eq!(blocks(), 1 << 21);
}
