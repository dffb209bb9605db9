//! SMBIOS: the machine's name plate, for dmidecode and for operating systems' inventories. SMBIOS 3.0.

use memory::{GpaRange, Ram};

use crate::platform::Platform;
use crate::{LoadError, PlacedTable};

pub(crate) const ENTRY_POINT: u64 = 24;
/// The structures begin here, behind the entry point, aligned to 16 bytes.
pub(crate) const STRUCTURES: u64 = 32;
const MAKER: &str = "skep";
const PRODUCT: &str = "skep";
const VERSION: &str = env!("CARGO_PKG_VERSION");

const MEMORY_ARRAY: u16 = 0x1000;
const UNKNOWN: u8 = 2;
/// "No error information structure."
const NO_ERROR_HANDLE: u16 = 0xfffe;

/// Builds the entry point and all structures for `place`.
pub fn tables(platform: &Platform, ram: &Ram, place: GpaRange) -> Result<PlacedTable, LoadError> {
    let mut table = Table::default();
    firmware(&mut table);
    system(&mut table, platform.uuid);
    chassis(&mut table);
    processors(&mut table, platform);
    memory(&mut table, ram);
    // 6.2 "System boot information": no errors. Then the end of the table.
    table.add(32, 0x2000, &[&[0; 6], &[0]], &[]);
    table.add(127, 0x7f00, &[], &[]);

    let len = STRUCTURES + table.bytes.len() as u64;
    if len > place.len() {
        return Err(LoadError::TablesTooLarge { what: "SMBIOS", len, place });
    }
    let mut bytes = entry_point(place.start().0 + STRUCTURES, table.bytes.len() as u32);
    bytes.resize(STRUCTURES as usize, 0);
    bytes.extend(table.bytes);
    Ok(PlacedTable { at: place.start(), bytes })
}

/// 5.2.2, the 64-bit entry point.
fn entry_point(structures: u64, len: u32) -> Vec<u8> {
    let (checksum, reserved, revision, docrev) = (0, 0, 1, 0);
    let mut bytes = Vec::from(b"_SM3_");
    bytes.extend([checksum, ENTRY_POINT as u8, 3, 0, docrev, revision, reserved]);
    bytes.extend(len.to_le_bytes());
    bytes.extend(structures.to_le_bytes());
    bytes[5] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    bytes
}

/// Structures one behind the other.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
}

impl Table {
    /// Adds a structure: header, fields, strings. Fields name strings by number from 1.
    fn add(&mut self, kind: u8, handle: u16, fields: &[&[u8]], strings: &[&str]) {
        let fields = fields.concat();
        self.bytes.extend([kind, 4 + fields.len() as u8]);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend(fields);
        for string in strings {
            self.bytes.extend(string.bytes());
            self.bytes.push(0);
        }
        // Strings end with an empty one; a structure without any has two zeroes.
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
    }
}

/// Type 0, 7.1.
fn firmware(table: &mut Table) {
    const NOT_SUPPORTED: u64 = 1 << 3;
    // Extension bytes: ACPI; virtual machine.
    const EXTENSION: [u8; 2] = [1, 1 << 4];
    let (maker, version, segment, date, rom_size) = (1, 2, 0xf000u16, 3, 0);
    let releases = [0xff; 4];
    table.add(
        0,
        0x0000,
        &[
            &[maker, version],
            &segment.to_le_bytes(),
            &[date, rom_size],
            &NOT_SUPPORTED.to_le_bytes(),
            &EXTENSION,
            &releases,
        ],
        &[MAKER, VERSION, "01/01/2026"],
    );
}

/// Type 1, 7.2. The UUID's first three fields are stored little-endian.
fn system(table: &mut Table, uuid: [u8; 16]) {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let uuid = order.map(|index: usize| uuid[index]);
    let (maker, product, version, none, power_switch) = (1, 2, 3, 0, 6);
    table.add(
        1,
        0x0100,
        &[&[maker, product, version, none], &uuid, &[power_switch, none, none]],
        &[MAKER, PRODUCT, VERSION],
    );
}

/// Type 3, 7.4.
fn chassis(table: &mut Table) {
    let (maker, other, none, safe) = (1, 1, 0, 3);
    let states = [safe, safe, safe, UNKNOWN];
    let rest = [0; 4 + 4];
    table.add(3, 0x0300, &[&[maker, other, none, none, none], &states, &rest, &[none]], &[MAKER]);
}

/// Type 4 for each socket, 7.5.
fn processors(table: &mut Table, platform: &Platform) {
    const CENTRAL: u8 = 3;
    const ENABLED: u8 = 0x41;
    const OTHER: u8 = 1;
    const NO_CACHE: [u8; 6] = [0xff; 6];
    const X86_64: u16 = 1 << 2;
    let cpus = platform.cpus;
    let (cores, threads) = (cpus.cores() as u16, (cpus.cores() * cpus.threads()) as u16);
    // Counts above 255 are said in 16 bits further behind.
    let (few_cores, few_threads) = (cores.min(255) as u8, threads.min(255) as u8);
    for socket in 0..cpus.sockets() {
        let (designation, maker, none) = (1, 2, 0);
        table.add(
            4,
            0x0400 + socket as u16,
            &[
                &[designation, CENTRAL, OTHER, maker],
                &[0; 8], // id: what CPUID says
                &[none, 0],
                &[0; 6], // clock and speeds: unknown
                &[ENABLED, OTHER],
                &NO_CACHE,
                &[none, none, none],
                &[few_cores, few_cores, few_threads],
                &X86_64.to_le_bytes(),
                &u16::from(OTHER).to_le_bytes(),
                &[cores, cores, threads].map(u16::to_le_bytes).concat(),
            ],
            &[&format!("CPU {socket}"), MAKER],
        );
    }
}

/// Types 16, 17 and 19: one array of one module that holds all RAM, and where it appears. 7.17, 7.18, 7.20.
fn memory(table: &mut Table, ram: &Ram) {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    /// The size is in the extended field.
    const IN_EXTENDED: u32 = 0x8000_0000;
    let (size, modules) = (ram.size(), 1u16);
    table.add(
        16,
        MEMORY_ARRAY,
        &[
            &[SYSTEM_BOARD, SYSTEM_MEMORY, NO_CORRECTION],
            &IN_EXTENDED.to_le_bytes(),
            &NO_ERROR_HANDLE.to_le_bytes(),
            &modules.to_le_bytes(),
            &size.to_le_bytes(),
        ],
        &[],
    );

    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const OTHER_DETAIL: u16 = 1 << 1;
    const WIDTH_UNKNOWN: u16 = 0xffff;
    let mib = (size >> 20) as u32;
    let (short, extended) = if mib < 0x7fff { (mib as u16, 0) } else { (0x7fff, mib) };
    let (locator, maker, none) = (1, 2, 0);
    table.add(
        17,
        0x1100,
        &[
            &MEMORY_ARRAY.to_le_bytes(),
            &NO_ERROR_HANDLE.to_le_bytes(),
            &[WIDTH_UNKNOWN.to_le_bytes(), WIDTH_UNKNOWN.to_le_bytes()].concat(),
            &short.to_le_bytes(),
            &[DIMM, none, locator, none, RAM],
            &OTHER_DETAIL.to_le_bytes(),
            &[0, 0], // speed: unknown
            &[maker, none, none, none, 0],
            &extended.to_le_bytes(),
            &[0; 2 + 6], // configured speed and voltages: unknown
        ],
        &["DIMM 0", MAKER],
    );

    const IN_EXTENDED_RANGE: u32 = u32::MAX;
    for (index, segment) in (0u16..).zip(ram.segments()) {
        let (start, last) = (segment.range().start().0, segment.range().end().0 - 1);
        // Short addresses count KiB.
        let kib = match (u32::try_from(start >> 10), u32::try_from(last >> 10)) {
            (Ok(start), Ok(last)) if last < IN_EXTENDED_RANGE => (start, last),
            _ => (IN_EXTENDED_RANGE, IN_EXTENDED_RANGE),
        };
        let (start, last) = if kib.0 == IN_EXTENDED_RANGE { (start, last) } else { (0, 0) };
        table.add(
            19,
            0x1300 + index,
            &[
                &[kib.0.to_le_bytes(), kib.1.to_le_bytes()].concat(),
                &MEMORY_ARRAY.to_le_bytes(),
                &[modules as u8],
                &[start.to_le_bytes(), last.to_le_bytes()].concat(),
            ],
            &[],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::low;
    use crate::platform::Cpus;
    use crate::platform::tests::platform;

    /// The structures of a table: formatted part and strings.
    fn structures(mut bytes: &[u8]) -> Vec<(&[u8], Vec<String>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (fields, rest) = bytes.split_at(usize::from(bytes[1]));
            let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings = rest[..end].split(|byte| *byte == 0).filter(|string| !string.is_empty());
            found.push((fields, strings.map(|string| String::from_utf8(string.to_vec()).unwrap()).collect()));
            bytes = &rest[end + 2..];
        }
        found
    }

    fn built(cpus: Cpus, size: u64) -> Vec<u8> {
        let ram = Ram::new(&memory::ram_ranges(size)).unwrap();
        tables(&platform(cpus), &ram, low::smbios()).unwrap().bytes
    }

    #[test]
    fn the_entry_point_checks_and_leads_to_the_structures() {
        let bytes = built(Cpus::new(1, 1, 1).unwrap(), 1 << 30);
        assert_eq!(&bytes[..5], b"_SM3_");
        assert_eq!(bytes[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(bytes[16..24], 0xf_0020u64.to_le_bytes());
        assert_eq!(bytes[12..16], (bytes.len() as u32 - 32).to_le_bytes());
    }

    #[test]
    fn structures_have_the_lengths_and_contents_of_smbios_3_0() {
        let bytes = built(Cpus::new(2, 300, 2).unwrap(), 64 << 30);
        let all = structures(&bytes[32..]);
        let kinds: Vec<_> = all.iter().map(|(fields, _)| (fields[0], fields.len())).collect();
        let expected = [
            (0, 24),
            (1, 27),
            (3, 22),
            (4, 48),
            (4, 48),
            (16, 23),
            (17, 40),
            (19, 31),
            (19, 31),
            (32, 11),
            (127, 4),
        ];
        assert_eq!(kinds, expected);

        let (system, strings) = &all[1];
        assert_eq!(system[8..24], *b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff");
        assert_eq!(strings, &["skep", "skep", env!("CARGO_PKG_VERSION")]);
        let (cpu, strings) = &all[4];
        assert_eq!((&cpu[35..38], &cpu[42..48]), (&[255, 255, 255][..], &[44, 1, 44, 1, 88, 2][..]));
        assert_eq!(strings[0], "CPU 1");
        let module = all[6].0;
        assert_eq!((&module[12..14], &module[28..32]), (&[0xff, 0x7f][..], &(64u32 << 10).to_le_bytes()[..]));
        let high = all[8].0;
        assert_eq!(high[4..8], (4u32 << 20).to_le_bytes());
        assert_eq!(high[8..12], ((65u32 << 20) - 1).to_le_bytes());
    }

    #[test]
    fn a_small_module_says_its_size_in_mib() {
        let bytes = built(Cpus::new(1, 1, 1).unwrap(), 256 << 20);
        let all = structures(&bytes[32..]);
        assert_eq!((&all[5].0[12..14], &all[5].0[28..32]), (&256u16.to_le_bytes()[..], &[0; 4][..]));
    }
}
