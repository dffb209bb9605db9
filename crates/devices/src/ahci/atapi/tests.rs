use super::*;
use crate::ahci::ata::tests::{fis, geometry};
use crate::ahci::text::{AtaFirmware, AtaModel, AtaSerial};

const BLOCKS: u32 = (1 << 20) / 4;

fn drive() -> (CdDrive, Arc<Tray>) {
    let names = Names {
        serial: AtaSerial::new("CD-1").unwrap(),
        firmware: AtaFirmware::new("1.0").unwrap(),
        model: AtaModel::new("a drive").unwrap(),
    };
    let tray = Arc::new(Tray::default());
    (CdDrive::new(names, tray.clone()), tray)
}

fn with_disc() -> (CdDrive, Arc<Tray>) {
    let (mut drive, tray) = drive();
    drive.insert(&geometry(512, 2048));
    drive.attention = None;
    (drive, tray)
}

fn run(drive: &mut CdDrive, cdb: &[u8]) -> Action {
    let mut packet = [0; 16];
    packet[..cdb.len()].copy_from_slice(cdb);
    drive.execute(&fis(0xa0), &packet)
}

fn data(drive: &mut CdDrive, cdb: &[u8]) -> Vec<u8> {
    match run(drive, cdb) {
        Action::Send(data, Protocol::Packet) => data,
        other => panic!("{other:?}"),
    }
}

/// Key, code and qualifier of the last failure.
fn sense(drive: &mut CdDrive) -> [u8; 3] {
    let data = data(drive, &[0x03, 0, 0, 0, 18]);
    [data[2], data[12], data[13]]
}

#[test]
fn a_new_disc_is_an_attention_first_and_then_read() {
    let (mut drive, _) = drive();
    assert_eq!(run(&mut drive, &[0x00]), Action::Done(Sense::NO_MEDIUM.taskfile()));
    assert_eq!(sense(&mut drive), [2, 0x3a, 0]);
    assert_eq!(sense(&mut drive), [0, 0, 0]);
    drive.insert(&geometry(512, 2048));
    assert_eq!(run(&mut drive, &[0x00]), Action::Done(Sense::MEDIUM_CHANGED.taskfile()));
    assert_eq!(run(&mut drive, &[0x00]), Action::Done(good()));
    let capacity = data(&mut drive, &[0x25]);
    assert_eq!(capacity, [(BLOCKS - 1).to_be_bytes(), 2048u32.to_be_bytes()].concat());
    let read = run(&mut drive, &[0x28, 0, 0, 0, 0, 16, 0, 0, 2]);
    let operation = Operation::Read { at: Sectors(64) };
    assert_eq!(read, Action::Transfer { operation, bytes: 4096, protocol: Protocol::Packet });
    assert_eq!(run(&mut drive, &[0xa8, 0, 0, 0, 0, 16, 0, 0, 0, 2]), read);
    let [_, a, b, c] = (BLOCKS - 1).to_be_bytes();
    run(&mut drive, &[0x28, 0, 0, a, b, c, 0, 0, 2]);
    assert_eq!(sense(&mut drive), [5, 0x21, 0]);
    assert_eq!(
        run(&mut drive, &[0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 2]),
        Action::Done(Sense::OUT_OF_RANGE.taskfile())
    );
}

#[test]
fn a_locked_tray_keeps_its_disc_from_the_guest_and_an_unlocked_one_gives_it() {
    let (mut drive, tray) = with_disc();
    run(&mut drive, &[0x1e, 0, 0, 0, 1]);
    assert_eq!(run(&mut drive, &[0x1b, 0, 0, 0, 2]), Action::Done(Sense::LOCKED.taskfile()));
    assert!(drive.has_disc());
    run(&mut drive, &[0x1e, 0, 0, 0, 0]);
    assert_eq!(run(&mut drive, &[0x1b, 0, 0, 0, 2]), Action::Done(good()));
    assert!(!drive.has_disc() && tray.disc().is_none());
    let event = data(&mut drive, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]);
    assert_eq!(event, [0, 6, 4, 0x10, 3, 1, 0, 0]);
    let event = data(&mut drive, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]);
    assert_eq!(event[4..6], [0, 1], "an event is told once");
    assert_eq!(data(&mut drive, &[0x4a, 1, 0, 0, 0x02, 0, 0, 0, 8]), [0, 2, 0x80, 0x10]);
}

#[test]
fn the_profile_follows_the_size_of_the_disc() {
    let (mut drive, _) = drive();
    let current = |drive: &mut CdDrive| data(drive, &[0x46, 0, 0, 0, 0, 0, 0, 0, 8])[6..8].to_vec();
    assert_eq!(current(&mut drive), [0, 0]);
    drive.insert(&geometry(512, 2048));
    assert_eq!(current(&mut drive), [0, 8]);
    drive.insert(&Geometry { capacity: Sectors(9 << 20), ..geometry(512, 2048) });
    assert_eq!(current(&mut drive), [0, 0x10]);
    let all = data(&mut drive, &[0x46, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(u32::from_be_bytes([all[0], all[1], all[2], all[3]]) as usize, all.len() - 4);
}

#[test]
fn contents_are_one_track_and_the_lead_out() {
    let (mut drive, _) = with_disc();
    let toc = data(&mut drive, &[0x43, 0, 0, 0, 0, 0, 0, 0, 100]);
    assert_eq!(toc.len(), 20);
    assert_eq!(toc[..4], [0, 18, 1, 1]);
    assert_eq!((toc[6], toc[14]), (1, 0xaa));
    assert_eq!(toc[16..20], BLOCKS.to_be_bytes());
    let minutes = data(&mut drive, &[0x43, 2, 0, 0, 0, 0, 0, 0, 12]);
    assert_eq!(minutes[8..12], [0, 0, 2, 0], "in minutes, seconds and frames");
    assert_eq!(data(&mut drive, &[0x43, 0, 1, 0, 0, 0, 0, 0, 12]).len(), 12);
    assert_eq!(data(&mut drive, &[0x43, 2, 2, 0, 0, 0, 0, 0, 100]).len(), 48);
}

#[test]
fn every_packet_is_answered_and_replies_are_no_longer_than_asked() {
    for disc in [false, true] {
        let (mut drive, _) = if disc { with_disc() } else { drive() };
        for command in 0..=255u8 {
            for fill in [0u8, 1, 2, 0x10, 0x2a, 0x3f, 0x80, 0xff] {
                let mut packet = [fill; 16];
                packet[0] = command;
                if let Action::Send(data, _) = drive.execute(&fis(0xa0), &packet) {
                    assert!(data.len() <= 512, "{command:#x}");
                }
            }
        }
    }
    let (mut drive, _) = with_disc();
    assert_eq!(data(&mut drive, &[0x12, 0, 0, 0, 5]).len(), 5);
    assert_eq!(run(&mut drive, &[0x12, 0, 0, 0, 0]), Action::Done(good()));
    assert_eq!(data(&mut drive, &[0x12, 0, 0, 0, 96]).len(), 36);
    assert_eq!(data(&mut drive, &[0x1a, 0, 0x3f, 0, 255])[0], 31);
    assert_eq!(data(&mut drive, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255])[..2], [0, 26]);
    run(&mut drive, &[0xb6]);
    assert_eq!(sense(&mut drive), [5, 0x20, 0]);
}

#[test]
fn identify_is_refused_with_the_signature() {
    let (mut drive, _) = drive();
    let Action::Done(taskfile) = drive.execute(&fis(0xec), &[0; 16]) else { panic!() };
    assert_eq!((taskfile.status, taskfile.error, taskfile.lba), (0x51, 4, 0xeb_1401));
    let Action::Send(identity, Protocol::Pio) = drive.execute(&fis(0xa1), &[0; 16]) else { panic!() };
    assert_eq!((identity.len(), &identity[..2]), (512, &[0xc0, 0x85][..]));
}
