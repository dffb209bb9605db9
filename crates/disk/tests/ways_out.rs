//! What a refusal of an image tells the user to do, done: the command works for that format, and the copy has its data.

#[path = "subjects/qemu_img.rs"]
mod qemu_img;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use disk::{Disk, DiskOptions, Format};

/// Bytes of the disks.
const SIZE: usize = 4 << 20;
/// What images are encrypted with.
const KEY: &str = "abc";

/// Contents with holes, by which a wrong copy is found.
fn contents() -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..SIZE as u32 / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    bytes[1 << 20..2 << 20].fill(0);
    bytes
}

/// Runs a command in the folder; it must succeed.
fn run(folder: &Path, command: &str) {
    let said = qemu_img::output(Command::new("sh").args(["-c", command]).current_dir(folder)).unwrap();
    assert!(said.status.success(), "{command}: {}", String::from_utf8_lossy(&said.stderr));
}

/// The command that a refusal has in backquotes.
fn command_in(refusal: &str) -> &str {
    refusal.split('`').nth(1).unwrap_or_else(|| panic!("no command: {refusal}"))
}

/// A folder with `disk.raw`, and `disk` made of it with these options of `qemu-img convert`; `None` without qemu-img.
fn image(options: &str) -> Option<tempfile::TempDir> {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("skipped: there is no qemu-img. Get it with: cargo xtask setup tests");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("disk.raw"), contents()).unwrap();
    std::fs::write(folder.path().join("key"), KEY).unwrap();
    run(folder.path(), &format!("qemu-img convert -f raw {options} disk.raw disk"));
    Some(folder)
}

/// Does what the refusal says, and compares the copy with what the image was made of.
fn copies(options: &str, format: Option<Format>) {
    let Some(folder) = image(options) else { return };
    let said = refusal(folder.path(), format);
    let command =
        command_in(&said).replace("KEYFILE", "key").replace("IMAGE", "disk").replace("COPY", "copy");
    run(folder.path(), &command);
    Disk::open(&DiskOptions::new(folder.path().join("copy")).format(Format::Qcow2)).unwrap();
    run(folder.path(), "qemu-img convert -f qcow2 -O raw copy copy.raw");
    let copy = std::fs::read(folder.path().join("copy.raw")).unwrap();
    // Some formats have whole cylinders only.
    assert!(copy.len() >= SIZE && copy[..SIZE] == contents(), "{options}: {command}");
}

fn refusal(folder: &Path, format: Option<Format>) -> String {
    let mut options = DiskOptions::new(folder.join("disk")).read_only();
    if let Some(format) = format {
        options = options.format(format);
    }
    Disk::open(&options).unwrap_err().to_string()
}

#[test]
fn the_command_to_copy_an_image_of_a_foreign_format_works_for_it() {
    for options in [
        "-O qcow",
        "-O vdi",
        "-O vhdx",
        "-O vpc",
        "-O vpc -o subformat=fixed",
        "-O vpc -o subformat=fixed,force_size",
        "-O qed",
        "-O parallels",
        "-O vmdk",
    ] {
        copies(options, None);
    }
}

#[test]
fn the_command_to_copy_a_vmdk_image_that_is_not_flat_works_for_it() {
    for kind in ["monolithicSparse", "streamOptimized", "twoGbMaxExtentSparse"] {
        copies(&format!("-O vmdk -o subformat={kind}"), Some(Format::Vmdk));
    }
}

#[test]
fn the_command_to_copy_a_qcow2_image_with_features_that_are_unknown_works_for_them() {
    let secret = "--object secret,id=s,file=key -O qcow2 -o encrypt.key-secret=s";
    for options in [
        "-O qcow2 -c -o compression_type=zstd",
        "-O qcow2 -o extended_l2=on,cluster_size=128k",
        &format!("{secret},encrypt.format=luks,encrypt.iter-time=10"),
        &format!("{secret},encrypt.format=aes"),
    ] {
        copies(options, Some(Format::Qcow2));
    }
}

#[test]
fn the_command_to_repair_a_dirty_qcow2_image_makes_it_one_that_opens() {
    let Some(folder) = image("-O qcow2 -o lazy_refcounts=on") else { return };
    let path = folder.path().join("disk");
    // Bit 0 of the incompatible features (8 bytes, most significant first, at 72).
    File::options().write(true).open(&path).unwrap().write_all_at(&[1], 79).unwrap();
    let said = refusal(folder.path(), Some(Format::Qcow2));
    assert_eq!(command_in(&said), "qemu-img check -r all IMAGE", "{said}");
    run(folder.path(), &command_in(&said).replace("IMAGE", "disk"));
    Disk::open(&DiskOptions::new(&path).format(Format::Qcow2)).unwrap();
}

#[test]
fn flat_vmdk_images_of_one_and_of_many_files_are_read() {
    for kind in ["monolithicFlat", "twoGbMaxExtentFlat"] {
        let Some(folder) = image(&format!("-O vmdk -o subformat={kind}")) else { return };
        let options = DiskOptions::new(folder.path().join("disk")).format(Format::Vmdk).read_only();
        let disk = Disk::open(&options.chain([disk::Allowed::SameFolder])).unwrap();
        assert_eq!(disk.capacity().0 * 512, SIZE as u64, "{kind}");
    }
}

#[test]
fn what_is_encrypted_as_a_whole_is_to_be_opened_first() {
    let Some(folder) = image("--object secret,id=s,file=key -O luks -o key-secret=s,iter-time=10") else {
        return;
    };
    let said = refusal(folder.path(), None);
    assert!(said.contains("encrypted image (LUKS)"), "{said}");
    assert_eq!(command_in(&said), "cryptsetup open IMAGE NAME", "{said}");
}
