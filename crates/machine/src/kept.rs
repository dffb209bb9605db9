//! What outlives a VM: it lies in a folder of the VM's name.

use std::path::{Path, PathBuf};

use config::VmName;

const ROOT: &str = "/var/lib/skep";
/// In such a folder: the variables of the firmware, and the folder with the TPM's state.
pub const VARIABLES: &str = "firmware-vars.fd";
pub const TPM: &str = "tpm2";

/// The folder that the VM of this name keeps what outlives it in.
pub fn folder(name: &VmName) -> PathBuf {
    Path::new(ROOT).join(name.as_str())
}

/// Whether a file, by its path without links, is what some VM keeps.
pub fn is_kept(path: &Path) -> bool {
    let root = Path::new(ROOT).canonicalize().unwrap_or_else(|_| PathBuf::from(ROOT));
    is_kept_below(&root, path)
}

fn is_kept_below(root: &Path, path: &Path) -> bool {
    let Ok(below) = path.strip_prefix(root) else { return false };
    below
        .components()
        .nth(1)
        .is_some_and(|part| [VARIABLES, TPM].iter().any(|kept| part.as_os_str() == *kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_tpms_of_all_vms_are_kept_and_what_people_put_beside_them_is_not() {
        for (path, kept) in [
            ("/var/lib/skep/a/firmware-vars.fd", true),
            ("/var/lib/skep/b/tpm2/tpm2-00.permall", true),
            ("/var/lib/skep/b/console.log", false),
            ("/var/lib/skep/firmware-vars.fd", false),
            ("/srv/firmware-vars.fd", false),
        ] {
            assert_eq!(is_kept_below(Path::new(ROOT), Path::new(path)), kept, "{path}");
        }
    }
}
