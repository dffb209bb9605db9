//! What firmware is told about the machine, as files of its configuration device (fw_cfg): the same memory map, ACPI tables
//! and SMBIOS structures that a kernel finds which is started without firmware.

use memory::{Gpa, GpaRange, HIGH_RAM_START, Ram};

use crate::platform::Platform;
use crate::{LoadError, acpi, smbios};

/// A file for the firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Its name, as firmware asks for it.
    pub name: &'static str,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

const TABLES: &str = "etc/acpi/tables";
const RSDP: &str = "etc/acpi/rsdp";

/// All of them.
pub fn files(platform: &Platform, ram: &Ram) -> Result<Vec<ConfigFile>, LoadError> {
    let acpi = Acpi::new(platform, ram)?;
    let smbios = smbios::tables(platform, ram, scratch())?.bytes;
    let (anchor, structures) = smbios.split_at(smbios::STRUCTURES as usize);
    let file = |name, bytes: &[u8]| ConfigFile { name, bytes: bytes.to_vec() };
    let mut files = vec![
        file("etc/e820", &memory_map(platform, ram)),
        file(TABLES, &acpi.tables),
        file(RSDP, &acpi.rsdp),
        file("etc/table-loader", &acpi.loader),
        file("etc/smbios/smbios-anchor", &anchor[..smbios::ENTRY_POINT as usize]),
        file("etc/smbios/smbios-tables", structures),
    ];
    let size = platform.pci.window64.and_then(|window| window64(window, ram));
    files.extend(size.map(|mib| file("opt/ovmf/X-PciMmio64Mb", mib.to_string().as_bytes())));
    Ok(files)
}

/// RAM, and what firmware must give to nobody. The firmware itself says what of the RAM it uses.
fn memory_map(platform: &Platform, ram: &Ram) -> Vec<u8> {
    const RAM: u32 = 1;
    const RESERVED: u32 = 2;
    let entry = |range: GpaRange, kind: u32| {
        [&range.start().0.to_le_bytes()[..], &range.len().to_le_bytes(), &kind.to_le_bytes()].concat()
    };
    let ram = ram.segments().iter().map(|segment| entry(segment.range(), RAM));
    ram.chain([entry(platform.pci.ecam.range(), RESERVED)]).flatten().collect()
}

/// How large the firmware's 64-bit window for BARs is to be, in MiB, where it would not lie in that of the bus by itself.
///
/// EDK II (OvmfPkg/Library/PlatformInitLib/MemDetect.c) puts a window of this size behind RAM, at a multiple of it. If the CPU
/// has more than 40 bits of addresses, it takes the last eighth of them instead, which the bus has. With fewer it may do so as
/// well, unless the size is an eighth of them already; and on AMD's hosts, devices do not reach the last 12 GiB of 40 bits.
/// (`etc/hardware-info`, which names the windows, cannot be used: firmware of 2022 reads it into memory that it does not
/// clear, and then adds what was there to each address.)
fn window64(window: GpaRange, ram: &Ram) -> Option<u64> {
    let end = window.end().0;
    if end > 1 << 40 {
        return None;
    }
    let ram_end = ram.segments().last()?.range().end().0.max(HIGH_RAM_START.0);
    let largest = end.next_power_of_two() >> 3;
    let sizes =
        std::iter::successors(Some(largest), |size| Some(size >> 1)).take_while(|size| *size >= 1 << 30);
    let mut fitting = sizes.filter(|size| {
        let start = ram_end.next_multiple_of(*size);
        start >= window.start().0 && start + size <= end
    });
    fitting.next().map(|size| size >> 20)
}

/// Where tables are built before the firmware puts them somewhere.
fn scratch() -> GpaRange {
    GpaRange::new(Gpa(1 << 20), 1 << 20).expect("a constant")
}

/// ACPI tables as one blob, the RSDP, and how the firmware is to put them into memory.
struct Acpi {
    tables: Vec<u8>,
    rsdp: Vec<u8>,
    loader: Vec<u8>,
}

/// A pointer in a table: its place in the file, and its size in bytes.
struct Pointer(usize, u8);

impl Acpi {
    fn new(platform: &Platform, ram: &Ram) -> Result<Acpi, LoadError> {
        // The FACS first, for it is aligned to 64 bytes as the file is, then (unused here) the RSDP.
        const FACS: u64 = 64;
        let place = scratch();
        let origin = place.start().0 - FACS;
        let built = acpi::tables(platform, ram, place, Gpa(origin))?;
        let mut blob = Blob { origin, bytes: Vec::new(), pointers: Vec::new() };
        let mut rsdp = Vec::new();
        let mut sums = Vec::new();
        for table in &built.tables {
            if table.at == built.rsdp {
                rsdp = table.bytes.clone();
                continue;
            }
            let at = blob.put(table.at, &table.bytes);
            match &table.bytes[..4] {
                b"FACP" => {
                    [(36, 4), (40, 4), (132, 8), (140, 8)].map(|(field, size)| blob.point(at + field, size))
                }
                b"XSDT" => {
                    (at + 36..at + table.bytes.len()).step_by(8).for_each(|entry| blob.point(entry, 8));
                    [(); 4]
                }
                _ => continue,
            };
            sums.push((at, table.bytes.len()));
        }
        let mut loader = Loader(Vec::new());
        loader.allocate(TABLES, 64, HIGH);
        loader.allocate(RSDP, 16, BELOW_1_MIB);
        for Pointer(offset, size) in &blob.pointers {
            loader.add_pointer(TABLES, TABLES, *offset, *size);
        }
        for (at, len) in sums {
            loader.add_checksum(&mut blob.bytes, TABLES, at + 9, at, len);
        }
        let xsdt = u64::from_le_bytes(rsdp[24..32].try_into().expect("eight bytes")) - origin;
        rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
        loader.add_pointer(RSDP, TABLES, 24, 8);
        // First that of ACPI 1.0's part, which the other covers.
        let len = rsdp.len();
        loader.add_checksum(&mut rsdp, RSDP, 8, 0, 20);
        loader.add_checksum(&mut rsdp, RSDP, 32, 0, len);
        Ok(Acpi { tables: blob.bytes, rsdp, loader: loader.0 })
    }
}

/// Tables in one file; pointers are offsets in it, until the firmware adds the file's address.
struct Blob {
    origin: u64,
    bytes: Vec<u8>,
    pointers: Vec<Pointer>,
}

impl Blob {
    fn put(&mut self, at: Gpa, table: &[u8]) -> usize {
        let offset = (at.0 - self.origin) as usize;
        self.bytes.resize(self.bytes.len().max(offset + table.len()), 0);
        self.bytes[offset..][..table.len()].copy_from_slice(table);
        offset
    }

    /// There is a pointer of so many bytes; unless it is zero, which points nowhere.
    fn point(&mut self, offset: usize, size: usize) {
        let field = &mut self.bytes[offset..][..size];
        let mut value = [0; 8];
        value[..size].copy_from_slice(field);
        let value = u64::from_le_bytes(value);
        if value != 0 {
            field.copy_from_slice(&(value - self.origin).to_le_bytes()[..size]);
            self.pointers.push(Pointer(offset, size as u8));
        }
    }
}

/// Where the firmware puts a file: anywhere below 4 GiB, or where operating systems look for the RSDP.
const HIGH: u8 = 1;
const BELOW_1_MIB: u8 = 2;
const NAME: usize = 56;
const ENTRY: usize = 128;

/// Commands for the firmware. QEMU, hw/acpi/bios-linker-loader.c.
struct Loader(Vec<u8>);

impl Loader {
    fn add(&mut self, command: u32, fields: &[&[u8]]) {
        let end = self.0.len() + ENTRY;
        self.0.extend(command.to_le_bytes());
        fields.iter().for_each(|field| self.0.extend(*field));
        self.0.resize(end, 0);
    }

    fn allocate(&mut self, file: &str, alignment: u32, zone: u8) {
        self.add(1, &[&name(file), &alignment.to_le_bytes(), &[zone]]);
    }

    fn add_pointer(&mut self, file: &str, to: &str, offset: usize, size: u8) {
        self.add(2, &[&name(file), &name(to), &(offset as u32).to_le_bytes(), &[size]]);
    }

    /// The byte at `sum` is to make the sum of `len` bytes from `from` on zero; it is zero before.
    fn add_checksum(&mut self, bytes: &mut [u8], file: &str, sum: usize, from: usize, len: usize) {
        bytes[sum] = 0;
        let [sum, from, len] = [sum, from, len].map(|number| (number as u32).to_le_bytes());
        self.add(3, &[&name(file), &sum, &from, &len]);
    }
}

fn name(file: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    name[..file.len()].copy_from_slice(file.as_bytes());
    name
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::platform::Cpus;
    use crate::platform::tests::platform;

    fn machine() -> (Platform, Ram) {
        (platform(Cpus::new(1, 2, 1).unwrap()), Ram::new(&memory::ram_ranges(4 << 30)).unwrap())
    }

    fn all() -> BTreeMap<&'static str, Vec<u8>> {
        let (platform, ram) = machine();
        files(&platform, &ram).unwrap().into_iter().map(|file| (file.name, file.bytes)).collect()
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes.split(|byte| *byte == 0).next().unwrap()).unwrap()
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Does what the firmware does: each file at an address, then the commands in their order.
    fn carried_out(files: &BTreeMap<&'static str, Vec<u8>>) -> BTreeMap<String, (u64, Vec<u8>)> {
        let mut memory: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
        for entry in files["etc/table-loader"].chunks(ENTRY) {
            let (file, rest) = (text(&entry[4..60]), &entry[60..]);
            match number(&entry[..4]) {
                1 => {
                    let at = 0x7000_0000 + 0x10_0000 * memory.len() as u64;
                    memory.insert(file.to_owned(), (at, files[file].clone()));
                }
                2 => {
                    let to = memory[text(&rest[..56])].0;
                    let (offset, size) = (number(&rest[56..60]) as usize, usize::from(rest[60]));
                    let field = &mut memory.get_mut(file).unwrap().1[offset..][..size];
                    let value = number(field) + to;
                    field.copy_from_slice(&value.to_le_bytes()[..size]);
                }
                3 => {
                    let [sum, from, len] = [0, 4, 8].map(|at| number(&rest[at..at + 4]) as usize);
                    let bytes = &mut memory.get_mut(file).unwrap().1;
                    assert_eq!(bytes[sum], 0);
                    bytes[sum] = 0u8.wrapping_sub(
                        bytes[from..][..len].iter().fold(0, |sum, byte| sum.wrapping_add(*byte)),
                    );
                }
                other => panic!("command {other}"),
            }
        }
        memory
    }

    #[test]
    fn once_the_firmware_has_placed_the_tables_all_pointers_and_checksums_are_right() {
        let memory = carried_out(&all());
        let (start, tables) = &memory[TABLES];
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let table = |at: u64| {
            let from = &tables[usize::try_from(at - start).unwrap()..];
            let table = &from[..number(&from[4..8]) as usize];
            assert_eq!(sum(table), 0, "{}", text(&table[..4]));
            table
        };
        let rsdp = &memory[RSDP].1;
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp)), (&b"RSD PTR "[..], 0, 0));
        let xsdt = table(number(&rsdp[24..32]));
        let found: Vec<&[u8]> = xsdt[36..].chunks(8).map(|entry| table(number(entry))).collect();
        let names: Vec<&str> = found.iter().map(|table| text(&table[..4])).collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG", "SRAT"]);
        let fadt = found[0];
        assert_eq!(&table(number(&fadt[40..44]))[..4], b"DSDT");
        assert_eq!(&table(number(&fadt[140..148]))[..4], b"DSDT");
        let facs = number(&fadt[36..40]);
        assert!(facs.is_multiple_of(64));
        assert_eq!(&tables[(facs - start) as usize..][..4], b"FACS");
    }

    #[test]
    fn the_tables_are_those_of_a_start_without_firmware() {
        let (platform, ram) = machine();
        let files = all();
        let direct = acpi::tables(&platform, &ram, scratch(), Gpa(scratch().start().0 - 64)).unwrap();
        for table in direct
            .tables
            .iter()
            .filter(|table| matches!(&table.bytes[..4], b"DSDT" | b"APIC" | b"MCFG" | b"SRAT"))
        {
            let offset = (table.at.0 + 64 - scratch().start().0) as usize;
            assert_eq!(files[TABLES][offset..][..table.bytes.len()], table.bytes);
        }
    }

    #[test]
    fn the_memory_map_has_all_ram_and_configuration_space() {
        let files = all();
        let entries: Vec<_> = files["etc/e820"]
            .chunks(20)
            .map(|entry| (number(&entry[..8]), number(&entry[8..16]), number(&entry[16..])))
            .collect();
        assert_eq!(entries, [(0, 3 << 30, 1), (4 << 30, 1 << 30, 1), (0xe000_0000, 256 << 20, 2)]);
    }

    #[test]
    fn the_firmwares_64_bit_window_lies_in_that_of_the_bus() {
        let range = |start, end: u64| GpaRange::new(Gpa(start), end - start).unwrap();
        let (gib, tib) = (1 << 30, 1 << 40);
        let small = Ram::new(&memory::ram_ranges(512 << 20)).unwrap();
        let size = |window| window64(window, &small).map(|mib| mib >> 10);
        assert_eq!(size(range(4 * gib, 512 * gib)), Some(64), "39 bits: 64 GiB from 64 GiB on");
        assert_eq!(size(range(4 * gib, tib)), Some(128));
        assert_eq!(size(range(4 * gib, 1012 * gib)), Some(128), "AMD's hole");
        assert_eq!(size(range(tib, 256 * tib)), None, "the last eighth");
        assert_eq!(size(range(60 * gib, 64 * gib)), None, "not behind RAM");
        assert_eq!(size(range(4 * gib, 9 * gib)), Some(2));
        let files = all();
        assert!(!files.contains_key("opt/ovmf/X-PciMmio64Mb"), "the window of this machine ends above 1 TiB");
    }

    #[test]
    fn smbios_is_an_anchor_and_its_structures() {
        let files = all();
        let anchor = &files["etc/smbios/smbios-anchor"];
        assert_eq!((&anchor[..5], anchor.len()), (&b"_SM3_"[..], 24));
        assert_eq!(number(&anchor[12..16]), files["etc/smbios/smbios-tables"].len() as u64);
    }
}
