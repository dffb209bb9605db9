//! What the controller says of itself, its features, its log pages and its events.

use super::data::{LISTS, prps};
use super::*;

#[test]
fn the_controller_says_what_it_is_and_what_its_disks_are() {
    let Fixture { guest, .. } = fixture_with(3, &NvmeOptions::new("disk0"));
    assert_eq!(guest.get(register::VS), 0x10400);
    assert_eq!(guest.get(register::CAP) & 0xffff, 1023);
    let mut queue = guest.enable();
    let (status, page) = identify(&guest, &mut queue, 1, 0);
    assert_eq!(status, 0);
    assert_eq!(&page[4..24], b"skep-disk0          ");
    assert_eq!(page[77], 9);
    assert_eq!(u32::from_le_bytes(page[516..520].try_into().unwrap()), 3);
    let (status, page) = identify(&guest, &mut queue, 0, 2);
    assert_eq!((status, u64::from_le_bytes(page[..8].try_into().unwrap())), (0, BLOCKS));
    assert_eq!(page[130], 9, "blocks of 512 bytes");
    assert_eq!(identify(&guest, &mut queue, 0, 4).0, 0x0b);
    let (status, page) = identify(&guest, &mut queue, 2, 1);
    assert_eq!((status, &page[..12]), (0, &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0][..]));
    let (_, one) = identify(&guest, &mut queue, 3, 1);
    let (status, two) = identify(&guest, &mut queue, 3, 2);
    assert_eq!((status, two[0], two[1], two[20]), (0, 3, 16, 0));
    assert_ne!(one[4..20], two[4..20], "every namespace has a UUID of its own");
    assert_eq!(identify(&guest, &mut queue, 6, 0).0, 0);
    assert_eq!(identify(&guest, &mut queue, 8, 1).0, 0x02);
    let (status, page) = log(&guest, &mut queue, log_page::COMMANDS, 1024, false);
    assert_eq!((status, page[4 * 6], page[1024 + 4], page[1024 + 4 * 4]), (0, 1, 3, 0));
    let (status, page) = log(&guest, &mut queue, log_page::FIRMWARE, 128, false);
    assert_eq!((status, page[0]), (0, 1));
    assert_eq!(log(&guest, &mut queue, 0x70, 4, false).0, 0x109);
    assert_eq!(guest.admin(&mut queue, 0x7f, 0, 0).0, 0x01);
    assert_eq!(guest.admin(&mut queue, admin::KEEP_ALIVE, 0, 0).0, 0x01);
}

#[test]
fn wrong_options_are_refused_by_name() {
    let open = || Namespace::new(Arc::new(Disk::open(&DiskOptions::new(disk_file().path())).unwrap()));
    let refused = |namespaces, options: &NvmeOptions| {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
        let windows = pci::Windows {
            memory32: GpaRange::new(Gpa(0xc000_0000), 0x2000_0000).unwrap(),
            memory64: None,
            ports: (0xc000, 0xffff),
        };
        let services = Arc::new(pci::fake::FakeServices::default());
        let at = pci::Address::new(0, 1, 0).unwrap();
        devices::Nvme::new(namespaces, options, at, ram, services, &windows, Arc::new(|_| {})).err().unwrap()
    };
    let options = NvmeOptions::new("disk0");
    assert!(matches!(refused(vec![], &options), NvmeError::Namespaces { count: 0, .. }));
    let options = NvmeOptions { queues: 65, ..NvmeOptions::new("disk0") };
    assert_eq!(
        refused(vec![open()], &options).to_string(),
        "nvme disk0: 65 queues. Give it 1 to 64 (`queues`)."
    );
    let options = NvmeOptions { serial: Some("123456789012345678901".into()), ..NvmeOptions::new("disk0") };
    assert!(matches!(refused(vec![open()], &options), NvmeError::TooLong { what: "serial number", .. }));
}

#[test]
fn events_are_told_when_they_are_asked_for_and_can_be_aborted() {
    let Fixture { guest, .. } = fixture();
    let mut admin = guest.enable();
    let (status, _) = guest.admin(&mut admin, admin::SET_FEATURES, feature::ASYNC_EVENT.into(), 0x100);
    assert_eq!(status, 0);
    assert_eq!(guest.admin(&mut admin, admin::GET_FEATURES, feature::ASYNC_EVENT.into(), 0), (0, 0x100));
    let event = Command { opcode: admin::ASYNC_EVENT, ..Command::default() };
    let requests: Vec<u16> = (0..4).map(|_| guest.submit(&mut admin, event)).collect();
    assert_eq!(guest.run(&mut admin, event).0, 0x105, "one request too many");
    guest.nvme.namespace_changed(1);
    guest.nvme.namespace_changed(1);
    guest.nvme.namespace_changed(7);
    let told = guest.wait(&mut admin);
    assert_eq!((told.cid.get(), told.result.get()), (requests[0], 0x0004_0002));
    std::thread::sleep(Duration::from_millis(20));
    assert!(guest.look(&admin).is_none(), "told again only after the page was read");
    let (status, page) = log(&guest, &mut admin, log_page::CHANGED_NAMESPACES, 1024, false);
    assert_eq!((status, page[0], page[4]), (0, 1, 0));
    guest.nvme.namespace_changed(1);
    assert_eq!(guest.wait(&mut admin).cid.get(), requests[1]);
    // A doorbell that does not exist.
    guest.set(register::DOORBELLS + 8 * 5, 1);
    let told = guest.wait(&mut admin);
    assert_eq!((told.cid.get(), told.result.get()), (requests[2], 0x0001_0000));
    let abort = guest.submit(
        &mut admin,
        Command { opcode: admin::ABORT, cdw10: (u32::from(requests[3]) << 16).into(), ..Command::default() },
    );
    let aborted = guest.wait(&mut admin);
    assert_eq!((aborted.cid.get(), aborted.status.get() >> 1 & 0x7ff), (requests[3], 0x07));
    let answer = guest.wait(&mut admin);
    assert_eq!((answer.cid.get(), answer.result.get()), (abort, 0));
    assert_eq!(guest.admin(&mut admin, admin::ABORT, 0x1234_0001, 0), (0, 1), "nothing to abort");
}

#[test]
fn features_are_kept_and_limits_are_told() {
    let Fixture { guest, .. } = fixture();
    let mut admin = guest.enable();
    let mut set = |id: u8, value| guest.admin(&mut admin, admin::SET_FEATURES, id.into(), value);
    assert_eq!(set(feature::QUEUES, 0x003f_003f), (0, 0x0007_0007));
    assert_eq!(set(feature::QUEUES, 0xffff), (0x02, 0));
    assert_eq!(set(feature::COALESCING, 0x0203).0, 0);
    assert_eq!(set(feature::VECTOR, 0x1_0002).0, 0);
    assert_eq!(set(feature::VECTOR, 9).0, 0x02);
    assert_eq!(set(feature::TEMPERATURE, 0x150).0, 0);
    assert_eq!(set(0x55, 0).0, 0x02);
    assert_eq!(guest.admin(&mut admin, admin::SET_FEATURES, 1 << 31 | 8, 0).0, 0x10d);
    let mut get = |id: u8, value| guest.admin(&mut admin, admin::GET_FEATURES, id.into(), value);
    assert_eq!(get(feature::COALESCING, 0), (0, 0x0203));
    assert_eq!(get(feature::VECTOR, 2), (0, 0x1_0002));
    assert_eq!(get(feature::TEMPERATURE, 0), (0, 0x150));
    assert_eq!(get(feature::WRITE_CACHE, 0), (0, 1));
    assert_eq!(guest.admin(&mut admin, admin::SET_FEATURES, feature::WRITE_CACHE.into(), 0).0, 0);
    assert_eq!(guest.admin(&mut admin, admin::GET_FEATURES, feature::WRITE_CACHE.into(), 0), (0, 0));
    let _ = guest.create_pair(&mut admin, 1, 8, None).unwrap();
    assert_eq!(guest.admin(&mut admin, admin::SET_FEATURES, feature::QUEUES.into(), 0).0, 0x0c);
    guest.disable();
    let mut admin = guest.enable();
    assert_eq!(guest.admin(&mut admin, admin::GET_FEATURES, feature::WRITE_CACHE.into(), 0), (0, 1));
    assert_eq!(guest.admin(&mut admin, admin::GET_FEATURES, feature::COALESCING.into(), 0), (0, 0));
}

#[test]
fn health_counts_what_went_through_the_disks() {
    let Fixture { guest, .. } = fixture();
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 64, None).unwrap();
    let list = prps(&guest, Guest::DATA.0, 2 << 20, LISTS);
    assert_eq!(guest.run(&mut queue, io(spec::io::READ, 1, 0, 4096, list)).0, 0);
    let (status, page) = log(&guest, &mut admin, log_page::HEALTH, 128, true);
    assert_eq!((status, page[0], page[1], page[2], page[3]), (0, 0, 44, 1, 100));
    assert_eq!((page[32], page[64], page[80]), (5, 1, 0));
}
