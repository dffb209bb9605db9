//! Whole loads, of images made here.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::platform::Cpus;
use crate::platform::tests::{platform, range};

const KERNEL: u64 = 0x100_0000;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// These bytes, packed by a program.
pub(crate) fn packed_by(command: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut program = Command::new(command[0]);
    program.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = program.spawn().unwrap_or_else(|error| panic!("{}: {error}", command[0]));
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(out.status.success());
    out.stdout
}

/// A PVH kernel: a note, a segment of 64 bytes at 16 MiB with 0x100 bytes of zeroes behind it, and one of 16
/// bytes at 17 MiB.
pub(crate) fn tiny_elf() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &[2, 0, 62, 0]);
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 54, &56u16.to_le_bytes());
    put(&mut image, 56, &3u16.to_le_bytes());
    // A foreign note before ours, with a name that needs padding.
    let mut note = [1u32, 3, 7].as_bytes().to_vec();
    note.extend(b"A\0\0\0xyz\0");
    note.extend([4u32, 8, 18].as_bytes());
    note.extend(b"Xen\0");
    note.extend(KERNEL.to_le_bytes());
    let programs = [
        (4u32, 0x200u64, 0u64, note.len() as u64, note.len() as u64),
        (1, 0x300, KERNEL, 64, 64 + 0x100),
        (1, 0x340, KERNEL + (1 << 20), 16, 16),
    ];
    for (index, (kind, offset, address, in_file, len)) in programs.into_iter().enumerate() {
        let at = 64 + index * 56;
        put(&mut image, at, &kind.to_le_bytes());
        for (field, value) in [(8, offset), (24, address), (32, in_file), (40, len), (48, 4)] {
            put(&mut image, at + field, &value.to_le_bytes());
        }
    }
    put(&mut image, 0x200, &note);
    put(&mut image, 0x300, &[0xf4; 64]);
    put(&mut image, 0x340, &[0x90; 16]);
    image
}

/// A 32-bit PVH kernel: a segment of 64 bytes at 16 MiB with 0x100 bytes of zeroes behind it, entered at its byte 16, and
/// behind it in the file a note that takes no memory, as GRUB's has.
pub(crate) fn tiny_elf32() -> Vec<u8> {
    let mut image = vec![0; 0x240];
    put(&mut image, 0, b"\x7fELF\x01\x01\x01");
    put(&mut image, 16, &[2, 0, 3, 0]);
    put(&mut image, 28, &52u32.to_le_bytes());
    put(&mut image, 42, &[32, 0, 2, 0]);
    let address = KERNEL as u32;
    let programs = [[1, 0x200, 0xc000_0000, address, 64, 64 + 0x100, 7, 4096], [4, 0x240, 0, 0, 20, 0, 4, 4]];
    put(&mut image, 52, programs.as_bytes());
    put(&mut image, 0x200, &[0xf4; 64]);
    image.extend([4u32, 4, 18].as_bytes());
    image.extend(b"Xen\0");
    image.extend((address + 16).to_le_bytes());
    image
}

/// A bzImage of one setup sector and 2 KiB of code, which wants to lie at 16 MiB and needs 1 MiB.
pub(crate) fn tiny_bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 2048];
    image[0x1f1] = 1;
    put(&mut image, 0x1f4, &(2048u32 / 16).to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    image[0x211] = 1;
    put(&mut image, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    image[0x234] = 1;
    put(&mut image, 0x236, &3u16.to_le_bytes());
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &KERNEL.to_le_bytes());
    put(&mut image, 0x260, &(1u32 << 20).to_le_bytes());
    image[1024..].fill(0xf4);
    image
}

fn ram(size: u64) -> Ram {
    Ram::new(&memory::ram_ranges(size)).unwrap()
}

fn one_cpu() -> Platform {
    platform(Cpus::new(1, 1, 1).unwrap())
}

fn loaded(kernel: Vec<u8>, initrd: Option<&Initrd>, line: &str, ram: &Ram) -> Result<CpuState, LoadError> {
    let kernel = KernelImage::from_bytes("tiny", kernel)?;
    load(&LinuxBoot { kernel: &kernel, initrd, command_line: line }, &one_cpu(), ram, Contents::Used)
}

fn object<T: FromBytes + IntoBytes>(ram: &Ram, at: u64) -> T {
    ram.read_obj(Gpa(at)).unwrap()
}

#[test]
fn a_pvh_kernel_finds_all_that_start_info_promises() {
    let ram = ram(64 << 20);
    ram.write(Gpa(KERNEL), &[0xaa; 0x1000]).unwrap();
    let initrd = Initrd::from_bytes("initrd", vec![7; 5000]).unwrap();
    let state = loaded(tiny_elf(), Some(&initrd), "console=ttyS0", &ram).unwrap();

    assert_eq!(state.rip, KERNEL);
    assert_eq!(object::<[u8; 65]>(&ram, KERNEL)[63..], [0xf4, 0], "code, then zeroes over what was there");
    assert_eq!(object::<[u8; 2]>(&ram, KERNEL + 64 + 0xff), [0, 0xaa], "no further than the segment");
    let [magic, version, flags, modules] = object::<[u32; 4]>(&ram, state.rbx);
    assert_eq!((magic, version, flags, modules), (0x336e_c578, 1, 0, 1));
    let [module_list, line, rsdp, map] = object::<[u64; 4]>(&ram, state.rbx + 16);
    assert_eq!(object::<[u8; 14]>(&ram, line), *b"console=ttyS0\0");
    assert_eq!(object::<[u8; 8]>(&ram, rsdp), *b"RSD PTR ");
    let [address, size] = object::<[u64; 2]>(&ram, module_list);
    assert_eq!((address, size), ((64 << 20) - 0x2000, 5000));
    assert_eq!(object::<[u8; 5000]>(&ram, address), [7; 5000]);
    let expected = memory_map(&one_cpu(), &ram);
    assert_eq!(object::<u32>(&ram, state.rbx + 48) as usize, expected.len());
    for (index, entry) in expected.iter().enumerate() {
        let at = map + index as u64 * 24;
        assert_eq!(object::<[u64; 2]>(&ram, at), [entry.range.start().0, entry.range.len()]);
        assert_eq!(object::<u32>(&ram, at + 16), entry.kind as u32);
    }
}

#[test]
fn a_32_bit_pvh_kernel_is_entered_as_a_64_bit_one() {
    let ram = ram(64 << 20);
    let state = loaded(tiny_elf32(), None, "root=x", &ram).unwrap();
    let wide = loaded(tiny_elf(), None, "root=x", &super::tests::ram(64 << 20)).unwrap();
    assert_eq!(state, CpuState { rip: KERNEL + 16, ..wide });
    assert_eq!(object::<[u8; 65]>(&ram, KERNEL)[63..], [0xf4, 0]);
    assert_eq!(object::<u32>(&ram, state.rbx), 0x336e_c578);
}

#[test]
fn a_bzimage_finds_all_that_the_zero_page_promises() {
    let ram = ram(64 << 20);
    let initrd = Initrd::from_bytes("initrd", vec![7; 5000]).unwrap();
    let state = loaded(tiny_bzimage(), Some(&initrd), "quiet", &ram).unwrap();

    assert_eq!(state.rip, KERNEL + 0x200);
    assert_eq!(object::<[u8; 2048]>(&ram, KERNEL), [0xf4; 2048]);
    let zero = state.rsi;
    assert_eq!(object::<[u8; 4]>(&ram, zero + 0x202), *b"HdrS");
    assert_eq!(object::<u8>(&ram, zero + 0x210), 0xff);
    assert_eq!(u64::from(object::<u32>(&ram, zero + 0x214)), KERNEL);
    assert_eq!(object::<[u32; 2]>(&ram, zero + 0x218), [(64 << 20) - 0x2000, 5000]);
    let line = object::<u32>(&ram, zero + 0x228);
    assert_eq!(object::<[u8; 6]>(&ram, line.into()), *b"quiet\0");
    let rsdp = object::<u64>(&ram, zero + 0x70);
    assert_eq!(object::<[u8; 8]>(&ram, rsdp), *b"RSD PTR ");
    let expected = memory_map(&one_cpu(), &ram);
    assert_eq!(usize::from(object::<u8>(&ram, zero + 0x1e8)), expected.len());
    for (index, entry) in expected.iter().enumerate() {
        let at = zero + 0x2d0 + index as u64 * 20;
        assert_eq!(object::<[u64; 2]>(&ram, at), [entry.range.start().0, entry.range.len()]);
        assert_eq!(object::<u32>(&ram, at + 16), entry.kind as u32);
    }
}

#[test]
fn a_bzimage_without_a_64_bit_entry_is_entered_in_protected_mode() {
    let ram = ram(64 << 20);
    let mut kernel = tiny_bzimage();
    kernel[0x206] = 0x0b;
    let state = loaded(kernel, None, "quiet", &ram).unwrap();
    // boot.rst, "32-bit Boot Protocol": no paging, flat segments, ESI is the boot parameters, EBX is 0.
    assert_eq!((state.rip, state.cr0, state.cr4, state.efer, state.rbx), (KERNEL, 0x11, 0, 0, 0));
    assert_eq!((state.cs.selector, state.data.selector), (0x10, 0x18));
    assert!(state.cs.big && !state.cs.long);
    assert_eq!(object::<[u8; 4]>(&ram, state.rsi + 0x202), *b"HdrS");
    assert_eq!(u64::from(object::<u32>(&ram, state.rsi + 0x214)), KERNEL);
}

#[test]
fn zeroes_fill_the_last_paragraph_of_a_bzimage() {
    let ram = ram(64 << 20);
    ram.write(Gpa(KERNEL), &[0xaa; 0x1000]).unwrap();
    let mut kernel = tiny_bzimage();
    kernel.truncate(kernel.len() - 9);
    loaded(kernel, None, "", &ram).unwrap();
    assert_eq!(object::<[u8; 8]>(&ram, KERNEL + 2048 - 16), [0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0]);
    assert_eq!(object::<[u8; 9]>(&ram, KERNEL + 2048 - 8), [0, 0, 0, 0, 0, 0, 0, 0, 0xaa]);
}

#[test]
fn smbios_lies_where_it_is_looked_for() {
    let ram = ram(64 << 20);
    loaded(tiny_bzimage(), None, "", &ram).unwrap();
    assert_eq!(object::<[u8; 5]>(&ram, 0xf_0000), *b"_SM3_");
}

#[test]
fn loading_twice_leaves_the_same_ram_as_loading_once() {
    let (once, twice) = (ram(32 << 20), ram(32 << 20));
    let long = "x".repeat(2047);
    loaded(tiny_elf(), None, "short", &once).unwrap();
    loaded(tiny_elf(), None, "short", &twice).unwrap();
    assert_eq!(
        loaded(tiny_elf(), None, &long, &twice).unwrap(),
        loaded(tiny_elf(), None, "short", &twice).unwrap()
    );
    let bytes = |ram: &Ram| {
        let mut bytes = vec![0; 0x2_0006];
        ram.segments()[0].file().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(bytes(&once) == bytes(&twice));
}

#[test]
fn new_ram_needs_no_clearing_and_used_ram_is_cleared_where_a_kernel_relies_on_it() {
    for kernel in [tiny_elf(), tiny_bzimage()] {
        let kernel = KernelImage::from_bytes("tiny", kernel).unwrap();
        let boot = LinuxBoot { kernel: &kernel, initrd: None, command_line: "" };
        let (new, used) = (ram(32 << 20), ram(32 << 20));
        let range = kernel.range();
        used.write(range.start(), &vec![0xcc; range.len() as usize]).unwrap();
        load(&boot, &one_cpu(), &new, Contents::New).unwrap();
        load(&boot, &one_cpu(), &used, Contents::Used).unwrap();
        let image = |ram: &Ram| {
            let parts = match kernel.format() {
                Format::Pvh(elf) => elf.parts().iter().map(|part| part.range).collect(),
                Format::BzImage(image) => vec![GpaRange::new(image.range().start(), 2048).unwrap()],
            };
            let mut all = Vec::new();
            for part in parts {
                let mut bytes = vec![0; part.len() as usize];
                ram.read(part.start(), &mut bytes).unwrap();
                all.push(bytes);
            }
            all
        };
        assert!(image(&new) == image(&used));
    }
}

#[test]
fn a_kernel_that_does_not_fit_says_how_much_memory_would_do() {
    let error = loaded(tiny_bzimage(), None, "", &ram(16 << 20)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel tiny needs the RAM at 0x1000000-0x10fffff, but the VM's low RAM ends at 0x1000000. Give the \
         VM at least 18 MiB of memory."
    );
    loaded(tiny_bzimage(), None, "", &ram(17 << 20)).unwrap();
    let mut far = tiny_bzimage();
    put(&mut far, 0x258, &(1u64 << 40).to_le_bytes());
    let error = loaded(far, None, "", &ram(17 << 20)).unwrap_err();
    assert!(error.to_string().contains("More memory would not help"), "{error}");
    assert!(matches!(loaded(tiny_elf(), None, "", &ram(512 << 10)), Err(LoadError::NoLowRam)));
}

#[test]
fn a_command_line_is_taken_up_to_the_kernels_limit() {
    let ram = ram(32 << 20);
    for kernel in [tiny_elf(), tiny_bzimage()] {
        loaded(kernel.clone(), None, &"x".repeat(2047), &ram).unwrap();
        let error = loaded(kernel.clone(), None, &"x".repeat(2048), &ram).unwrap_err();
        assert!(error.to_string().contains("has 2048 bytes, but this kernel takes 2047"), "{error}");
        let error = loaded(kernel, None, "a\0b", &ram).unwrap_err();
        assert!(error.to_string().contains("zero byte at offset 1"), "{error}");
    }
    let mut kernel = tiny_bzimage();
    put(&mut kernel, 0x238, &u32::MAX.to_le_bytes());
    let error = loaded(kernel, None, &"x".repeat(1 << 20), &ram).unwrap_err();
    assert!(matches!(error, LoadError::CommandLineTooLong { max: 0x7_fbff, .. }), "{error}");
}

#[test]
fn nothing_is_written_when_anything_is_wrong() {
    let ram = ram(32 << 20);
    let initrd = Initrd::from_bytes("initrd", vec![7; 32 << 20]).unwrap();
    assert!(matches!(loaded(tiny_elf(), Some(&initrd), "", &ram), Err(LoadError::Initrd(_))));
    let mut all = vec![1; 32 << 20];
    ram.read(Gpa(0), &mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 0));
}

#[test]
fn a_kernel_in_a_file_is_loaded_like_one_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vmlinux");
    std::fs::write(&path, tiny_elf()).unwrap();
    let kernel = KernelImage::open(&path).unwrap();
    let (ram, boot) = (ram(32 << 20), LinuxBoot { kernel: &kernel, initrd: None, command_line: "" });
    assert_eq!(load(&boot, &one_cpu(), &ram, Contents::Used).unwrap().rip, KERNEL);
    assert_eq!(object::<[u8; 64]>(&ram, KERNEL), [0xf4; 64]);
    std::fs::write(&path, &tiny_elf()[..0x200]).unwrap();
    let error = load(&boot, &one_cpu(), &ram, Contents::Used).unwrap_err();
    assert!(error.to_string().starts_with("cannot read 64 bytes at offset 768 of "), "{error}");
}

#[test]
fn what_does_not_fit_is_known_before_there_is_ram_and_all_at_once() {
    let kernel = KernelImage::from_bytes("tiny", tiny_elf()).unwrap();
    let initrd = Initrd::from_bytes("big", vec![1; 20 << 20]).unwrap();
    let (line, places) = ("x".repeat(2048), memory::ram_ranges(16 << 20));
    let texts = |kernel, initrd, line: Option<&str>, places: &[GpaRange]| {
        check(kernel, initrd, line, places).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let all = texts(Some(&kernel), Some(&initrd), Some(&line), &places);
    let parts =
        ["the kernel tiny needs the RAM", "the initrd big has 20971520 bytes", "command line has 2048"];
    assert!(all.len() == 3 && all.iter().zip(parts).all(|(text, part)| text.contains(part)), "{all:?}");
    // What is unknown keeps nobody from finding the rest.
    let alone = texts(None, Some(&initrd), None, &places);
    assert!(alone.len() == 1 && alone[0].contains("Give the VM at least 22 MiB"), "{alone:?}");
    let fits = memory::ram_ranges(64 << 20);
    assert_eq!(texts(Some(&kernel), Some(&initrd), Some("quiet"), &fits), [""; 0]);
    // It says of each what loading says of the first.
    let boot = LinuxBoot { kernel: &kernel, initrd: Some(&initrd), command_line: "quiet" };
    for mib in 16..64 {
        let loaded = load(&boot, &one_cpu(), &ram(mib << 20), Contents::Used)
            .map(drop)
            .map_err(|error| error.to_string());
        let found = texts(Some(&kernel), Some(&initrd), Some("quiet"), &memory::ram_ranges(mib << 20));
        assert_eq!(loaded.err(), found.first().cloned(), "{mib} MiB");
    }
}

/// Loads into RAM with an island behind a gap: whatever is loaded, it may not come to lie there.
fn load_hostile(kernel: Vec<u8>) {
    let ram = Ram::new(&[range(0, 20 << 20), range(64 << 20, 1 << 20)]).unwrap();
    let Ok(kernel) = KernelImage::from_bytes("hostile", kernel) else { return };
    let needs = kernel.range();
    let boot = LinuxBoot { kernel: &kernel, initrd: None, command_line: "x" };
    if let Ok(state) = load(&boot, &one_cpu(), &ram, Contents::Used) {
        assert!(needs.end() <= Gpa(20 << 20) && needs.start() >= Gpa(1 << 20));
        assert!(needs.contains(Gpa(state.rip)));
    }
    let mut island = vec![0; 1 << 20];
    ram.read(Gpa(64 << 20), &mut island).unwrap();
    assert!(island.iter().all(|byte| *byte == 0));
}

fn mutated(image: Vec<u8>, interesting: usize) -> impl Strategy<Value = Vec<u8>> {
    let value =
        prop_oneof![Just(0u64), Just(u64::MAX), Just(1 << 63), Just(KERNEL), 0u64..0x1000, any::<u64>()];
    let edit = (0..interesting, value, 1usize..=8);
    (prop::collection::vec(edit, 0..6), prop_oneof![9 => Just(usize::MAX), 1 => 0..image.len()]).prop_map(
        move |(edits, len)| {
            let mut image = image.clone();
            for (at, value, width) in edits {
                put(&mut image, at, &value.to_le_bytes()[..width]);
            }
            image.truncate(len);
            image
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_hostile_elf_neither_panics_nor_leaves_its_place(image in mutated(tiny_elf(), 0x238)) {
        load_hostile(image);
    }

    #[test]
    fn a_hostile_32_bit_elf_neither_panics_nor_leaves_its_place(image in mutated(tiny_elf32(), 0x24d)) {
        load_hostile(image);
    }

    #[test]
    fn a_hostile_bzimage_neither_panics_nor_leaves_its_place(image in mutated(tiny_bzimage(), 0x290)) {
        load_hostile(image);
    }

    #[test]
    fn random_bytes_behind_a_magic_number_are_no_kernel(mut bytes in prop::collection::vec(any::<u8>(), 0x300..0x1000), elf: bool) {
        if elf {
            put(&mut bytes, 0, b"\x7fELF\x02\x01");
        } else {
            put(&mut bytes, 0x1fe, &[0x55, 0xaa, 0, 0]);
            put(&mut bytes, 0x202, b"HdrS");
        }
        load_hostile(bytes);
    }
}
