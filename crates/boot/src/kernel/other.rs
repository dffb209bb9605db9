//! What a file is when it is no kernel: words for the error.

/// Names what begins with these bytes.
pub(super) fn describe(start: &[u8]) -> String {
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
        (0, b"QFI\xfb", "a qcow2 disk image"),
        (0, b"#!", "a script"),
        (0x38, b"ARM\x64", "a kernel for 64-bit Arm"),
        (0x8001, b"CD001", "a CD image"),
        (4, b"zimg", "an EFI application that unpacks a kernel (EFI zboot)"),
        (0, b"MZ", "an EFI or Windows application without a Linux boot header"),
        (0x202, b"HdrS", "a Linux boot sector without its 0xaa55 signature"),
        (0x1fe, b"\x55\xaa", "a boot sector or a disk image without a Linux boot header"),
    ];
    if start.is_empty() {
        return "an empty file".into();
    }
    let found =
        KNOWN.iter().find(|(at, magic, _)| start.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    match found {
        Some((_, _, what)) => (*what).into(),
        None if start.iter().all(|byte| *byte == 0) => "a file that begins with zeroes".into(),
        None => {
            let bytes: Vec<_> = start.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            format!("a file of an unknown kind (it begins with {})", bytes.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::KernelImage;

    #[test]
    fn what_is_no_kernel_is_called_by_its_name() {
        let said = |bytes: &[u8]| KernelImage::from_bytes("it", bytes.to_vec()).unwrap_err().to_string();
        assert!(said(b"").starts_with("it is an empty file, not a kernel"));
        assert!(said(b"\x1f\x8b\x08").contains("gzip-compressed"));
        assert!(said(b"\x28\xb5\x2f\xfd....").contains("zstd-compressed"));
        assert!(said(b"070701000").contains("swapped"));
        assert!(said(b"MZ and no more").contains("EFI or Windows application without"));
        assert!(said(&[0; 600]).contains("begins with zeroes"));
        assert!(said(b"hello").contains("unknown kind (it begins with 68 65 6c 6c)"));
        let mut sector = [0; 512];
        sector[0x1fe..].copy_from_slice(&[0x55, 0xaa]);
        assert!(said(&sector).contains("boot sector"));
    }
}
