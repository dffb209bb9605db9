//! A disk of the lab as it was at first.

use lab::{Original, Size};

use crate::buffer::Pages;
use crate::device::Device;

/// What is read and compared at once, in bytes.
const CHUNK: usize = 1 << 20;

/// Writes what was on the disk with this serial number at first, where it holds something else.
pub fn restore(path: &str, serial: &str) -> Result<String, String> {
    let device = Device::open(path, true)?;
    let original = Original::new(serial, Size::bytes(device.size));
    let mut there = Pages::new(CHUNK).map_err(|error| format!("cannot get memory: {error}"))?;
    let mut wanted = vec![0; CHUNK];
    let mut restored = 0;
    for at in (0..device.size).step_by(CHUNK) {
        // At most CHUNK.
        let length = (device.size - at).min(CHUNK as u64) as usize;
        let (there, wanted) = (&mut there.bytes_mut()[..length], &mut wanted[..length]);
        device.read_at(there, at)?;
        original.read(at, wanted);
        if there != wanted {
            there.copy_from_slice(wanted);
            device.write_at(there, at)?;
            restored += length;
        }
    }
    device.flush()?;
    Ok(format!("{path} {restored} of {} bytes", device.size))
}
