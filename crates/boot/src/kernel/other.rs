//! What a file is when it is no kernel: words for the error.

use super::Header;

/// Marks, where they are, and what they mean, with the way out where there is one.
const KNOWN: &[(usize, &[u8], &str)] = &[
    (0, b"\x1f\x8b", "gzip-compressed data (unpack it first: gzip -d)"),
    (0, b"\xfd7zXZ\0", "xz-compressed data (unpack it first: xz -d)"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data (unpack it first: zstd -d)"),
    (0, b"\x02\x21\x4c\x18", "lz4-compressed data (unpack it first: lz4 -d)"),
    (0, b"\x04\x22\x4d\x18", "lz4-compressed data (unpack it first: lz4 -d)"),
    (0, b"BZh", "bzip2-compressed data (unpack it first: bzip2 -d)"),
    (0, b"\x5d\0\0", "lzma-compressed data (unpack it first: unlzma)"),
    (0, b"070701", "an initramfs archive (are kernel and initrd swapped?)"),
    (0, b"070702", "an initramfs archive (are kernel and initrd swapped?)"),
    (0, b"QFI\xfb", "a qcow2 disk image (give it with --disk)"),
    (0, b"KDMV", "a vmdk disk image (give it with --disk)"),
    (0, b"vhdxfile", "a vhdx disk image"),
    (0, b"conectix", "a vhd disk image"),
    (0, b"!<arch>\n", "an archive, as Debian's packages are (unpack it first: dpkg-deb -x)"),
    (0, b"\xed\xab\xee\xdb", "an RPM package (unpack it first: rpm2archive)"),
    (0, b"#!", "a script"),
    (0x28, b"_FVH", "UEFI firmware (give it with --firmware)"),
    (0x38, b"ARM\x64", "a kernel for 64-bit Arm"),
    (0x24, b"\x18\x28\x6f\x01", "a kernel for 32-bit Arm"),
    (0x38, b"RSC\x05", "a kernel for RISC-V"),
    (0, b"\x27\x05\x19\x56", "an image for U-Boot (uImage), as other CPUs use"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree, or an image for U-Boot (FIT), as other CPUs use"),
    (4, b"zimg", "a UEFI application that unpacks a kernel for another CPU (EFI zboot)"),
    (0x8001, b"CD001", "a CD image (give it as a CD drive's disc, and as the kernel the one that is in it)"),
    (0x200, b"EFI PART", "a disk image (give it with --disk, and as the kernel the one that is in it)"),
    (0x202, b"HdrS", "a Linux boot sector without its 0xaa55 signature"),
    (0x1fe, b"\x55\xaa", "a boot sector or a disk image without a Linux boot header"),
];

/// Names what begins with these bytes.
pub(super) fn describe(start: &[u8]) -> String {
    if start.is_empty() {
        return "an empty file".into();
    }
    let has = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let found = KNOWN.iter().find(|(at, magic, _)| has(*at, magic)).map(|(_, _, what)| (*what).to_owned());
    // Firmware's programs have a stub for DOS before them, which may look like a boot sector; kernels for other CPUs look
    // like them.
    let is_kernel = has(0x38, b"ARM\x64") || has(0x38, b"RSC\x05");
    if !is_kernel && let Some(application) = application(start) {
        return application;
    }
    found.unwrap_or_else(|| {
        if start.iter().all(|byte| *byte == 0) {
            return "a file that begins with zeroes".into();
        }
        let bytes: Vec<_> = start.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("a file of an unknown kind (it begins with {})", bytes.join(" "))
    })
}

/// Names a program of UEFI or Windows. Microsoft PE/COFF Specification, 3.3, 3.4 and 4.
fn application(start: &[u8]) -> Option<String> {
    if !start.starts_with(b"MZ") {
        return None;
    }
    let header = Header(start);
    let at = header.u32(0x3c)? as usize;
    if start.get(at..at.checked_add(4)?) != Some(b"PE\0\0") {
        return Some("an EFI or Windows application without a Linux boot header".into());
    }
    let (machine, sections) = (header.u16(at + 4)?, header.u16(at + 6)?);
    let cpu = match machine {
        0x8664 => "x86-64",
        0x14c => "32-bit x86",
        0xaa64 => "64-bit Arm",
        0x1c2 | 0x1c4 => "32-bit Arm",
        0x5064 => "RISC-V",
        0x6264 => "LoongArch",
        _ => "other CPUs",
    };
    let table = at + 24 + usize::from(header.u16(at + 20)?);
    let mut names = (0..usize::from(sections)).map_while(|n| start.get(table + n * 40..)?.get(..8));
    if names.any(|name| name == b".linux\0\0") {
        let how = "objcopy -O binary --only-section=.linux IMAGE KERNEL, and .initrd and .cmdline alike";
        return Some(format!(
            "a unified kernel image for UEFI on {cpu} (take the kernel out of it first: {how})"
        ));
    }
    // Subsystem: 10 is an application, 11 and 12 are drivers.
    Some(match header.u16(at + 24 + 68)? {
        10..=12 => format!("a UEFI application for {cpu} (it needs UEFI firmware: add --firmware auto)"),
        _ => format!("a Windows program for {cpu}"),
    })
}

#[cfg(test)]
mod tests {
    use super::KNOWN;
    use crate::KernelImage;

    fn said(bytes: &[u8]) -> String {
        KernelImage::from_bytes("it", bytes.to_vec()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_kernel_is_called_by_its_name() {
        assert!(said(b"").starts_with("it is an empty file, not a kernel"));
        assert!(said(b"\x04\x22\x4d\x18....").contains("lz4-compressed"));
        assert!(said(b"070701000").contains("swapped"));
        assert!(said(b"MZ and no more").contains("unknown kind (it begins with 4d 5a 20 61)"));
        assert!(said(&[0; 600]).contains("begins with zeroes"));
        assert!(said(b"hello").contains("unknown kind (it begins with 68 65 6c 6c)"));
        let mut sector = [0; 512];
        sector[0x1fe..].copy_from_slice(&[0x55, 0xaa]);
        assert!(said(&sector).contains("boot sector"));
    }

    #[test]
    fn every_mark_is_found_where_it_is() {
        for (at, magic, what) in KNOWN.iter().filter(|(_, _, what)| !what.contains("unpack it first: ")) {
            let mut bytes = vec![0; 0x9000];
            bytes[*at..at + magic.len()].copy_from_slice(magic);
            assert!(said(&bytes).contains(what), "{what}");
        }
    }

    /// A program's headers with one section.
    fn program(machine: u16, subsystem: u16, section: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, b"MZ");
        put(0x3c, &[0x80]);
        put(0x80, b"PE\0\0");
        put(0x84, &machine.to_le_bytes());
        put(0x86, &[1]);
        put(0x94, &[0xf0]);
        put(0x98 + 68, &subsystem.to_le_bytes());
        put(0x98 + 0xf0, section);
        put(0x1fe, &[0x55, 0xaa]);
        bytes
    }

    #[test]
    fn programs_of_firmware_are_told_from_unified_kernels_and_from_others() {
        assert!(
            said(&program(0x8664, 10, b".text"))
                .contains("a UEFI application for x86-64 (it needs UEFI firmware")
        );
        assert!(said(&program(0x14c, 11, b".text")).contains("a UEFI application for 32-bit x86"));
        assert!(said(&program(0x8664, 3, b".text")).contains("a Windows program for x86-64"));
        let unified = said(&program(0x8664, 10, b".linux"));
        assert!(unified.contains("objcopy -O binary --only-section=.linux IMAGE KERNEL"), "{unified}");
        let mut arm = program(0xaa64, 10, b".text");
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert!(said(&arm).contains("a kernel for 64-bit Arm"));
        for len in 0..0x200 {
            said(&program(0x8664, 10, b".linux")[..len]);
        }
    }
}
