//! Devices of the kernel's device mapper, made and changed as `dmsetup` does: disks that fail on purpose.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct dm_ioctl` (linux/dm-ioctl.h), version 4.
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// Its size in bytes, which is in the numbers of the commands as well.
const HEADER: usize = 312;
const _: () = assert!(size_of::<Header>() == HEADER);

const REMOVE_ALL: u64 = 1;
const DEV_CREATE: u64 = 3;
const DEV_SUSPEND: u64 = 6;
const DEV_STATUS: u64 = 7;
const TABLE_LOAD: u64 = 9;

/// Of the suspend command: suspend rather than resume, and leave file systems alone.
const SUSPEND: u32 = 1 << 1;
const SKIP_LOCKFS: u32 = 1 << 10;

/// Has the device `name` keep all requests that come from now on, until it is given a table again. Returns its path.
pub fn suspend(name: &str) -> Result<String, String> {
    let control = Control::about(name)?;
    let device = control.call(DEV_SUSPEND, 0, SUSPEND | SKIP_LOCKFS, &[]);
    Ok(path(device.map_err(|error| format!("cannot suspend {name}: {error}"))?))
}

/// Removes all devices that nobody has open.
pub fn remove_all() -> Result<String, String> {
    let removed = Control::about("")?.call(REMOVE_ALL, 0, 0, &[]);
    removed.map(|_| "all removed".to_owned()).map_err(|error| format!("cannot remove all devices: {error}"))
}

/// Gives the device `name` this table, in the words of `dmsetup`: lines of `START LENGTH TARGET ARGUMENTS...`, separated
/// by line feeds or semicolons. It is made if there is none yet. Returns its path.
pub fn map(name: &str, table: &str) -> Result<String, String> {
    let lines: Vec<&str> = table.split([';', '\n']).map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut targets = Vec::new();
    for line in &lines {
        push_target(line, &mut targets)?;
    }
    let control = Control::about(name)?;
    if control.call(DEV_STATUS, 0, 0, &[]).is_err() {
        control.call(DEV_CREATE, 0, 0, &[]).map_err(|error| format!("cannot make {name}: {error}"))?;
    }
    let load = control.call(TABLE_LOAD, lines.len() as u32, 0, &targets);
    load.map_err(|error| format!("cannot load the table {table:?}: {error}"))?;
    // Without the flag for it, "suspend" is "resume", which puts the loaded table in place.
    let device = control.call(DEV_SUSPEND, 0, 0, &[]);
    Ok(path(device.map_err(|error| format!("cannot use the new table: {error}"))?))
}

fn path(device: u64) -> String {
    format!("/dev/dm-{}", libc::minor(device))
}

/// `struct dm_target_spec`, and the target's arguments behind it.
fn push_target(line: &str, targets: &mut Vec<u8>) -> Result<(), String> {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().ok_or_else(|| format!("{line:?} is not START LENGTH TARGET ARGUMENTS"));
    let (start, length, target) = (word()?, word()?, word()?);
    let arguments = words.next().unwrap_or_default();
    let (start, length): (u64, u64) =
        (crate::number("the start", start)?, crate::number("the length", length)?);
    let mut kind = [0; 16];
    let room = kind.get_mut(..target.len()).filter(|room| room.len() < 16);
    room.ok_or_else(|| format!("{target:?} is no target"))?.copy_from_slice(target.as_bytes());
    let spec = 40;
    let next = (spec + arguments.len() + 1).next_multiple_of(8);
    let begin = targets.len();
    targets.extend(start.to_ne_bytes());
    targets.extend(length.to_ne_bytes());
    targets.extend(0i32.to_ne_bytes());
    targets.extend((next as u32).to_ne_bytes());
    targets.extend(kind);
    targets.extend(arguments.as_bytes());
    targets.resize(begin + next, 0);
    Ok(())
}

/// The device mapper, about one device.
struct Control<'a> {
    file: File,
    name: &'a str,
}

impl<'a> Control<'a> {
    fn about(name: &'a str) -> Result<Control<'a>, String> {
        let file = File::options().read(true).write(true).open("/dev/mapper/control");
        let file = file.map_err(|error| format!("cannot open /dev/mapper/control: {error}"))?;
        Ok(Control { file, name })
    }

    /// One command; returns the device's number.
    fn call(&self, command: u64, target_count: u32, flags: u32, data: &[u8]) -> io::Result<u64> {
        let mut header = Header {
            version: [4, 0, 0],
            data_size: (HEADER + data.len()) as u32,
            data_start: HEADER as u32,
            target_count,
            open_count: 0,
            flags,
            event_nr: 0,
            padding: 0,
            dev: 0,
            name: [0; 128],
            uuid: [0; 129],
            data: [0; 7],
        };
        let room = header.name.get_mut(..self.name.len()).ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(self.name.as_bytes());
        // In words, so that it is aligned as the header has to be.
        let mut message = vec![0u64; (HEADER + data.len()).div_ceil(8)];
        let start = message.as_mut_ptr().cast::<u8>();
        let request = 0xc000_0000 | (HEADER as u64) << 16 | 0xfd00 | command;
        // SAFETY: the message has room for header and data, is aligned for the header, and as long as it says; the
        // kernel writes within that.
        unsafe {
            start.cast::<Header>().write(header);
            start.add(HEADER).copy_from_nonoverlapping(data.as_ptr(), data.len());
            if libc::ioctl(self.file.as_raw_fd(), request as libc::Ioctl, start) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok((*start.cast::<Header>()).dev)
        }
    }
}
