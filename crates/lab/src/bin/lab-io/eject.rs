//! Ejecting a disc, which busybox does not do everywhere.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// `linux/cdrom.h`.
const CDROMEJECT: libc::c_ulong = 0x5309;

/// Has the drive let its disc go. It fails while the disc is in use.
pub fn eject(device: &str) -> Result<String, String> {
    // Without waiting for a disc.
    let options = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(device);
    let drive = options.map_err(|error| format!("{device}: {error}"))?;
    // SAFETY: the command takes no argument that is memory.
    match unsafe { libc::ioctl(drive.as_raw_fd(), CDROMEJECT as _, 0) } {
        0 => Ok(device.to_owned()),
        _ => Err(format!("{device}: {}", io::Error::last_os_error())),
    }
}
