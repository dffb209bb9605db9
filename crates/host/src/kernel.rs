//! The few ways in which this crate changes the host, so that tests can stand in for the kernel.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

/// How long the kernel may take over one write. A driver may finish much work before it releases the device (a disk
/// controller flushes all its disks), and vfio-pci waits for the process that has the device open.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// What the kernel does for us.
pub(crate) trait Kernel: Send + Sync {
    /// Writes an attribute of sysfs.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;

    /// Loads a module.
    fn load(&self, module: &str) -> io::Result<()>;

    /// Whether a module could be loaded; it is not.
    fn can_load(&self, module: &str) -> io::Result<()>;

    /// Opens a block device exclusively for a moment, which fails with EBUSY while somebody else has it so.
    fn open_exclusively(&self, path: &Path) -> io::Result<()>;
}

/// The kernel of this machine.
pub(crate) struct RealKernel;

impl Kernel for RealKernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let (done, answer) = mpsc::channel();
        let (path, text) = (path.to_owned(), text.to_owned());
        std::thread::Builder::new().name("sysfs".into()).spawn(move || {
            let file = std::fs::OpenOptions::new().write(true).open(path);
            let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
            // After a time-out nobody waits for the result.
            drop(done.send(written));
        })?;
        answer.recv_timeout(WRITE_LIMIT).unwrap_or_else(|_| {
            let seconds = WRITE_LIMIT.as_secs();
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the kernel has not answered for {seconds} s"),
            ))
        })
    }

    fn load(&self, module: &str) -> io::Result<()> {
        modprobe(&[module])
    }

    fn can_load(&self, module: &str) -> io::Result<()> {
        // Both kmod and busybox only list what they would load.
        modprobe(&["-D", module])
    }

    fn open_exclusively(&self, path: &Path) -> io::Result<()> {
        // Without O_CREAT only block devices know O_EXCL (open(2)); nothing is waited for, nothing written.
        let flags = libc::O_EXCL | libc::O_NONBLOCK;
        std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map(drop)
    }
}

fn modprobe(arguments: &[&str]) -> io::Result<()> {
    let run = Command::new("modprobe").args(arguments).output()?;
    if run.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&run.stderr).trim().to_owned()))
}
