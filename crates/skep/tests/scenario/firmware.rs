//! OVMF of Debian's package, and a boot loader for it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::packages;

/// So long a start by firmware may take, on a bad day.
pub const EACH_START: Duration = Duration::from_secs(400);

/// OVMF and systemd's boot loader, in a folder.
pub fn files(folder: &Path) {
    for (package, pattern, name) in [
        ("ovmf", "./usr/share/OVMF/OVMF_CODE_4M.fd", "OVMF_CODE_4M.fd"),
        ("ovmf", "./usr/share/OVMF/OVMF_VARS_4M.fd", "OVMF_VARS_4M.fd"),
        ("systemd-boot-efi", "./usr/lib/systemd/boot/efi/systemd-bootx64.efi", "loader.efi"),
    ] {
        let file = packages::file(package, pattern).unwrap_or_else(|why| panic!("{package}: {why}"));
        fs::copy(file, folder.join(name)).unwrap();
    }
}
