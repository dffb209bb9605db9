//! What the emulated host has to do for a guest: its NVMe controller, and how much memory a monitor takes.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::vmm::MEMORY;

const DEVICES: &str = "/sys/bus/pci/devices";
const NVME: &str = "0x010802";

/// The address of the first NVMe controller.
pub fn nvme() -> io::Result<String> {
    let mut found: Vec<String> = fs::read_dir(DEVICES)?
        .flatten()
        .filter(|device| {
            let class = fs::read_to_string(device.path().join("class"));
            class.is_ok_and(|class| class.trim() == NVME)
        })
        .map(|device| device.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    found.into_iter().next().ok_or_else(|| io::Error::other("this host has no NVMe controller"))
}

/// The disk on the host's SATA controller. (A kernel for labs may have emulated SCSI disks as well, and their order is
/// chance.)
pub fn sata() -> io::Result<String> {
    let disks = fs::read_dir("/sys/block")?.flatten();
    let is_ata = |vendor: io::Result<String>| vendor.is_ok_and(|vendor| vendor.trim() == "ATA");
    let mut found = disks.filter(|disk| is_ata(fs::read_to_string(disk.path().join("device/vendor"))));
    let disk = found.next().ok_or_else(|| io::Error::other("this host has no SATA disk"))?;
    Ok(format!("/dev/{}", disk.file_name().to_string_lossy()))
}

/// A device bound to vfio-pci; dropped, it goes back to its own driver. (The emulated NVMe controller loses its
/// interrupts when it is used twice without.)
pub struct Bound<'a>(&'a str);

impl Bound<'_> {
    /// Takes a device from its driver.
    pub fn to_vfio(device: &str) -> io::Result<Bound<'_>> {
        bind(device, "vfio-pci")?;
        Ok(Bound(device))
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if let Err(error) = bind(self.0, "") {
            eprintln!("lab-bench: cannot give {} back: {error}", self.0);
        }
    }
}

fn bind(device: &str, driver: &str) -> io::Result<()> {
    let at = format!("{DEVICES}/{device}");
    fs::write(format!("{at}/driver_override"), format!("{driver}\n"))?;
    if Path::new(&format!("{at}/driver")).exists() {
        fs::write(format!("{at}/driver/unbind"), device)?;
    }
    fs::write("/sys/bus/pci/drivers_probe", device)
}

/// Waits until the device is idle under its own driver, as it was before a guest had it.
pub fn settle(device: &str) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        let disks = fs::read_dir(format!("{DEVICES}/{device}/nvme"));
        let ready = disks.into_iter().flatten().flatten().any(|controller| {
            fs::read_to_string(controller.path().join("state")).is_ok_and(|state| state.trim() == "live")
        });
        if ready {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(io::Error::other(format!("{device} did not come back to the host's driver within 20 s")))
}

/// Memory of a process in KiB.
#[derive(Default)]
pub struct Memory {
    /// What is there.
    pub resident: u64,
    /// What of that is no file's.
    pub anonymous: u64,
}

/// The memory of a process without its guest's RAM: mappings as large as that are left out.
pub fn beside_ram(process: u32) -> io::Result<Memory> {
    let maps = fs::read_to_string(format!("/proc/{process}/smaps"))?;
    let number = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    let (mut memory, mut size) = (Memory::default(), 0);
    for line in maps.lines() {
        if line.starts_with("Size:") {
            size = number(line).unwrap_or(0);
        } else if line.starts_with("Rss:") && size < MEMORY << 10 {
            memory.resident += number(line).unwrap_or(0);
        } else if line.starts_with("Anonymous:") && size < MEMORY << 10 {
            memory.anonymous += number(line).unwrap_or(0);
        }
    }
    Ok(memory)
}

/// Has programs read in `/proc/meminfo` that there are so many KiB of free swap. The host has none, and a monitor refuses a
/// guest whose RAM could never be all there.
pub fn pretend_swap(kib: u64) -> io::Result<()> {
    const TRUE: &str = "/proc/meminfo";
    const FALSE: &str = "/tmp/meminfo";
    let line = |line: &str| match line.split_once(':') {
        Some((name @ ("SwapTotal" | "SwapFree"), _)) => format!("{name}: {kib} kB\n"),
        _ => format!("{line}\n"),
    };
    fs::write(FALSE, fs::read_to_string(TRUE)?.lines().map(line).collect::<String>())?;
    let (from, to, none) = (CString::new(FALSE)?, CString::new(TRUE)?, std::ptr::null());
    // SAFETY: the two paths are C strings that live through the call; a bind mount reads nothing else.
    let result = unsafe { libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where the program of this name begins in the memory of a process that runs it.
pub fn place(process: u32, program: &str) -> io::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let ending = format!("/{program}");
    let first = maps.lines().find(|line| line.ends_with(&ending)).and_then(|line| line.split('-').next());
    let start = first.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    start.ok_or_else(|| io::Error::other(format!("{program} is not in the memory of process {process}")))
}
