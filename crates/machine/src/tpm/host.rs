//! A TPM of this host, whose commands Linux passes on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::tpm::{HEADER, TpmBackEnd, TpmFailed};
use parking_lot::Mutex;

use super::start_up::StartUp;
use super::{Tell, TpmError};

/// What Linux's driver has room for.
const LONGEST: usize = 4096;

/// Looks at a TPM's device file.
pub fn check(path: &Path) -> Result<(), TpmError> {
    let facts = fs::metadata(path).map_err(|cause| refused(path, cause))?;
    let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let name = name.filter(|name| name.starts_with("tpm") && facts.file_type().is_char_device());
    let Some(name) = name else { return Err(TpmError::NoTpm(path.to_path_buf())) };
    let version = fs::read_to_string(Path::new("/sys/class/tpm").join(name).join("tpm_version_major"));
    // Without the file it is a resource manager's (/dev/tpmrm0), which there is for TPM 2.0 alone.
    if let Some(version) = version.ok().map(|text| text.trim().to_owned()).filter(|version| version != "2") {
        return Err(TpmError::Version { path: path.to_path_buf(), version });
    }
    open(path).map(drop)
}

fn open(path: &Path) -> Result<File, TpmError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(|cause| refused(path, cause))
}

fn refused(path: &Path, cause: io::Error) -> TpmError {
    let path = path.to_path_buf();
    match cause.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TpmError::NoDevice(path),
        Some(libc::EBUSY) => TpmError::Busy(path),
        _ => TpmError::Device { path, cause },
    }
}

/// A TPM of this host. It cannot be switched off: its PCRs stay as they are when the guest is reset.
pub struct HostTpm {
    path: PathBuf,
    start_up: StartUp,
    /// None after a failure.
    device: Mutex<Option<Arc<File>>>,
    tell: Tell,
}

impl HostTpm {
    /// Opens it, so that nobody else has it, and starts it up.
    pub fn open(path: &Path, start_up: StartUp, tell: Tell) -> Result<HostTpm, TpmError> {
        let tpm = HostTpm { path: path.to_path_buf(), start_up, device: Mutex::default(), tell };
        tpm.switch_on()?;
        Ok(tpm)
    }

    fn switch_on(&self) -> Result<(), TpmError> {
        let opened = self.device();
        let device = opened.map_or_else(|| open(&self.path).map(Arc::new), Ok)?;
        let ready = self.start_up.carry_out(|command| exchange(&*device, command));
        *self.device.lock() = ready.is_ok().then_some(device);
        ready.map_err(|cause| TpmError::NotReady { path: self.path.clone(), cause })
    }

    fn device(&self) -> Option<Arc<File>> {
        self.device.lock().clone()
    }
}

impl TpmBackEnd for HostTpm {
    fn power_on(&self) -> Result<(), TpmFailed> {
        self.switch_on().map_err(|error| {
            (self.tell)(error.to_string());
            TpmFailed
        })
    }

    fn execute(&self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
        let device = self.device().ok_or(TpmFailed)?;
        // Each within the kernel's own time-outs.
        exchange(&*device, command).map_err(|cause| {
            *self.device.lock() = None;
            (self.tell)(format!("the TPM {} does not execute a command: {cause}", self.path.display()));
            TpmFailed
        })
    }

    fn abort(&self) {}
}

/// One write is a command, and the next read its response.
fn exchange(mut device: impl Read + Write, command: &[u8]) -> io::Result<Vec<u8>> {
    if device.write(command)? != command.len() {
        return Err(io::Error::other("it took a part of it"));
    }
    let mut response = vec![0; LONGEST];
    let len = device.read(&mut response)?;
    response.truncate(len);
    let said = response.get(2..6).map(|size| u32::from_be_bytes(size.try_into().expect("four bytes")));
    match said {
        Some(said) if said as usize == len && len >= HEADER => Ok(response),
        _ => Err(io::Error::other(format!("its response of {len} bytes is none"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that gives this response.
    struct Device(Vec<u8>);

    impl Write for Device {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Device {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            to[..self.0.len()].copy_from_slice(&self.0);
            Ok(self.0.len())
        }
    }

    #[test]
    fn a_response_is_as_long_as_it_says() {
        let good = vec![0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];
        assert_eq!(exchange(Device(good.clone()), &[0; 12]).unwrap(), good);
        for bad in [vec![], vec![0x80, 1, 0, 0, 0, 4], good[..9].to_vec(), [good, vec![0]].concat()] {
            assert!(exchange(Device(bad), &[0; 12]).is_err());
        }
    }

    #[test]
    fn what_is_no_tpm_or_not_there_is_refused_by_name() {
        let refusal = |path: &str| check(Path::new(path)).unwrap_err().to_string();
        assert!(refusal("/dev/no-tpm7").contains("there is no TPM /dev/no-tpm7"));
        for other in ["/dev/null", "/etc/passwd", "/"] {
            assert!(refusal(other).contains("is no TPM"), "{other}");
        }
        assert!(matches!(
            refused(Path::new("x"), io::Error::from_raw_os_error(libc::EBUSY)),
            TpmError::Busy(_)
        ));
    }
}
