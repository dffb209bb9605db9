//! A firmware's variables: a file of the VM's own, made from a template at the first start.
//!
//! The firmware writes them in small steps, each of which it can take back or finish at its next start, if the steps last in
//! their order (EDK II, MdeModulePkg/Universal/Variable and FaultTolerantWriteDxe). So each step is on the disk before the
//! guest goes on: whenever skep is killed or the host loses power, the file is what flash memory would be.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use boot::firmware::{self, FirmwareError, Template};

/// Why a VM cannot have its variables.
#[derive(Debug, thiserror::Error)]
pub enum VariablesError {
    /// It is no variable store, or cannot be read.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// It belongs to another firmware.
    #[error(
        "the firmware's variables {} have {len} bytes, but this firmware's have {wanted}: they belong to another firmware. Start \
         the VM with that one (--firmware), or remove the file, and it is made anew, without what was set.",
        .path.display()
    )]
    OtherSize {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// What it should be.
        wanted: u64,
    },
    /// Another VM runs with it.
    #[error(
        "the firmware's variables {} are in use by another process, probably a VM. Stop it, or give this VM another file \
         (--firmware-vars).",
        .0.display()
    )]
    InUse(PathBuf),
    /// The host refuses.
    #[error("cannot {what} the firmware's variables {}: {cause}. They can lie elsewhere (--firmware-vars FILE).", .path.display())]
    Host {
        /// What could not be done: "make", "lock".
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// Where a VM's variables are, or will be.
#[derive(Debug)]
pub struct Variables {
    path: PathBuf,
    template: Template,
}

impl Variables {
    /// Looks at the file of these variables, if it is there, and at where it would be made, if it is not.
    pub fn check(path: &Path, template: Template) -> Result<Variables, VariablesError> {
        match fs::metadata(path) {
            Ok(_) => {
                there(path, &template)?;
                drop(lock(open(path)?, path)?);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(VariablesError::Host { what: "open", path: path.to_path_buf(), cause }),
        }
        Ok(Variables { path: path.to_path_buf(), template })
    }

    /// The file that says what they hold: their own, or at the first start the template.
    pub fn origin(&self) -> &Path {
        if self.path.exists() { &self.path } else { self.template.path() }
    }

    /// Whether the firmware will start only what is signed.
    pub fn secure_boot(&self) -> Result<bool, VariablesError> {
        let bytes = Template::open(self.origin())?.read()?;
        // What cannot be read as variables the firmware makes anew, and then it has no keys.
        Ok(firmware::variables(&bytes).is_ok_and(|variables| firmware::secure_boot(&variables)))
    }

    /// Opens them for this VM alone, and makes them first if need be. What they hold now comes with them.
    pub fn take(&self) -> Result<(Taken, Vec<u8>), VariablesError> {
        if !self.path.exists() {
            self.make()?;
        }
        let file = lock(open(&self.path)?, &self.path)?;
        // Looked at again: it may have changed since.
        let there = there(&self.path, &self.template)?;
        let bytes = there.read()?;
        Ok((Taken(file), bytes))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file with all of its bytes, or not at all.
    fn make(&self) -> Result<(), VariablesError> {
        let failed = |cause| VariablesError::Host { what: "make", path: self.path.clone(), cause };
        let bytes = self.template.read()?;
        let folder =
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        let unfinished = folder.join(format!(".firmware-vars.{}", std::process::id()));
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            // A link, for it replaces nothing that came meanwhile.
            .and_then(|()| fs::hard_link(&unfinished, &self.path));
        let removed = fs::remove_file(&unfinished);
        made.and(removed).and_then(|()| File::open(folder)?.sync_all()).map_err(failed)
    }
}

/// The variables that are there, if they belong to the same firmware as the template.
fn there(path: &Path, template: &Template) -> Result<Template, VariablesError> {
    let there = Template::open(path)?;
    if there.len() == template.len() {
        return Ok(there);
    }
    Err(VariablesError::OtherSize { path: path.to_path_buf(), len: there.len(), wanted: template.len() })
}

fn open(path: &Path) -> Result<File, VariablesError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|cause| VariablesError::Host { what: "open", path: path.to_path_buf(), cause })
}

fn lock(file: File, path: &Path) -> Result<File, VariablesError> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(VariablesError::InUse(path.to_path_buf())),
        Err(TryLockError::Error(cause)) => {
            Err(VariablesError::Host { what: "lock", path: path.to_path_buf(), cause })
        }
    }
}

/// Variables that this VM uses and no other.
#[derive(Debug)]
pub struct Taken(File);

impl devices::Store for Taken {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::Store;

    /// The head of a volume that holds variables; see boot::firmware.
    fn store(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let file_system =
            [0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50];
        let variables =
            [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
        bytes[16..32].copy_from_slice(&file_system);
        bytes[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        bytes[40..44].copy_from_slice(b"_FVH");
        bytes[48..50].copy_from_slice(&72u16.to_le_bytes());
        let sum = bytes[..72]
            .chunks(2)
            .fold(0u16, |sum, word| sum.wrapping_add(u16::from_le_bytes([word[0], word[1]])));
        bytes[50..52].copy_from_slice(&0u16.wrapping_sub(sum).to_le_bytes());
        bytes[72..88].copy_from_slice(&variables);
        bytes
    }

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Folder {
            let folder = Folder(tempfile::tempdir().unwrap());
            fs::write(folder.path("template"), store(8192)).unwrap();
            folder
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn check(&self, name: &str) -> Result<Variables, VariablesError> {
            Variables::check(&self.path(name), Template::open(&self.path("template")).unwrap())
        }
    }

    #[test]
    fn the_first_start_makes_them_from_the_template_and_the_next_finds_what_was_written() {
        let folder = Folder::new();
        let variables = folder.check("vm/vars").unwrap();
        assert!(!folder.path("vm").exists(), "a check makes nothing");
        let (mut taken, bytes) = variables.take().unwrap();
        assert_eq!(bytes, store(8192));
        taken.write(5000, b"written").unwrap();
        taken.sync().unwrap();
        drop(taken);
        let (_taken, bytes) = folder.check("vm/vars").unwrap().take().unwrap();
        assert_eq!(bytes[5000..5007], *b"written");
        assert_eq!(fs::read_dir(folder.path("vm")).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_second_vm_is_told_that_they_are_in_use() {
        let folder = Folder::new();
        let variables = folder.check("vars").unwrap();
        let taken = variables.take().unwrap();
        for error in [folder.check("vars").unwrap_err(), variables.take().unwrap_err()] {
            assert!(error.to_string().contains("in use by another process"), "{error}");
        }
        drop(taken);
        folder.check("vars").unwrap().take().unwrap();
    }

    #[test]
    fn a_file_that_is_none_or_belongs_to_another_firmware_stays_as_it_is() {
        let folder = Folder::new();
        fs::write(folder.path("other"), store(4096)).unwrap();
        let error = folder.check("other").unwrap_err().to_string();
        assert!(error.contains("4096 bytes") && error.contains("8192"), "{error}");
        fs::write(folder.path("text"), [b'x'; 8192]).unwrap();
        let error = folder.check("text").unwrap_err().to_string();
        assert!(error.contains("is no variable store"), "{error}");
        assert_eq!(fs::read(folder.path("text")).unwrap(), [b'x'; 8192]);
        let error = folder.check("template/vars").unwrap_err().to_string();
        assert!(error.contains("Not a directory"), "{error}");
    }
}
