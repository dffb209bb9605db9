//! Kernel modules: loaded by name, or by what the devices that are present say of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab::modules::{Aliases, Dependencies, canonical};

/// Where devices tell their `modalias`.
const BUSES: [&str; 6] = ["pci", "virtio", "usb", "scsi", "platform", "acpi"];

/// Parameters that save time: a USB disk here needs no second to settle.
const PARAMETERS: [(&str, &str); 1] = [("usb_storage", "delay_use=0")];

/// The modules of the running kernel.
pub struct Drivers {
    folder: String,
    dependencies: Dependencies,
    aliases: Aliases,
    loaded: Mutex<BTreeMap<String, Arc<OnceLock<Option<String>>>>>,
}

impl Drivers {
    /// The modules in the initramfs; none when everything is built in.
    pub fn of_this_kernel() -> Drivers {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let folder = format!("/lib/modules/{}", release.trim());
        let read = |name| fs::read_to_string(format!("{folder}/{name}")).unwrap_or_default();
        Drivers {
            dependencies: Dependencies::parse(&read("modules.dep")),
            aliases: Aliases::parse(&read("modules.alias")),
            loaded: Mutex::default(),
            folder,
        }
    }

    /// Loads modules and what they need, in order; the first error that matters.
    pub fn load(&self, names: &[&str]) -> io::Result<()> {
        for name in self.dependencies.in_order(names.iter().copied()) {
            let load = {
                let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(loaded.entry(name.clone()).or_default())
            };
            // Whoever comes second waits for the first: what it loads next may need this module.
            let complaint = load.get_or_init(|| self.insert(&name).err().map(|error| error.to_string()));
            if let Some(why) = complaint {
                return Err(io::Error::other(format!("cannot load module {name}: {why}")));
            }
        }
        Ok(())
    }

    fn insert(&self, name: &str) -> io::Result<()> {
        insert(&format!("{}/{}", self.folder, self.dependencies.path(name).unwrap_or_default()), name)
    }

    /// Loads drivers for the devices that are present, also for those that appear by it. Returns complaints.
    pub fn load_for_devices(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut seen = BTreeSet::new();
        loop {
            let mut wanted = BTreeSet::new();
            for modalias in modaliases().into_iter().filter(|modalias| seen.insert(modalias.clone())) {
                wanted.extend(self.aliases.drivers(&modalias).map(str::to_owned));
            }
            if wanted.is_empty() {
                return complaints;
            }
            for module in wanted {
                complaints.extend(self.load(&[&module]).err().map(|error| error.to_string()));
            }
        }
    }

    /// Loads drivers until there are `disks` disks, or until `limit` is over.
    pub fn load_until_disks(&self, disks: usize, limit: Duration) -> (Vec<String>, usize) {
        let deadline = Instant::now() + limit;
        let mut complaints = self.load_for_devices();
        loop {
            let found = disk_count();
            if found >= disks || Instant::now() > deadline {
                return (complaints, found);
            }
            thread::sleep(Duration::from_millis(5));
            complaints.extend(self.load_for_devices());
        }
    }
}

/// What every device says of itself.
fn modaliases() -> BTreeSet<String> {
    BUSES
        .iter()
        .filter_map(|bus| fs::read_dir(format!("/sys/bus/{bus}/devices")).ok())
        .flat_map(Iterator::flatten)
        .filter_map(|device| fs::read_to_string(device.path().join("modalias")).ok())
        .map(|modalias| modalias.trim().to_owned())
        .collect()
}

/// How many disks there are that hang on the PCI bus: those that a kernel makes up for itself do not count.
pub fn disk_count() -> usize {
    let Ok(disks) = fs::read_dir("/sys/block") else { return 0 };
    disks.flatten().filter(|disk| on_pci(&disk.path()) && has_size(&disk.path())).count()
}

fn on_pci(disk: &Path) -> bool {
    fs::canonicalize(disk).is_ok_and(|path| path.starts_with("/sys/devices/pci0000:00"))
}

/// An optical drive without a disc, and a disk that is still being looked at, have none.
fn has_size(disk: &Path) -> bool {
    fs::read_to_string(disk.join("size")).is_ok_and(|size| size.trim() != "0")
}

fn insert(path: &str, name: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let parameters = PARAMETERS.iter().find(|(module, _)| canonical(module) == name).map_or("", |(_, p)| p);
    let parameters = CString::new(parameters)?;
    let parameters: &CStr = &parameters;
    // SAFETY: the descriptor is open and the parameters are a C string, both through the call.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}
