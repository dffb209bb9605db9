//! The names of NVMe controllers, the same in every run.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::drivers::disk_count;

const DRIVER: &str = "/sys/bus/pci/drivers/nvme";

/// Linux probes all controllers at once and numbers them as they answer. Where that was not in the order of their
/// addresses, they are taken from the driver and given back one after the other. Returns once `disks` are there.
pub fn number_by_address(disks: usize, limit: Duration) -> io::Result<()> {
    let mut addresses = names(DRIVER)?;
    addresses.retain(|name| name.contains(':'));
    addresses.sort();
    let number = |address: &String| {
        let names = names(&format!("{DRIVER}/{address}/nvme")).unwrap_or_default();
        names.first().and_then(|name| name.strip_prefix("nvme")?.parse::<u32>().ok())
    };
    if addresses.iter().map(number).is_sorted() {
        return Ok(());
    }
    for file in ["unbind", "bind"] {
        for address in &addresses {
            fs::write(format!("{DRIVER}/{file}"), address)?;
        }
    }
    let deadline = Instant::now() + limit;
    while disk_count() < disks {
        if Instant::now() > deadline {
            return Err(io::Error::other("the NVMe disks did not come back from being put in order"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The names in a folder; none where there is no such folder.
fn names(folder: &str) -> io::Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
