//! What the driver is shown, and what a device may be.

use super::*;

#[test]
fn configuration_space_shows_the_disk_as_it_is() {
    let setup =
        Setup::with(DiskOptions::new, VirtioBlkOptions { queues: 4, ..VirtioBlkOptions::new("disk0") });
    let at = |offset| Guest::DEVICE + offset;
    assert_eq!(setup.guest.read::<8>(at(0)), (SIZE / 512).to_le_bytes());
    assert_eq!(setup.guest.read::<4>(at(12)), 254u32.to_le_bytes());
    assert_eq!(setup.guest.read::<4>(at(20)), setup.disk.geometry().logical_block.to_le_bytes());
    assert_eq!(setup.guest.read::<1>(at(32)), [1]);
    assert_eq!(setup.guest.read::<2>(at(34)), [4, 0]);
    assert_eq!(setup.guest.read::<2>(Guest::COMMON + 18), [4, 0]);
    setup.guest.write(at(32), [0]);
    assert_eq!(setup.guest.read::<1>(at(32)), [0]);
    setup.guest.write(at(32), [7]);
    setup.guest.write(at(0), [7]);
    assert_eq!(setup.guest.read::<8>(at(0)), (SIZE / 512).to_le_bytes());
    setup.guest.reset();
    assert_eq!(setup.guest.read::<1>(at(32)), [1], "a reset brings the disk's own mode back");
}

#[test]
fn another_size_of_the_disk_is_seen_and_told() {
    let setup = Setup::new();
    let generation = || setup.guest.read::<1>(Guest::COMMON + 21)[0];
    let before = generation();
    setup.file.set_len(2 * SIZE).unwrap();
    setup.disk.look_again().unwrap();
    setup.notice.send();
    assert_eq!(setup.guest.read::<8>(Guest::DEVICE), (2 * SIZE / 512).to_le_bytes());
    assert_eq!(generation(), before.wrapping_add(1));
}

#[test]
fn wrong_options_are_refused_by_name() {
    let setup = Setup::new();
    let refused = |options| VirtioBlk::new(setup.disk.clone(), options).err().map(|error| error.to_string());
    let blk = || VirtioBlkOptions::new("disk0");
    assert!(refused(blk()).is_none());
    assert!(refused(VirtioBlkOptions { queues: 0, ..blk() }).unwrap().contains("0 queues"));
    assert!(refused(VirtioBlkOptions { queue_size: 100, ..blk() }).unwrap().contains("100 descriptors"));
    let long = VirtioBlkOptions { serial: Some("x".repeat(21)), ..blk() };
    assert!(refused(long).unwrap().contains("longer than 20 bytes"));
}
