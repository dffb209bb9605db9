//! CD drives on the AHCI controller, driven by a guest.

use std::io::{self, Write};
use std::sync::Arc;

use devices::ahci::driver::{Ata, Failed, Guest, Port, reg, until};
use devices::ahci::{AhciCd, AhciError, AhciPort};
use disk::{
    Access, Backend, Disk, DiskOptions, Engine, Event, Geometry, Patience, QueueCounters, QueueError,
    Request, Sectors, WriteCache,
};
use memory::{Gpa, GpaRange, Ram};
use tempfile::NamedTempFile;
use vmm_sys_util::eventfd::EventFd;

const LISTS: Gpa = Gpa(0x10_0000);
const DATA: u64 = 0x40_0000;
const BLOCKS: usize = 300;

const TEST_UNIT_READY: [u8; 1] = [0x00];
const EJECT: [u8; 5] = [0x1b, 0, 0, 0, 2];

/// An image whose every byte says in which block it lies. `None` where the file system of the tests can only be
/// read in blocks larger than a CD's.
fn disc(seed: u8) -> Option<Arc<Disk>> {
    let mut file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for block in 0..BLOCKS {
        file.write_all(&[seed ^ block as u8; 2048]).unwrap();
    }
    // Half a block, which is not part of the disc.
    file.write_all(&[0xff; 1024]).unwrap();
    file.flush().unwrap();
    let disk = Disk::open(&DiskOptions::new(file.path()).read_only()).unwrap();
    (disk.geometry().logical_block <= 2048).then(|| Arc::new(disk))
}

fn guest(disc: Option<Arc<Disk>>) -> Guest {
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 8 << 20).unwrap()]).unwrap());
    Guest::new(vec![AhciPort::Empty, AhciPort::Cd(AhciCd::new("cd0", disc))], ram)
}

fn start(guest: &Guest) -> Port<'_> {
    let port = guest.port(1, LISTS);
    port.start();
    port
}

fn bytes(guest: &Guest, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    guest.ram.read(Gpa(DATA), &mut bytes).unwrap();
    bytes
}

/// The sense key is in the error register.
fn key(outcome: Result<u32, Failed>) -> u8 {
    outcome.unwrap_err().error >> 4
}

/// Key, code and qualifier of the last failure.
fn sense(guest: &Guest, port: &Port<'_>) -> [u8; 3] {
    assert_eq!(port.packet(&[0x03, 0, 0, 0, 18], &[(DATA, 18)]), Ok(18));
    let data = bytes(guest, 18);
    [data[2], data[12], data[13]]
}

fn read(first: u32, count: u16) -> Vec<u8> {
    [&[0x28, 0][..], &first.to_be_bytes(), &[0], &count.to_be_bytes()].concat()
}

#[test]
fn an_image_is_read_as_a_disc() {
    let Some(disc) = disc(0) else { return };
    let guest = guest(Some(disc.clone()));
    let port = start(&guest);
    assert_eq!(port.read(reg::SIG), 0xeb14_0101);
    let failed = port.run(Ata::new(0xec), &[(DATA, 512)]).unwrap_err();
    assert_eq!(failed.error, 4);
    assert_eq!(port.run(Ata::new(0xa1), &[(DATA, 512)]), Ok(512));
    assert_eq!(bytes(&guest, 2), [0xc0, 0x85]);
    assert_eq!(key(port.packet(&TEST_UNIT_READY, &[])), 6, "a disc was put in");
    assert_eq!(sense(&guest, &port), [6, 0x28, 0]);
    assert_eq!(port.packet(&TEST_UNIT_READY, &[]), Ok(0));
    assert_eq!(port.packet(&[0x25], &[(DATA, 8)]), Ok(8));
    assert_eq!(bytes(&guest, 8), [&(BLOCKS as u32 - 1).to_be_bytes()[..], &2048u32.to_be_bytes()].concat());
    assert_eq!(port.packet(&read(7, 3), &[(DATA, 1000), (DATA + 1000, 3 * 2048 - 1000)]), Ok(6144));
    let data = bytes(&guest, 6144);
    assert!((0..3).all(|n| data[n * 2048..][..2048].iter().all(|byte| usize::from(*byte) == 7 + n)));
    assert_eq!(key(port.packet(&read(BLOCKS as u32 - 1, 2), &[(DATA, 4096)])), 5);
    assert_eq!(sense(&guest, &port), [5, 0x21, 0]);
    assert_eq!(key(port.packet(&[0xb6], &[])), 5, "unknown");
    let frame: [u8; 20] = port.received(0x40);
    assert_eq!((frame[0], frame[12]), (0x34, 3), "the interrupt reason is: status");
    assert_eq!(disc.counters().bytes_read, 6144);
}

#[test]
fn discs_come_and_go_by_the_guest_and_by_the_host() {
    let (Some(first), Some(second)) = (disc(0), disc(0x80)) else { return };
    let guest = guest(None);
    let (port, ahci) = (start(&guest), &guest.ahci);
    assert_eq!(key(port.packet(&TEST_UNIT_READY, &[])), 2);
    assert_eq!(sense(&guest, &port), [2, 0x3a, 0]);
    ahci.insert_disc(1, first.clone(), false).unwrap();
    // The drive notices between commands.
    until("the new disc", || port.packet(&TEST_UNIT_READY, &[]).is_err_and(|failed| failed.error >> 4 == 6));
    port.packet(&read(1, 1), &[(DATA, 2048)]).unwrap();
    assert_eq!(bytes(&guest, 1), [1]);
    // Locked: the guest is asked, unless force is used.
    port.packet(&[0x1e, 0, 0, 0, 1], &[]).unwrap();
    assert!(matches!(ahci.eject_disc(1, false), Err(AhciError::TrayLocked)));
    let event = |expected: [u8; 2]| {
        until("an event", || {
            port.packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], &[(DATA, 8)]).unwrap();
            bytes(&guest, 6)[4..] == expected
        });
    };
    event([1, 2]);
    assert!(port.packet(&EJECT, &[]).is_err());
    ahci.insert_disc(1, second.clone(), true).unwrap();
    event([2, 2]);
    assert_eq!(key(port.packet(&read(1, 1), &[(DATA, 2048)])), 6);
    port.packet(&read(1, 1), &[(DATA, 2048)]).unwrap();
    assert_eq!(bytes(&guest, 1), [0x81]);
    assert_eq!(Arc::strong_count(&first), 1, "the first disc is free");
    // The guest ejects.
    assert!(ahci.disc(1).unwrap().is_some());
    port.packet(&EJECT, &[]).unwrap();
    assert!(ahci.disc(1).unwrap().is_none());
    assert_eq!(key(port.packet(&read(1, 1), &[(DATA, 2048)])), 2);
    until("the second disc is free", || Arc::strong_count(&second) == 1);
    event([3, 1]);
    // The host ejects.
    ahci.insert_disc(1, first.clone(), false).unwrap();
    event([2, 2]);
    ahci.eject_disc(1, false).unwrap();
    event([3, 1]);
    assert!(ahci.insert_disc(0, first, false).unwrap_err().to_string().contains("no CD drive on port 0"));
    let reports = guest.reports();
    assert!(reports.iter().all(|report| report.contains("the guest has ejected")), "{reports:?}");
    assert_eq!(reports.len(), 1, "{reports:?}");
}

#[test]
fn a_reset_unlocks_the_tray_and_keeps_the_disc() {
    let Some(disc) = disc(0) else { return };
    let guest = guest(Some(disc));
    let port = start(&guest);
    assert_eq!(key(port.packet(&TEST_UNIT_READY, &[])), 6);
    port.packet(&[0x1e, 0, 0, 0, 1], &[]).unwrap();
    port.software_reset();
    assert_eq!(port.received::<20>(0x40)[4..7], [1, 0x14, 0xeb]);
    port.packet(&read(0, 1), &[(DATA, 2048)]).unwrap();
    guest.ahci.eject_disc(1, false).unwrap();
    // The machine's reset as well, and with a disc that changes meanwhile.
    assert!(guest.bus.reset().is_empty());
    guest.enable();
    port.set_up();
    port.start();
    assert_eq!(key(port.packet(&TEST_UNIT_READY, &[])), 2);
}

#[test]
fn replies_larger_than_their_room_are_cut() {
    let guest = guest(None);
    let port = start(&guest);
    guest.ram.write(Gpa(DATA), &[0xaa; 64]).unwrap();
    port.prepare(
        0,
        &[0x27, 0x80, 0xa0, 1, 0, 0, 0, 0x40],
        &[0x12, 0, 0, 0, 36, 0, 0, 0, 0, 0, 0, 0],
        &[(DATA, 8)],
    );
    port.write(reg::CI, 1);
    port.wait(1).unwrap();
    assert_eq!(bytes(&guest, 9), [5, 0x80, 5, 2, 31, 0, 0, 0, 0xaa]);
    assert_eq!(port.read(reg::IS) & 1 << 24, 1 << 24);
    port.write(reg::IS, u32::MAX);
    assert_eq!(port.packet(&[0x12, 0, 0, 0, 36], &[(DATA, 96)]), Ok(36));
    assert_eq!(&bytes(&guest, 27)[8..], b"SKEP    skep CD-ROM");
}

/// A disc whose queues cannot start, or break when they are used.
struct Broken {
    geometry: Geometry,
    starts: bool,
}

impl Backend for Broken {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn engine(&self, _: u16, _: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        Ok(Box::new(BrokenEngine { starts: self.starts, broken: false }))
    }
}

struct BrokenEngine {
    starts: bool,
    broken: bool,
}

impl Engine for BrokenEngine {
    fn start(&mut self) -> io::Result<()> {
        if self.starts { Ok(()) } else { Err(io::Error::from_raw_os_error(12)) }
    }

    fn watch(&mut self, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self, _: Request) {
        self.broken = true;
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::from_raw_os_error(5));
        }
        if patience == Patience::Wait {
            std::thread::sleep(std::time::Duration::from_micros(200));
            events.push(Event::Wake);
        }
        Ok(())
    }
}

fn broken(starts: bool) -> Arc<Disk> {
    let geometry = Geometry {
        capacity: Sectors(4 * BLOCKS as u64),
        logical_block: 512,
        physical_block: 512,
        alignment_offset: 0,
        minimum_io: 512,
        optimal_io: 0,
        access: Access::ReadOnly,
        write_cache: WriteCache::WriteThrough,
        fua: false,
        rotational: true,
        discard: None,
        write_zeroes: None,
        model: None,
        serial: None,
    };
    Arc::new(Disk::new("broken", Box::new(Broken { geometry, starts })))
}

#[test]
fn a_drive_that_has_failed_takes_no_disc_any_more_and_says_so() {
    let guest = guest(Some(broken(true)));
    let port = start(&guest);
    assert_eq!(key(port.packet(&TEST_UNIT_READY, &[])), 6, "a disc was put in");
    port.issue_packet(&read(0, 1), &[(DATA, 2048)]);
    until("the end of the device", || port.read(reg::SSTS) == 0);
    assert!(guest.ahci.disc(1).unwrap().is_none());
    for done in [guest.ahci.insert_disc(1, broken(true), true), guest.ahci.eject_disc(1, true)] {
        let why = done.unwrap_err();
        assert!(matches!(why, AhciError::DriveFailed) && why.to_string().contains("Restart the VM"), "{why}");
    }
}

#[test]
fn a_disc_that_cannot_be_used_is_not_in_the_drive_and_the_next_one_is() {
    let guest = guest(None);
    let port = start(&guest);
    guest.ahci.insert_disc(1, broken(false), false).unwrap();
    until("the disc to be refused", || guest.ahci.disc(1).unwrap().is_none());
    assert_eq!(key(port.packet(&TEST_UNIT_READY, &[])), 2, "no disc");
    assert!(guest.reports()[0].contains("disk broken"), "{:?}", guest.reports());
    guest.ahci.insert_disc(1, broken(true), false).unwrap();
    assert_eq!(key(port.packet(&TEST_UNIT_READY, &[])), 6, "a disc was put in");
    assert_eq!(port.packet(&TEST_UNIT_READY, &[]), Ok(0));
    assert!(guest.ahci.disc(1).unwrap().is_some());
}
