//! What outlives a VM: it lies in a folder of the VM's name.

use std::path::{Path, PathBuf};

use config::VmName;

/// The folder that the VM of this name keeps what outlives it in.
pub fn folder(name: &VmName) -> PathBuf {
    Path::new("/var/lib/skep").join(name.as_str())
}
