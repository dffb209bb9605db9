//! VMs with firmware: OVMF of Debian's package.

use std::fs;
use std::path::Path;

use super::packages;

/// Defines `uefi ARGUMENTS...`: skep with the firmware in `/share`, and how it ended. A VM that does not end, as at a prompt
/// of firmware, is stopped in time.
pub const SCRIPT: &str = r#"
    uefi() {
        skep run --name uefi --memory 512M --firmware /share/OVMF_CODE_4M.fd "$@" < /dev/null & VM=$!
        { sleep ${PATIENCE:-700}; echo "host: it does not end"; kill $VM; sleep 5; kill $VM; } & LIMIT=$!
        wait $VM && ended=0 || ended=$?
        kill $LIMIT
        say "skep ended with $ended"
    }
"#;

/// Puts OVMF and its empty variables into a folder.
pub fn firmware(folder: &Path) {
    for name in ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"] {
        let file = packages::file("ovmf", &format!("./usr/share/OVMF/{name}"));
        fs::copy(file.unwrap_or_else(|why| panic!("ovmf: {why}")), folder.join(name)).unwrap();
    }
}
