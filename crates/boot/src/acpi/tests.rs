use std::process::Command;

use acpi_tables::aml::{EISAName, Name, Path};

use super::*;
use crate::map::low;
use crate::platform::tests::{platform, range};
use crate::platform::{Cpus, Ecam};

fn built(platform: &Platform) -> AcpiTables {
    tables(platform, &ram(), low::acpi(), low::FACS).unwrap()
}

fn cpus(count: u32) -> Cpus {
    Cpus::new(1, count, 1).unwrap()
}

/// The one table with this signature.
fn find<'a>(tables: &'a AcpiTables, signature: &[u8]) -> &'a PlacedTable {
    tables.tables.iter().find(|table| table.bytes.starts_with(signature)).expect("the table is there")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn ram() -> Ram {
    Ram::new(&memory::ram_ranges(4 << 30)).unwrap()
}

#[test]
fn all_cpus_and_all_ram_belong_to_one_node() {
    let tables = built(&platform(cpus(2)));
    let srat = &find(&tables, b"SRAT").bytes;
    assert_eq!(u32_at(srat, 36), 1);
    let (cpus, ram) = srat[48..].split_at(2 * 24);
    assert_eq!((cpus[0], cpus[24], u32_at(cpus, 32)), (2, 2, 1));
    let ranges: Vec<_> =
        ram.chunks(40).map(|entry| (entry[0], u64_at(entry, 8), u64_at(entry, 16))).collect();
    assert_eq!(ranges, [(1, 0, 3 << 30), (1, 4 << 30, 1 << 30)]);
}

#[test]
fn every_checksum_is_right_and_every_length_is_the_tables() {
    let tables = built(&platform(cpus(300)));
    for table in &tables.tables {
        let signature = String::from_utf8_lossy(&table.bytes[..4]);
        match &*signature {
            "RSD " => assert_eq!((sum(&table.bytes[..20]), sum(&table.bytes)), (0, 0)),
            "FACS" => {}
            _ => assert_eq!(sum(&table.bytes), 0, "{signature}"),
        }
        let length_at = if signature == "RSD " { 20 } else { 4 };
        assert_eq!(u32_at(&table.bytes, length_at) as usize, table.bytes.len(), "{signature}");
    }
}

#[test]
fn the_rsdp_leads_to_every_table() {
    let tables = built(&platform(cpus(2)));
    let rsdp = find(&tables, b"RSD PTR ");
    assert_eq!((tables.rsdp, rsdp.at), (Gpa(0xe_0000), Gpa(0xe_0000)));
    let xsdt = find(&tables, b"XSDT");
    assert_eq!(u64_at(&rsdp.bytes, 24), xsdt.at.0);
    let listed: Vec<_> = xsdt.bytes[36..].chunks(8).map(|entry| u64_at(entry, 0)).collect();
    assert_eq!(listed, [b"FACP", b"APIC", b"MCFG", b"SRAT"].map(|signature| find(&tables, signature).at.0));
    let fadt = &find(&tables, b"FACP").bytes;
    assert_eq!(u64::from(u32_at(fadt, 36)), find(&tables, b"FACS").at.0);
    assert_eq!(u64_at(fadt, 140), find(&tables, b"DSDT").at.0);
}

#[test]
fn the_tables_lie_apart_inside_their_place() {
    let tables = built(&platform(cpus(800)));
    let mut ranges: Vec<_> =
        tables.tables.iter().map(|table| range(table.at.0, table.bytes.len() as u64)).collect();
    ranges.sort_by_key(|range| range.start());
    assert!(ranges.windows(2).all(|pair| !pair[0].overlaps(pair[1])), "{ranges:?}");
    // The FACS is first, for it lies outside; it needs an address that is a multiple of 64.
    assert_eq!(ranges[0], range(low::FACS.0, 64));
    assert!(ranges[1..].iter().all(|range| low::acpi().covers(*range)));
}

#[test]
fn too_many_cpus_for_the_tables_is_an_error_that_says_so() {
    let error = tables(&platform(cpus(4096)), &ram(), low::acpi(), low::FACS).unwrap_err();
    assert!(error.to_string().starts_with("the ACPI tables take "), "{error}");
    assert!(error.to_string().ends_with("room for 65536 at 0xe0000-0xeffff. Use fewer CPUs."), "{error}");
}

#[test]
fn the_fadt_names_the_fixed_ports() {
    let mut described = platform(cpus(1));
    let tables = built(&described);
    let fadt = &find(&tables, b"FACP").bytes;
    assert_eq!(fadt[46], 9, "SCI");
    assert_eq!((u32_at(fadt, 48), fadt[52]), (0, 0), "no SMI command port: always in ACPI mode");
    assert_eq!([u32_at(fadt, 56), u32_at(fadt, 64), u32_at(fadt, 76)], [0xb000, 0xb004, 0xb008]);
    assert_eq!([fadt[88], fadt[89], fadt[91]], [4, 2, 4]);
    // WBINVD, C1, no sleep button, clock not fixed, reset register; power button fixed, not reduced.
    assert_eq!(u32_at(fadt, 112), 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10);
    // Reset register: I/O, 8 bits, at 0xcf9; value 6.
    assert_eq!((&fadt[116..120], u64_at(fadt, 120), fadt[128]), (&[1, 8, 0, 1][..], 0xcf9, 6));
    assert_eq!((&fadt[148..152], u64_at(fadt, 152)), (&[1, 32, 0, 2][..], 0xb000));
    assert_eq!(fadt[109], 1 << 0 | 1 << 2, "a serial port, and neither keyboard controller nor VGA");
    assert_eq!(fadt[108], 0x32, "the century's register");
    assert_eq!((u32_at(fadt, 80), u32_at(fadt, 84), &fadt[92..94]), (0, 0, &[0, 0][..]), "no events");
    described.i8042 = true;
    described.vga = true;
    assert_eq!(find(&built(&described), b"FACP").bytes[109], 1 << 0 | 1 << 1);
}

#[test]
fn the_tables_are_those_of_acpi_6_5() {
    let tables = built(&platform(cpus(2)));
    let revision = |signature: &[u8], at: usize| find(&tables, signature).bytes[at];
    let headers = [b"FACP", b"APIC", b"DSDT", b"XSDT", b"MCFG", b"SRAT"].map(|name| revision(name, 8));
    assert_eq!(headers, [6, 6, 2, 1, 1, 3]);
    assert_eq!((revision(b"FACP", 131), revision(b"FACS", 32), revision(b"RSD PTR ", 15)), (5, 2, 2));
}

#[test]
fn every_cpu_of_the_madt_is_a_device_of_the_dsdt_by_the_same_number() {
    let tables = built(&platform(Cpus::new(2, 3, 43).unwrap()));
    let Some(text) = disassembled(&find(&tables, b"DSDT").bytes) else { return };
    let devices: Vec<u32> = text
        .split("Device (C")
        .skip(1)
        .filter(|device| device.contains("\"ACPI0007\""))
        .map(|device| {
            let uid = device.split("_UID, ").nth(1).unwrap().split([')', ' ']).next().unwrap();
            uid.strip_prefix("0x").map_or_else(
                || if uid == "Zero" { 0 } else { 1 },
                |digits| u32::from_str_radix(digits, 16).unwrap(),
            )
        })
        .collect();
    let madt = &find(&tables, b"APIC").bytes;
    let listed: Vec<u32> = madt_entries(madt)
        .into_iter()
        .filter_map(|entry| match entry[0] {
            0 => Some(u32::from(entry[2])),
            9 => Some(u32_at(entry, 12)),
            _ => None,
        })
        .collect();
    assert_eq!((devices.len(), &devices), (258, &listed));
}

/// The entries of a MADT.
fn madt_entries(madt: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut entries) = (&madt[44..], Vec::new());
    while !rest.is_empty() {
        let (entry, behind) = rest.split_at(usize::from(rest[1]));
        entries.push(entry);
        rest = behind;
    }
    entries
}

#[test]
fn the_madt_has_a_cpu_for_each_apic_id_and_the_wide_form_above_254() {
    let tables = built(&platform(cpus(257)));
    let madt = &find(&tables, b"APIC").bytes;
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
    let entries = madt_entries(madt);
    assert_eq!(entries[..2], [[0, 8, 0, 0, 1, 0, 0, 0], [0, 8, 1, 1, 1, 0, 0, 0]]);
    assert_eq!(entries[254], [0, 8, 254, 254, 1, 0, 0, 0]);
    assert_eq!(entries[255], [9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0]);
    assert_eq!(entries[257], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(entries[258], [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!(entries[259], [2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
    assert_eq!(entries[260], [4, 6, 0xff, 0, 0, 1]);
    assert_eq!(entries[261][..2], [10, 12]);
}

#[test]
fn the_mcfg_names_configuration_space() {
    let mut platform = platform(cpus(1));
    platform.pci.ecam = Ecam::new(range(0xe020_0000, 6 << 20), 2).unwrap();
    let tables = built(&platform);
    let mcfg = &find(&tables, b"MCFG").bytes;
    assert_eq!((u64_at(mcfg, 44), &mcfg[52..56]), (0xe000_0000, &[0, 0, 2, 7][..]));
}

/// Writes a table to a file and disassembles it; `None` when there is no disassembler here.
fn disassembled(table: &[u8]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("table.aml");
    std::fs::write(&file, table).unwrap();
    let Ok(run) = Command::new("iasl").arg("-d").arg(&file).output() else {
        eprintln!("skipped: iasl is not installed (Debian package acpica-tools)");
        return None;
    };
    let said = [run.stdout, run.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(run.status.success(), "{said}");
    for word in ["Error", "Warning", "Invalid", "ncorrect", "Could not"] {
        assert!(!said.contains(word), "{said}");
    }
    Some(std::fs::read_to_string(file.with_extension("dsl")).unwrap())
}

/// Compiles source; asserts that there is nothing to complain about.
fn compiles_cleanly(source: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("table.dsl");
    std::fs::write(&file, source).unwrap();
    let run = Command::new("iasl").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
}

#[test]
fn iasl_disassembles_every_table_without_complaint() {
    let mut described = platform(cpus(300));
    described.i8042 = true;
    described.tpm = true;
    for table in built(&described).tables {
        if !table.bytes.starts_with(b"RSD ") {
            let Some(text) = disassembled(&table.bytes) else { return };
            for word in ["Error", "Warning", "ncorrect checksum", "Unknown"] {
                assert!(!text.contains(word), "{text}");
            }
        }
    }
}

#[test]
fn iasl_compiles_the_dsdt_again_without_warnings() {
    let mut described = platform(cpus(1));
    (described.i8042, described.firmware, described.tpm) = (true, true, true);
    let tables = built(&described);
    let Some(text) = disassembled(&find(&tables, b"DSDT").bytes) else { return };
    compiles_cleanly(&text);
    for words in [
        "Name (_HID, EisaId (\"PNP0A08\")",
        "PNP0C02",
        "PNP0501",
        "PNP0B00",
        "PNP0303",
        "QEMU0002",
        "0xB03F",
        "MSFT0101",
        "_S5",
        "_OSC",
        "PNP0000",
        "PNP0100",
    ] {
        assert!(text.contains(words), "{words} is missing in {text}");
    }
}

#[test]
fn every_pin_of_every_device_is_wired_to_an_input_of_its_own_row() {
    let dsdt = find(&built(&platform(cpus(1))), b"DSDT").bytes.clone();
    for device in 0..32u32 {
        for pin in 0..4u8 {
            let expected = super::bytes(&acpi_tables::aml::Package::new(vec![
                &(device << 16 | 0xffff),
                &pin,
                &0u8,
                &(16 + (device + u32::from(pin)) % 8),
            ]));
            assert_eq!(dsdt.windows(expected.len()).filter(|bytes| *bytes == expected).count(), 1);
        }
    }
}

#[test]
fn soft_off_is_sleep_type_0_and_a_keyboard_is_there_only_when_told() {
    let mut described = platform(cpus(1));
    let without = find(&built(&described), b"DSDT").bytes.clone();
    let soft_off = b"\x08_S5_\x12\x06\x04\0\0\0\0";
    assert!(without.windows(soft_off.len()).any(|bytes| bytes == soft_off));
    described.i8042 = true;
    let with = find(&built(&described), b"DSDT").bytes.clone();
    let keyboard = super::bytes(&Name::new(Path::new("_HID"), &EISAName::new("PNP0303")));
    assert!(with.windows(keyboard.len()).any(|bytes| bytes == keyboard));
    assert!(!without.windows(keyboard.len()).any(|bytes| bytes == keyboard));
}

#[test]
fn a_tpm_is_in_the_tables_only_when_told_with_its_crb_and_no_area_for_a_log() {
    let mut described = platform(cpus(1));
    let hid = super::bytes(&Name::new(Path::new("_HID"), &"MSFT0101"));
    let has_device =
        |tables: &AcpiTables| find(tables, b"DSDT").bytes.windows(hid.len()).any(|bytes| bytes == hid);
    let without = built(&described);
    assert!(!has_device(&without) && !without.tables.iter().any(|table| table.bytes.starts_with(b"TPM2")));
    described.tpm = true;
    let with = built(&described);
    let tpm2 = find(&with, b"TPM2");
    assert!(has_device(&with));
    assert_eq!((tpm2.bytes.len(), u64_at(&tpm2.bytes, 40), u32_at(&tpm2.bytes, 48)), (52, 0xfed4_0040, 7));
    assert_eq!(sum(&tpm2.bytes), 0);
    let xsdt = &find(&with, b"XSDT").bytes;
    assert_eq!(u64_at(xsdt, xsdt.len() - 8), tpm2.at.0);
}
