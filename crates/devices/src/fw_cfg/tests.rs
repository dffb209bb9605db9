use std::io::Write;

use memory::GpaRange;
use proptest::prelude::*;

use super::*;

const AT: Gpa = Gpa(0x1000);
const TO: Gpa = Gpa(0x2000);

fn machine(items: Items) -> (FwCfg, Arc<Ram>) {
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 64 << 10).unwrap()]).unwrap());
    (FwCfg::new(items, ram.clone()), ram)
}

fn some() -> Items {
    let mut items = Items::default();
    items.set(key::CPUS, vec![3, 0]);
    items.add("etc/e820", b"some bytes".to_vec()).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"a kernel's file").unwrap();
    items.add("opt/file", Content::File { file, offset: 2, len: 6 }).unwrap();
    items
}

fn bytes(device: &FwCfg, key: u16, len: usize) -> Vec<u8> {
    device.write(SELECTOR, &key.to_le_bytes());
    let next = |_| {
        let mut byte = [0xff];
        device.read(DATA, &mut byte);
        byte[0]
    };
    (0..len).map(next).collect()
}

/// Gives a command by DMA; its control word afterwards.
fn command(device: &FwCfg, ram: &Ram, control: u32, len: u32, to: Gpa) -> u32 {
    let command = Command { control: U32::new(control), len: U32::new(len), address: U64::new(to.0) };
    ram.write_obj(AT, &command).unwrap();
    device.write(DMA_HIGH, &[0; 4]);
    device.write(DMA_LOW, &(AT.0 as u32).to_be_bytes());
    ram.read_obj::<U32>(AT).unwrap().get()
}

fn select(key: u16, rest: u32) -> u32 {
    u32::from(key) << 16 | control::SELECT | rest
}

#[test]
fn a_file_can_have_something_else_after_a_reset() {
    let mut items = some();
    items.add_changing("bootorder", b"cd".to_vec(), b"disk".to_vec()).unwrap();
    let (device, _) = machine(items);
    let length = |device: &FwCfg| bytes(device, key::FILES, 4 + 3 * 64)[4 + 2 * 64..][..4].to_vec();
    for (len, there) in [(2, *b"cd\0\0"), (4, *b"disk"), (4, *b"disk")] {
        assert_eq!(length(&device), [0, 0, 0, len]);
        assert_eq!(bytes(&device, 0x22, 4), there);
        assert_eq!(bytes(&device, 0x20, 10), *b"some bytes");
        device.reset();
    }
}

#[test]
fn firmware_finds_the_signature_both_interfaces_and_the_files_by_name() {
    let (device, _) = machine(some());
    assert_eq!(bytes(&device, key::SIGNATURE, 6), *b"QEMU\0\0");
    assert_eq!(bytes(&device, key::INTERFACES, 4), [3, 0, 0, 0]);
    assert_eq!(bytes(&device, key::CPUS, 2), [3, 0]);
    let list = bytes(&device, key::FILES, 4 + 2 * 64);
    assert_eq!(list[..4], [0, 0, 0, 2]);
    assert_eq!(list[4..12], [0, 0, 0, 10, 0, 0x20, 0, 0]);
    assert_eq!(list[12..21], *b"etc/e820\0");
    assert_eq!(list[68..76], [0, 0, 0, 6, 0, 0x21, 0, 0]);
    assert_eq!(bytes(&device, 0x20, 12), *b"some bytes\0\0");
    assert_eq!(bytes(&device, 0x21, 8), *b"kernel\0\0");
    assert_eq!(bytes(&device, 0x22, 1), [0], "no such item");
    let mut signature = [0; 4];
    device.read(DMA_HIGH, &mut signature);
    assert_eq!(signature, *b"QEMU");
}

#[test]
fn dma_reads_skips_and_goes_on_where_it_was_and_zeroes_follow_the_end() {
    let (device, ram) = machine(some());
    for (key, text) in [(0x20, &b"some bytes"[..]), (0x21, b"kernel")] {
        ram.write(TO, &[0xee; 32]).unwrap();
        assert_eq!(command(&device, &ram, select(key, control::READ), 2, TO), 0);
        assert_eq!(command(&device, &ram, control::SKIP, 1, Gpa(0)), 0);
        assert_eq!(command(&device, &ram, control::READ, 16, Gpa(TO.0 + 2)), 0);
        let mut read = [0; 32];
        ram.read(TO, &mut read).unwrap();
        let mut expected = [0xee; 32];
        expected[..18].fill(0);
        expected[..2].copy_from_slice(&text[..2]);
        expected[2..text.len() - 1].copy_from_slice(&text[3..]);
        assert_eq!(read, expected, "{key:#x}");
    }
}

#[test]
fn what_cannot_be_done_is_an_error_in_the_command_and_touches_nothing() {
    let (device, ram) = machine(some());
    ram.write(Gpa((64 << 10) - 4), &[0xee; 4]).unwrap();
    assert_eq!(command(&device, &ram, select(0x20, control::WRITE), 4, TO), control::ERROR);
    let beyond = Gpa((64 << 10) - 4);
    assert_eq!(command(&device, &ram, select(0x20, control::READ), 8, beyond), control::ERROR);
    assert_eq!(ram.read_obj::<[u8; 4]>(beyond).unwrap(), [0xee; 4]);
    assert_eq!(command(&device, &ram, select(0x20, control::READ), u32::MAX, Gpa(u64::MAX)), control::ERROR);
    // A command where there is no RAM is answered nowhere.
    device.write(DMA_HIGH, &[0xff; 4]);
    device.write(DMA_LOW, &[0xff; 4]);
}

#[test]
fn names_are_checked_when_they_are_given() {
    let mut items = some();
    let mut add = |name: &str| items.add(name, vec![]).map_err(|error| error.to_string());
    assert!(add(&"n".repeat(55)).is_ok());
    for name in ["", "a b", "ä", &"n".repeat(56)] {
        assert!(add(name).unwrap_err().contains("1 to 55"), "{name:?}");
    }
    assert!(add("etc/e820").unwrap_err().contains("two files"));
}

#[test]
fn a_reset_forgets_what_was_selected() {
    let (device, _) = machine(some());
    bytes(&device, 0x20, 3);
    device.write(DMA_HIGH, &[1; 4]);
    device.reset();
    assert_eq!(*device.state(), State { start: Start::Again, ..State::default() });
}

proptest! {
    #[test]
    fn no_order_of_accesses_panics_or_writes_outside_of_what_a_command_names(
        accesses in prop::collection::vec((any::<bool>(), 0u16..12, prop::collection::vec(any::<u8>(), 1..5)), 0..64),
        command in any::<[u8; 16]>(),
    ) {
        let (device, ram) = machine(some());
        ram.write(AT, &command).unwrap();
        for (read, offset, mut data) in accesses {
            data.truncate(usize::from(12 - offset).max(1));
            if read { device.read(offset, &mut data) } else { device.write(offset, &data) }
        }
    }
}
