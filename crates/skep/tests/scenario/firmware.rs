//! UEFI firmware and boot loaders, from Debian's packages.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::packages;

/// So long a start by firmware may take, on a bad day.
pub const EACH_START: Duration = Duration::from_secs(400);

/// Defines `uefi ARGUMENTS...`: skep with the firmware in `/share`, and how it ended. A VM that does not end, as at a prompt
/// of firmware, is stopped in time: `PATIENCE` seconds, by the clock, so a multiple of what it takes on a bad day.
pub const UEFI: &str = r#"
    uefi() {
        skep run --name uefi --memory 512M --firmware /share/OVMF_CODE_4M.fd "$@" < /dev/null & VM=$!
        { sleep ${PATIENCE:-1200}; echo "host: it does not end"; kill $VM; sleep 5; kill $VM; } & LIMIT=$!
        wait $VM && ended=0 || ended=$?
        kill $LIMIT
        say "skep ended with $ended"
    }
"#;

/// Files of packages: package, path, name.
pub type Packaged = (&'static str, &'static str, &'static str);

pub const CODE: Packaged = ("ovmf", "./usr/share/OVMF/OVMF_CODE_4M.fd", "OVMF_CODE_4M.fd");
pub const VARS: Packaged = ("ovmf", "./usr/share/OVMF/OVMF_VARS_4M.fd", "OVMF_VARS_4M.fd");
pub const KEYS: Packaged = ("ovmf", "./usr/share/OVMF/OVMF_VARS_4M.ms.fd", "OVMF_VARS_4M.ms.fd");
pub const LOADER: Packaged =
    ("systemd-boot-efi", "./usr/lib/systemd/boot/efi/systemd-bootx64.efi", "loader.efi");
pub const SHIM: Packaged = ("shim-signed", "./usr/lib/shim/shimx64.efi.signed", "shim.efi");
pub const GRUB: Packaged =
    ("grub-efi-amd64-signed", "./usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "grub.efi");

/// These, in a folder.
pub fn put(files: &[Packaged], folder: &Path) {
    for (package, pattern, name) in files {
        let file = packages::file(package, pattern).unwrap_or_else(|why| panic!("{package}: {why}"));
        fs::copy(file, folder.join(name)).unwrap();
    }
}
