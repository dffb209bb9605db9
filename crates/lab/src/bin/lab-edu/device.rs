//! The edu device (QEMU's docs/specs/edu.rst), by its BAR in sysfs.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::memory::Page;

/// Bytes that the device moves at most: its memory has 4 KiB, of which QEMU, to be sure, ends itself (!) when a
/// command touches the last.
pub const BUFFER: u64 = 4088;

const DEVICES: &str = "/sys/bus/pci/devices";
const BAR: usize = 1 << 20;
const LIVENESS: usize = 0x04;
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;
/// Where the device's memory is in its own addresses.
const OWN: u64 = 0x4_0000;
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
/// A command takes 100 ms by the device's own clock.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// Which way the data goes.
#[derive(Clone, Copy)]
pub enum Way {
    /// The device reads memory.
    Read,
    /// The device writes memory.
    Write,
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Way, String> {
        match text {
            "read" => Ok(Way::Read),
            "write" => Ok(Way::Write),
            other => Err(format!("a device can read or write, not {other:?}")),
        }
    }
}

/// The PCI addresses of all edu devices.
pub fn addresses() -> Result<Vec<String>, String> {
    let is_edu = |path: &Path| {
        let id = |name| fs::read_to_string(path.join(name)).unwrap_or_default().trim().to_owned();
        id("vendor") == "0x1234" && id("device") == "0x11e8"
    };
    let entries = fs::read_dir(DEVICES).map_err(|e| format!("{DEVICES}: {e}"))?;
    let mut found: Vec<String> = entries
        .flatten()
        .filter(|entry| is_edu(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    found.sort();
    if found.is_empty() { Err("there is no edu device here".into()) } else { Ok(found) }
}

/// An edu device with bus mastering on.
pub struct Edu {
    registers: NonNull<u64>,
    _bar: File,
    page: Page,
}

impl Edu {
    /// Opens the first one there is.
    pub fn open() -> Result<Edu, String> {
        let folder = PathBuf::from(DEVICES).join(&addresses()?[0]);
        let fail = |what: &'static str| move |e: std::io::Error| format!("cannot {what} the device: {e}");
        fs::write(folder.join("enable"), "1").map_err(fail("enable"))?;
        // Memory space and bus master, in the command register.
        let config = File::options().read(true).write(true).open(folder.join("config"));
        let config = config.map_err(fail("configure"))?;
        let mut command = [0; 2];
        config.read_exact_at(&mut command, 4).map_err(fail("configure"))?;
        command[0] |= 6;
        config.write_all_at(&command, 4).map_err(fail("configure"))?;
        let bar =
            File::options().read(true).write(true).custom_flags(libc::O_SYNC).open(folder.join("resource0"));
        let bar = bar.map_err(fail("open the registers of"))?;
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, where the kernel likes it, of a file that stays open beside it.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), BAR, access, shared, bar.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(fail("map")(std::io::Error::last_os_error()));
        }
        let registers = NonNull::new(at.cast()).ok_or("the device's registers are nowhere")?;
        let mut edu = Edu { registers, _bar: bar, page: Page::new()? };
        edu.is_alive()?;
        Ok(edu)
    }

    /// One command, up to its end.
    pub fn dma(&mut self, way: Way, address: u64, length: u64) -> Result<(), String> {
        if length == 0 || length > BUFFER {
            return Err(format!("the device moves 1 to {BUFFER} bytes, not {length}"));
        }
        let (source, destination, command) = match way {
            Way::Read => (address, OWN, START),
            Way::Write => (OWN, address, START | TO_MEMORY),
        };
        self.set(SOURCE, source);
        self.set(DESTINATION, destination);
        self.set(COUNT, length);
        self.set(COMMAND, command);
        let start = Instant::now();
        while self.get(COMMAND) & START != 0 {
            if start.elapsed() > COMMAND_LIMIT {
                return Err(format!("the device is still busy after {} s", COMMAND_LIMIT.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Fills the device's memory with this byte, by DMA from a page of ours.
    pub fn fill(&mut self, byte: u8) -> Result<(), String> {
        self.page.fill(byte);
        let own = self.page.physical()?;
        self.dma(Way::Read, own, BUFFER)?;
        if self.contents(BUFFER)?.iter().any(|got| *got != byte) {
            return Err(format!("DMA with memory of this program at {own:#x} does not work"));
        }
        Ok(())
    }

    /// The start of the device's memory, by DMA to a page of ours.
    pub fn contents(&mut self, length: u64) -> Result<Vec<u8>, String> {
        self.page.fill(0x33);
        let own = self.page.physical()?;
        self.dma(Way::Write, own, length)?;
        Ok(self.page.read(length))
    }

    /// The device gives back the inverse of what is written there.
    fn is_alive(&mut self) -> Result<(), String> {
        let register = self.registers.as_ptr().cast::<u32>().wrapping_add(LIVENESS / 4);
        // SAFETY: the register lies in the mapping, which lives as long as the program.
        let got = unsafe {
            register.write_volatile(0x1234_5678);
            register.read_volatile()
        };
        if got == !0x1234_5678 { Ok(()) } else { Err(format!("the device does not answer: {got:#x}")) }
    }

    fn set(&mut self, register: usize, value: u64) {
        // SAFETY: the register lies in the mapping, which lives as long as the program.
        unsafe { self.registers.as_ptr().wrapping_add(register / 8).write_volatile(value) };
    }

    fn get(&self, register: usize) -> u64 {
        // SAFETY: the register lies in the mapping, which lives as long as the program.
        unsafe { self.registers.as_ptr().wrapping_add(register / 8).read_volatile() }
    }
}
