//! The AHCI controller with disks, driven by a guest over a file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use devices::ahci::driver::{Ata, Failed, Guest, Port, reg, until};
use devices::ahci::{AhciDisk, AhciPort, AtaFirmware, AtaModel, AtaSerial};
use disk::{Disk, DiskOptions};
use memory::{Gpa, GpaRange, Ram};
use tempfile::TempDir;

const SIZE: u64 = 8 << 20;
const LISTS: Gpa = Gpa(0x10_0000);
const DATA: u64 = 0x40_0000;

const READ_DMA_EXT: u8 = 0x25;
const WRITE_DMA_EXT: u8 = 0x35;
const READ_QUEUED: u8 = 0x60;
const WRITE_QUEUED: u8 = 0x61;

const IS_D2H: u32 = 1;
const IS_PIO: u32 = 1 << 1;
const IS_SDB: u32 = 1 << 3;
const IS_CONNECT: u32 = 1 << 6;
const IS_PHY: u32 = 1 << 22;
const IS_OVERFLOW: u32 = 1 << 24;
const IS_HOST_BUS: u32 = 1 << 29;
const IS_TASK_FILE: u32 = 1 << 30;

/// A disk over a file.
struct Backing {
    disk: Arc<Disk>,
    file: File,
    _folder: TempDir,
}

impl Backing {
    fn new(options: impl FnOnce(DiskOptions) -> DiskOptions) -> Backing {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("disk.raw");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(SIZE).unwrap();
        let disk = Arc::new(Disk::open(&options(DiskOptions::new(path))).unwrap());
        Backing { disk, file, _folder: folder }
    }

    fn on_disk(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }

    /// Logical blocks in so many bytes.
    fn blocks(&self, bytes: u64) -> u64 {
        bytes / u64::from(self.disk.geometry().logical_block)
    }
}

/// A guest with a disk on the first of two ports.
struct Setup {
    guest: Guest,
    backing: Backing,
}

impl Setup {
    fn new() -> Setup {
        Setup::over(Backing::new(|options| options))
    }

    fn over(backing: Backing) -> Setup {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 16 << 20).unwrap()]).unwrap());
        let disk = AhciDisk {
            serial: Some(AtaSerial::new("SERIAL-1").unwrap()),
            model: Some(AtaModel::new("A model").unwrap()),
            firmware: Some(AtaFirmware::new("FW7").unwrap()),
            ..AhciDisk::new("disk0", backing.disk.clone())
        };
        Setup { guest: Guest::new(vec![AhciPort::Disk(disk), AhciPort::Empty], ram), backing }
    }

    fn start(&self) -> Port<'_> {
        let port = self.guest.port(0, LISTS);
        port.start();
        port
    }

    fn fill(&self, gpa: u64, len: usize, seed: u64) -> Vec<u8> {
        let mix = |i: u64| ((i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        let bytes: Vec<u8> = (0..len as u64).map(mix).collect();
        self.guest.ram.write(Gpa(gpa), &bytes).unwrap();
        bytes
    }

    fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.guest.ram.read(Gpa(gpa), &mut bytes).unwrap();
        bytes
    }

    fn word(&self, gpa: u64, n: u64) -> u16 {
        self.guest.ram.read_obj::<u16>(Gpa(gpa + 2 * n)).unwrap()
    }

    /// The interrupt pin.
    fn pin(&self) -> bool {
        self.guest.services.lines()[0].asserted()
    }
}

fn refused(error: u8) -> impl Fn(Failed) -> bool {
    move |failed| failed.interrupts & IS_TASK_FILE != 0 && failed.status & 1 != 0 && failed.error == error
}

#[test]
fn the_controller_is_that_of_an_ich9() {
    let setup = Setup::new();
    let guest = &setup.guest;
    assert_eq!(guest.config_read(0), 0x2922_8086);
    assert_eq!(guest.config_read(8) >> 8, 0x01_0601);
    assert_eq!(guest.read(0x00) & 0xc000_1f1f, 0xc000_1f01, "64-bit, NCQ, 32 slots, 2 ports");
    assert_eq!(guest.read(0x0c), 0b11);
    assert_eq!(guest.read(0x10), 0x0001_0301);
    let (disk, empty) = (guest.port(0, LISTS), guest.port(1, Gpa(0x20_0000)));
    assert_eq!((disk.read(reg::SSTS), disk.read(reg::SIG)), (0x133, 0x101));
    assert_eq!((empty.read(reg::SSTS), empty.read(reg::TFD)), (0, 0x7f));
    empty.start();
    empty.issue(3, Ata::new(0xec), &[]);
    empty.stop();
}

#[test]
fn identify_data_comes_by_pio_and_is_true_to_the_disk() {
    let setup = Setup::new();
    let port = setup.start();
    assert_eq!(port.run(Ata::new(0xec), &[(DATA, 512)]), Ok(512));
    let text = |from: u64, to: u64| {
        let bytes: Vec<u8> = (from..to).flat_map(|n| setup.word(DATA, n).to_be_bytes()).collect();
        String::from_utf8(bytes).unwrap().trim_end().to_owned()
    };
    assert_eq!(
        (text(10, 20), text(23, 27), text(27, 47)),
        ("SERIAL-1".into(), "FW7".into(), "A model".into())
    );
    let blocks = u64::from(setup.word(DATA, 100)) | u64::from(setup.word(DATA, 101)) << 16;
    assert_eq!(blocks, setup.backing.blocks(SIZE));
    let frame: [u8; 20] = port.received(0x20);
    assert_eq!((frame[0], frame[15], &frame[16..18]), (0x5f, 0x50, &[0, 2][..]), "a PIO setup frame");
    port.issue(0, Ata::new(0xec), &[(DATA, 512)]);
    port.wait(1).unwrap();
    assert_eq!(port.read(reg::IS) & (IS_PIO | IS_D2H), IS_PIO);
    assert!(setup.pin());
    port.write(reg::IS, u32::MAX);
    assert!(setup.pin(), "until the controller's own status is cleared");
    setup.guest.write(8, 1);
    assert!(!setup.pin());
}

#[test]
fn data_goes_to_the_disk_and_back_without_a_copy() {
    let setup = Setup::new();
    let port = setup.start();
    for len in [0x1000u32, 0x10_0000, 0x3000] {
        let data = setup.fill(DATA, len as usize, u64::from(len));
        let (lba, count) = (setup.backing.blocks(64 * 512), setup.backing.blocks(len.into()) as u16);
        assert_eq!(port.run(Ata::at(WRITE_DMA_EXT, lba, count), &[(DATA, len)]), Ok(len));
        assert_eq!(port.run(Ata::new(0xea), &[]), Ok(0));
        assert!(setup.backing.on_disk(64, data.len()) == data);
        let room = [(DATA + 0x20_0000, 0x800), (DATA + 0x30_0800, len - 0x800 + 0x200)];
        assert_eq!(port.run(Ata::at(READ_DMA_EXT, lba, count), &room), Ok(len));
        let back =
            [setup.bytes(DATA + 0x20_0000, 0x800), setup.bytes(DATA + 0x30_0800, len as usize - 0x800)];
        assert!(back.concat() == data);
        port.issue_queued(9, Ata::queued(READ_QUEUED, lba, count, 9), &[(DATA + 0x20_0000, len)]);
        port.wait(1 << 9).unwrap();
        assert!(setup.bytes(DATA + 0x20_0000, len as usize) == data);
    }
    let counters = setup.backing.disk.counters();
    assert_eq!((counters.bytes_bounced(), counters.flushes), (0, 3));
    assert_eq!(counters.bytes_direct, 3 * (0x1000 + 0x10_0000 + 0x3000));
}

#[test]
fn all_slots_are_under_way_at_once_and_ordinary_commands_wait_for_them() {
    let setup = Setup::new();
    let port = setup.start();
    let blocks = setup.backing.blocks(0x1000);
    for round in 0..20u64 {
        let at = |slot: u8| DATA + 0x4000 * u64::from(slot);
        let place = |slot: u8| blocks * (u64::from(slot) * 7 % 32 + 32 * (round % 4));
        let written: Vec<Vec<u8>> =
            (0..32).map(|slot| setup.fill(at(slot), 0x1000, round * 32 + u64::from(slot))).collect();
        for slot in 0..31 {
            let command = Ata::queued(WRITE_QUEUED, place(slot), blocks as u16, slot);
            port.issue_queued(slot, command, &[(at(slot), 0x800), (at(slot) + 0x800, 0x800)]);
        }
        port.issue(31, Ata::at(WRITE_DMA_EXT, place(31), blocks as u16), &[(at(31), 0x1000)]);
        port.wait(u32::MAX).unwrap();
        for slot in 0..32 {
            let sector = place(slot) * (8 / blocks);
            assert!(setup.backing.on_disk(sector, 0x1000) == written[usize::from(slot)]);
            let command = Ata::queued(READ_QUEUED, place(slot), blocks as u16, slot);
            port.issue_queued(slot, command, &[(at(slot) + 0x2000, 0x1000)]);
        }
        port.wait(u32::MAX).unwrap();
        assert!(port.read(reg::IS) & IS_SDB != 0);
        for slot in 0..32 {
            assert!(setup.bytes(at(slot) + 0x2000, 0x1000) == written[usize::from(slot)], "slot {slot}");
        }
    }
    assert!(setup.guest.reports().is_empty());
}

#[test]
fn what_the_disk_cannot_do_is_answered_by_kind_and_no_event() {
    let setup = Setup::new();
    let port = setup.start();
    let end = setup.backing.blocks(SIZE);
    let block = setup.backing.disk.geometry().logical_block;
    let piece = [(DATA, block)];
    assert!(port.run(Ata::at(READ_DMA_EXT, end, 1), &piece).is_err_and(refused(0x10)), "no such address");
    assert!(port.run(Ata::at(WRITE_DMA_EXT, u64::MAX >> 16, 1), &piece).is_err_and(refused(0x10)));
    assert!(port.run(Ata::at(0x40, end, 1), &[]).is_err_and(refused(0x10)), "verify");
    assert!(port.run(Ata::new(0xf7), &[]).is_err_and(refused(0x04)), "unknown");
    assert!(port.run(Ata::new(0xa1), &[(DATA, 512)]).is_err_and(refused(0x04)), "no packet device");
    assert_eq!(port.run(Ata::at(READ_DMA_EXT, end - 1, 1), &piece), Ok(block));
    assert!(setup.guest.reports().is_empty(), "a guest's own mistakes are no events");
}

#[test]
fn memory_that_is_not_there_is_a_host_bus_error_and_too_little_an_overflow() {
    let setup = Setup::new();
    let port = setup.start();
    let block = setup.backing.disk.geometry().logical_block;
    let read = Ata::at(READ_DMA_EXT, 0, 1);
    let failed = port.run(read, &[(0xffff_ffff_0000, block)]).unwrap_err();
    assert_eq!(failed.interrupts & IS_HOST_BUS, IS_HOST_BUS);
    let failed = port.run(read, &[(DATA, block / 2)]).unwrap_err();
    assert_eq!(failed.interrupts & (IS_OVERFLOW | IS_TASK_FILE), IS_OVERFLOW | IS_TASK_FILE);
    assert!(port.run(read, &[]).is_err());
    // A list of commands, an area for frames and a table outside RAM.
    port.stop();
    port.write(reg::CLB + 4, 0x100);
    port.start();
    port.write(reg::CI, 1);
    assert_eq!(port.wait(1).unwrap_err().interrupts & IS_HOST_BUS, IS_HOST_BUS);
    port.stop();
    port.set_up();
    port.write(reg::FB + 4, 0x100);
    port.start();
    port.issue(0, read, &[(DATA, block)]);
    until("a host bus error", || port.read(reg::IS) & IS_HOST_BUS != 0);
    port.stop();
    port.set_up();
    port.start();
    assert_eq!(port.run(read, &[(DATA, block)]), Ok(block));
    // A frame that is none.
    port.prepare(0, &[0x46, 0x80, 0xec], &[], &[(DATA, 512)]);
    port.write(reg::CI, 1);
    assert_eq!(port.wait(1).unwrap_err().interrupts & 1 << 27, 1 << 27);
    port.recover();
    assert_eq!(port.run(read, &[(DATA, block)]), Ok(block));
}

#[test]
fn a_failing_queued_command_is_reported_and_in_the_log_and_the_others_can_be_repeated() {
    let setup = Setup::new();
    let port = setup.start();
    setup.backing.file.set_len(SIZE / 2).unwrap();
    let blocks = setup.backing.blocks(0x1000);
    let bad = setup.backing.blocks(SIZE) - blocks;
    for round in 0..3 {
        for slot in 0..8u8 {
            let place = if slot == 5 { bad } else { blocks * u64::from(slot) };
            let command = Ata::queued(READ_QUEUED, place, blocks as u16, slot);
            port.issue_queued(slot, command, &[(DATA + 0x1000 * u64::from(slot), 0x1000)]);
        }
        // Commands that come after the failure are left alone.
        let failed = port.wait(0xff).unwrap_err();
        assert_eq!((failed.status & 1, failed.error), (1, 0x10), "round {round}");
        assert!(port.read(reg::SACT) & 1 << 5 != 0);
        port.recover();
        assert_eq!(port.read(reg::SACT), 0);
        assert_eq!(port.run(Ata::at(0x2f, 0x10, 1), &[(DATA, 512)]), Ok(512));
        let log = setup.bytes(DATA, 512);
        assert_eq!((log[0], log[2] & 1, log[3]), (5, 1, 0x10));
        assert_eq!(log[4..7], bad.to_le_bytes()[..3]);
        for slot in [0u8, 7] {
            let command = Ata::queued(READ_QUEUED, 0, blocks as u16, slot);
            port.issue_queued(slot, command, &[(DATA, 0x1000)]);
        }
        port.wait(0xff).unwrap();
    }
}

#[test]
fn trims_discard_and_wrong_ones_discard_nothing() {
    let setup = Setup::new();
    let port = setup.start();
    let data = setup.fill(DATA, 0x8000, 1);
    let blocks = setup.backing.blocks(0x1000);
    port.run(Ata::at(WRITE_DMA_EXT, 0, (8 * blocks) as u16), &[(DATA, 0x8000)]).unwrap();
    let trim = |ranges: &[(u64, u64)]| {
        setup.guest.ram.zero(Gpa(DATA), 512).unwrap();
        for (n, (first, count)) in (0u64..).zip(ranges) {
            setup.guest.ram.write_obj(Gpa(DATA + 8 * n), &(first | count << 48)).unwrap();
        }
        port.run(Ata { features: 1, ..Ata::at(0x06, 0, 1) }, &[(DATA, 512)])
    };
    assert!(trim(&[(blocks, blocks), (setup.backing.blocks(SIZE), 1)]).is_err_and(refused(0x10)));
    assert!(setup.backing.on_disk(0, 0x8000) == data);
    assert_eq!(trim(&[(blocks, blocks), (3 * blocks, blocks), (4 * blocks, blocks)]), Ok(512));
    let after = setup.backing.on_disk(0, 0x8000);
    for block in 0..8 {
        let here = &after[block * 0x1000..][..0x1000];
        if matches!(block, 1 | 3 | 4) {
            assert!(here.iter().all(|byte| *byte == 0), "block {block}");
        } else {
            assert!(here == &data[block * 0x1000..][..0x1000], "block {block}");
        }
    }
    assert_eq!(setup.backing.disk.counters().discards, 2, "ranges that follow each other become one");
    assert!(port.run(Ata { features: 1, ..Ata::at(0x06, 0, 9) }, &[(DATA, 9 * 512)]).is_err());
}

#[test]
fn queued_trims_discard_beside_other_queued_commands_and_their_failures_are_in_the_log() {
    let setup = Setup::new();
    let port = setup.start();
    let data = setup.fill(DATA, 0x8000, 1);
    let blocks = setup.backing.blocks(0x1000);
    port.run(Ata::at(WRITE_DMA_EXT, 0, (8 * blocks) as u16), &[(DATA, 0x8000)]).unwrap();
    let trim = |slot: u8, first: u64| {
        let at = DATA + 0x1_0000 + 512 * u64::from(slot);
        setup.guest.ram.zero(Gpa(at), 512).unwrap();
        setup.guest.ram.write_obj(Gpa(at), &(first | blocks << 48)).unwrap();
        let ata = Ata { auxiliary: 1, ..Ata::queued(0x64, 0, 1, slot) };
        port.issue_queued(slot, ata, &[(at, 512)]);
    };
    trim(3, blocks);
    port.issue_queued(
        4,
        Ata::queued(READ_QUEUED, 7 * blocks, blocks as u16, 4),
        &[(DATA + 0x2_0000, 0x1000)],
    );
    trim(5, 2 * blocks);
    port.wait(0b11_1000).unwrap();
    port.write(reg::IS, u32::MAX);
    let after = setup.backing.on_disk(0, 0x8000);
    assert!(after[0x1000..0x3000].iter().all(|byte| *byte == 0));
    assert!(after[..0x1000] == data[..0x1000] && after[0x3000..] == data[0x3000..]);
    trim(6, setup.backing.blocks(SIZE));
    let failed = port.wait(1 << 6).unwrap_err();
    assert_eq!((failed.status & 1, failed.error), (1, 0x10));
    port.recover();
    port.run(Ata::at(0x2f, 0x10, 1), &[(DATA, 512)]).unwrap();
    assert_eq!(setup.guest.ram.read_obj::<u8>(Gpa(DATA)).unwrap(), 6, "the log names the command");
    // Another subcommand, and one without the bit that says what to do.
    for (count, auxiliary) in [(0x100, 1), (0, 0)] {
        let ata = Ata { auxiliary, ..Ata::queued(0x64, 0, 1, 0) };
        port.issue_queued(0, Ata { count, ..ata }, &[(DATA, 512)]);
        assert_eq!(port.wait(1).unwrap_err().error, 4);
        port.recover();
    }
}

#[test]
fn a_disk_that_has_grown_is_identified_as_large_as_it_is_now() {
    let setup = Setup::new();
    let port = setup.start();
    let sectors = || {
        port.run(Ata::new(0xec), &[(DATA, 512)]).unwrap();
        setup.guest.ram.read_obj::<u64>(Gpa(DATA + 200)).unwrap()
    };
    assert_eq!(sectors(), setup.backing.blocks(SIZE));
    setup.backing.file.set_len(2 * SIZE).unwrap();
    setup.backing.disk.look_again().unwrap();
    assert_eq!(sectors(), setup.backing.blocks(2 * SIZE));
    let last =
        Ata::at(WRITE_DMA_EXT, setup.backing.blocks(2 * SIZE - 0x1000), setup.backing.blocks(0x1000) as u16);
    assert_eq!(port.run(last, &[(DATA, 0x1000)]), Ok(0x1000));
}

#[test]
fn a_read_only_disk_refuses_writes_and_trims() {
    let setup = Setup::over(Backing::new(DiskOptions::read_only));
    let port = setup.start();
    let block = setup.backing.disk.geometry().logical_block;
    assert!(port.run(Ata::at(WRITE_DMA_EXT, 0, 1), &[(DATA, block)]).is_err_and(refused(0x04)));
    assert!(port.run(Ata { features: 1, ..Ata::at(0x06, 0, 1) }, &[(DATA, 512)]).is_err());
    port.run(Ata::new(0xec), &[(DATA, 512)]).unwrap();
    assert_eq!(setup.word(DATA, 169), 0);
    port.run(Ata::at(READ_DMA_EXT, 0, 1), &[(DATA, block)]).unwrap();
}

#[test]
fn a_thousand_resets_of_all_kinds_under_load_leave_a_working_port() {
    let setup = Setup::new();
    let port = setup.start();
    let blocks = setup.backing.blocks(0x2_0000);
    for round in 0..1000u32 {
        for slot in 0..24u8 {
            let command = if slot % 3 == 0 { WRITE_QUEUED } else { READ_QUEUED };
            let command = Ata::queued(command, blocks * u64::from(slot), blocks as u16, slot);
            port.issue_queued(slot, command, &[(DATA + 0x2_0000 * u64::from(slot), 0x2_0000)]);
        }
        match round % 5 {
            0 => port.stop(),
            1 => {
                port.reset_link();
                port.stop();
            }
            2 => {
                setup.guest.reset_controller();
                assert_eq!((port.read(reg::CI), port.read(reg::SACT), port.read(reg::CMD) & 1), (0, 0, 0));
            }
            3 => {
                assert!(setup.guest.bus.reset().is_empty());
                setup.guest.enable();
            }
            _ => {
                // Stopped and started without waiting.
                port.write(reg::CMD, 1 << 4);
                port.write(reg::CMD, 1 << 4 | 1);
                port.software_reset();
                port.stop();
            }
        }
        assert_eq!(port.read(reg::CMD) & 1 << 15, 0);
        // What was under way has ended: this memory is the driver's again.
        let data = setup.fill(DATA, 0x1000, round.into());
        assert!(setup.bytes(DATA, 0x1000) == data);
        port.set_up();
        port.start();
        let count = setup.backing.blocks(0x1000) as u16;
        assert_eq!(port.run(Ata::at(WRITE_DMA_EXT, 0, count), &[(DATA, 0x1000)]), Ok(0x1000));
        assert!(setup.backing.on_disk(0, 0x1000) == data);
    }
    assert!(setup.guest.reports().is_empty(), "{:?}", setup.guest.reports());
}

#[test]
fn a_software_reset_ends_with_the_signature_and_default_settings() {
    let setup = Setup::new();
    let port = setup.start();
    port.run(Ata { features: 0x82, ..Ata::new(0xef) }, &[]).unwrap();
    port.run(Ata::new(0xec), &[(DATA, 512)]).unwrap();
    assert_eq!(setup.word(DATA, 85) & 0x20, 0, "the write cache is off");
    port.software_reset();
    let frame: [u8; 20] = port.received(0x40);
    assert_eq!((frame[0], frame[2], frame[3], frame[4], frame[12]), (0x34, 0x50, 1, 1, 1));
    port.run(Ata::new(0xec), &[(DATA, 512)]).unwrap();
    assert_eq!(setup.word(DATA, 85) & 0x20, 0x20);
}

#[test]
fn a_device_comes_and_goes_and_the_guest_is_told() {
    let setup = Setup::new();
    let port = setup.start();
    let other = Backing::new(|options| options);
    let new = || AhciDisk::new("disk1", other.disk.clone());
    assert!(setup.guest.ahci.plug_disk(0, new()).unwrap_err().to_string().contains("already"));
    assert!(setup.guest.ahci.plug_disk(2, new()).unwrap_err().to_string().contains("no port 2"));
    assert!(setup.guest.ahci.unplug(1).is_err());
    let blocks = setup.backing.blocks(0x1000);
    for slot in 0..8u8 {
        let command = Ata::queued(READ_QUEUED, blocks * u64::from(slot), blocks as u16, slot);
        port.issue_queued(slot, command, &[(DATA + 0x1000 * u64::from(slot), 0x1000)]);
    }
    setup.guest.ahci.unplug(0).unwrap();
    assert_eq!((port.read(reg::SSTS), port.read(reg::TFD)), (0, 0x7f));
    assert_eq!(port.read(reg::IS) & IS_PHY, IS_PHY);
    assert!(setup.pin());
    port.stop();
    port.write(reg::SERR, u32::MAX);
    port.write(reg::IS, u32::MAX);
    setup.guest.write(8, u32::MAX);
    assert!(!setup.pin());
    assert_eq!(Arc::strong_count(&setup.backing.disk), 1, "nothing of the model holds the disk");
    setup.guest.ahci.plug_disk(0, new()).unwrap();
    assert!(setup.pin());
    assert_eq!(port.read(reg::IS) & (IS_PHY | IS_CONNECT), IS_PHY | IS_CONNECT);
    port.reset_link();
    port.start();
    let data = setup.fill(DATA, 0x1000, 5);
    port.run(Ata::at(WRITE_DMA_EXT, 0, blocks as u16), &[(DATA, 0x1000)]).unwrap();
    assert!(other.on_disk(0, 0x1000) == data);
}

#[test]
fn messages_are_sent_once_for_each_event_and_not_without_bus_mastering() {
    let setup = Setup::new();
    let (guest, port) = (&setup.guest, setup.start());
    guest.use_msi();
    assert!(guest.services.messages()[0].is_some());
    guest.services.raised(0);
    port.issue(0, Ata::new(0xe7), &[]);
    port.wait(1).unwrap();
    until("a message", || guest.services.raised(0) == 1);
    assert!(!setup.pin());
    // A second event before the first is cleared: seen when the controller's status is.
    port.issue(0, Ata::new(0xec), &[(DATA, 512)]);
    port.wait(1).unwrap();
    until("the frame's interrupt", || port.read(reg::IS) & IS_PIO != 0);
    assert_eq!(guest.services.raised(0), 0);
    port.write(reg::IS, IS_D2H);
    guest.write(8, 1);
    assert_eq!(guest.services.raised(0), 1);
    port.write(reg::IS, u32::MAX);
    guest.write(8, 1);
    assert_eq!((guest.services.raised(0), guest.read(8)), (0, 0));
    // Without bus mastering nothing is read from memory, and nothing sent.
    guest.config_write(4, &[2, 0]);
    port.issue(0, Ata::new(0xe7), &[]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(port.read(reg::CI), 1);
    guest.config_write(4, &[6, 0]);
    port.wait(1).unwrap();
    until("a message", || guest.services.raised(0) == 1);
    // Back to the line.
    guest.config_write(Guest::MSI + 2, &[0x80, 0]);
    assert!(setup.pin());
    guest.config_write(5, &[4]);
    assert!(!setup.pin(), "the pin is disabled");
    assert_eq!(guest.config_read(4) & 1 << 19, 1 << 19);
}

#[test]
fn smart_and_power_commands_answer_through_the_port() {
    let setup = Setup::new();
    let port = setup.start();
    let smart = |features| Ata { features, lba: 0xc2_4f00, ..Ata::new(0xb0) };
    assert_eq!(port.run(smart(0xd0), &[(DATA, 512)]), Ok(512));
    assert_eq!(setup.bytes(DATA, 2), [0x10, 0]);
    port.run(smart(0xda), &[]).unwrap();
    let frame: [u8; 20] = port.received(0x40);
    assert_eq!(frame[4..7], [0, 0x4f, 0xc2], "healthy");
    port.run(Ata::new(0xe0), &[]).unwrap();
    port.run(Ata::new(0xe5), &[]).unwrap();
    assert_eq!(port.received::<20>(0x40)[12], 0, "in standby");
    assert_eq!(setup.backing.disk.counters().flushes, 1);
}

#[test]
fn a_verify_leaves_the_guests_memory_alone_and_reads_after_it_reach_it() {
    let setup = Setup::new();
    let port = setup.start();
    let (len, count) = (0x4000, setup.backing.blocks(0x4000) as u16);
    let written = setup.fill(DATA, len, 7);
    assert_eq!(port.run(Ata::at(WRITE_DMA_EXT, 0, count), &[(DATA, len as u32)]), Ok(len as u32));
    setup.guest.ram.zero(Gpa(DATA), len as u64).unwrap();
    for _ in 0..3 {
        port.run(Ata::at(0x42, 0, count), &[]).unwrap();
        assert!(setup.bytes(DATA, len) == vec![0; len]);
    }
    assert_eq!(port.run(Ata::at(READ_DMA_EXT, 0, count), &[(DATA, len as u32)]), Ok(len as u32));
    assert!(setup.bytes(DATA, len) == written);
    assert_eq!(setup.backing.disk.counters().reads, 4);
}
