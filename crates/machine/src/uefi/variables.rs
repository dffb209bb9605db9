//! A firmware's variables: a file of the VM's own, made from a template at the first start.
//!
//! The firmware writes them in small steps, each of which it can take back or finish at its next start, if the steps last in
//! their order (EDK II, MdeModulePkg/Universal/Variable and FaultTolerantWriteDxe). So each step is on the disk before the
//! guest goes on: whenever skep is killed or the host loses power, the file is what flash memory would be. What the firmware would
//! finish at its next start only after it has read the variables, skep finishes before (boot::firmware::unfinished).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use boot::firmware::{self, Damaged, FirmwareError, SecureBoot, VariableStore};
use devices::Store;
use tempfile::NamedTempFile;

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
    /// It is what new variables are copied from.
    #[error(
        "the firmware's variables {} are the file that each new VM's are copied from, by its name or its package, and this VM would \
         write into it. Name a file of the VM's own (--firmware-vars FILE), which need not exist.",
        .0.display()
    )]
    Template(PathBuf),
    /// Somebody has written or replaced it since it was looked at.
    #[error("the firmware's variables {} have changed since this start looked at them. Start the VM again.", .0.display())]
    Changed(PathBuf),
    /// Another VM runs with it.
    #[error(
        "the firmware's variables {} are in use: {holders}. Stop that VM or program, or give this VM another file \
         (--firmware-vars).",
        .path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who, as far as can be seen.
        holders: String,
    },
    /// The host refuses.
    #[error("cannot {what} the firmware's variables {}: {cause}. They can lie elsewhere (--firmware-vars FILE).", .path.display())]
    Host {
        /// What could not be done: "open", "follow the link to", "write to", "make", "lock", "repair".
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// What a VM's variables are read from at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The VM's own file.
    Own,
    /// The file that its own will be copied from.
    Template,
}

/// Where a VM's variables are, or will be.
#[derive(Debug)]
pub struct Variables {
    path: PathBuf,
    origin: Origin,
    store: VariableStore,
    /// What was in the store when it was looked at.
    bytes: Vec<u8>,
}

impl Variables {
    /// Those that a VM has in this file; `None` if it is not there and can be made. It must be none of the `templates`, from which
    /// other VMs' are copied.
    pub fn there(path: &Path, templates: &[PathBuf]) -> Result<Option<Variables>, VariablesError> {
        let failed = |what, cause| VariablesError::Host { what, path: path.to_path_buf(), cause };
        let facts = match fs::metadata(path) {
            Ok(facts) => facts,
            // Of a link people expect what it leads to, and that is gone, or not mounted.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
                return Err(failed("follow the link to", cause));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = path.as_os_str().as_bytes().ends_with(b"/");
                let made =
                    if folder { Err(io::ErrorKind::IsADirectory.into()) } else { host::may_make(path) };
                return made.map(|()| None).map_err(|cause| failed("make", cause));
            }
            Err(cause) => return Err(failed("open", cause)),
        };
        let store = VariableStore::of_vm(path)?;
        if templates.iter().any(|other| fs::metadata(other).is_ok_and(|other| same(&other, &facts))) {
            return Err(VariablesError::Template(path.to_path_buf()));
        }
        drop(lock(open(path)?, path)?);
        let bytes = store.read()?;
        Ok(Some(Variables { path: path.to_path_buf(), origin: Origin::Own, store, bytes }))
    }

    /// Those that a start makes from the template, in a file of which [`Variables::there`] says that it can be made.
    pub fn copied_from(template: VariableStore, path: &Path) -> Result<Variables, VariablesError> {
        let bytes = template.read()?;
        Ok(Variables { path: path.to_path_buf(), origin: Origin::Template, store: template, bytes })
    }

    /// What they are read from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// What the file of [`Variables::origin`] holds.
    pub fn store(&self) -> &VariableStore {
        &self.store
    }

    /// Who may say what the firmware starts, or why the firmware would not find all that is in the store.
    pub fn secure_boot(&self) -> Result<SecureBoot, Damaged> {
        Ok(firmware::secure_boot(&firmware::variables(&self.bytes)?))
    }

    /// Opens them for this VM alone, and makes them first if need be. A clean-up that was interrupted, which the firmware would
    /// finish too late for itself, is finished first. What they hold now comes with them.
    pub fn take(&self) -> Result<(Taken, Vec<u8>), VariablesError> {
        if self.origin == Origin::Template && !self.path.exists() {
            self.make()?;
        }
        let file = lock(open(&self.path)?, &self.path)?;
        // Looked at again: it may have changed since, and another file may have its name.
        let store = VariableStore::of_vm(&self.path)?;
        let failed = |cause| VariablesError::Host { what: "open", path: self.path.clone(), cause };
        let [locked, named] = [file.metadata(), fs::metadata(&self.path)];
        if !same(&locked.map_err(failed)?, &named.map_err(failed)?) {
            return Err(VariablesError::Changed(self.path.clone()));
        }
        as_long_as(&store, self.store.len())?;
        let (mut taken, mut bytes) = (Taken { file, path: self.path.clone() }, store.read()?);
        if bytes != self.bytes {
            return Err(VariablesError::Changed(self.path.clone()));
        }
        for (at, part) in taken.unfinished(&bytes) {
            let written = taken.write(at, &part).and_then(|()| taken.sync());
            written.map_err(|cause| VariablesError::Host {
                what: "repair",
                path: self.path.clone(),
                cause,
            })?;
            bytes[at as usize..][..part.len()].copy_from_slice(&part);
        }
        Ok((taken, bytes))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file with all of its bytes, or not at all.
    fn make(&self) -> Result<(), VariablesError> {
        let failed = |cause| VariablesError::Host { what: "make", path: self.path.clone(), cause };
        let folder =
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let new: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
        fs::create_dir_all(folder).map_err(failed)?;
        let mut unfinished = NamedTempFile::with_prefix_in(".firmware-vars.", folder).map_err(failed)?;
        unfinished.write_all(&self.bytes).and_then(|()| unfinished.as_file().sync_all()).map_err(failed)?;
        // It replaces nothing that came meanwhile.
        unfinished.persist_noclobber(&self.path).map_err(|refused| failed(refused.error))?;
        // Its name must last, and those of the folders on the way to it.
        let named = new.iter().filter_map(|folder| folder.parent()).chain([folder]);
        named
            .map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
            .try_for_each(|folder| File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed))
    }
}

/// Whether a VM's store belongs to a firmware whose stores have so many bytes.
pub fn as_long_as(store: &VariableStore, wanted: u64) -> Result<(), VariablesError> {
    if store.len() == wanted {
        return Ok(());
    }
    Err(VariablesError::OtherSize { path: store.path().to_path_buf(), len: store.len(), wanted })
}

fn open(path: &Path) -> Result<File, VariablesError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|cause| VariablesError::Host { what: "write to", path: path.to_path_buf(), cause })
}

/// Whether these are of one file.
fn same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn lock(file: File, path: &Path) -> Result<File, VariablesError> {
    match disk::lock_file(&file) {
        Ok(None) => Ok(file),
        Ok(Some(holders)) => Err(VariablesError::InUse { path: path.to_path_buf(), holders }),
        Err(cause) => Err(VariablesError::Host { what: "lock", path: path.to_path_buf(), cause }),
    }
}

/// Variables that this VM uses and no other.
#[derive(Debug)]
pub struct Taken {
    file: File,
    path: PathBuf,
}

impl Store for Taken {
    fn name(&self) -> String {
        format!("the firmware's variables {}", self.path.display())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn unfinished(&self, contents: &[u8]) -> Vec<(u64, Vec<u8>)> {
        firmware::unfinished(contents)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The head of a volume that holds variables; see boot::firmware.
    pub(crate) fn store(len: usize) -> Vec<u8> {
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
            let template = VariableStore::template(&self.path("template")).unwrap();
            let templates = ["template", "with-keys"].map(|name| self.path(name));
            let there = Variables::there(&self.path(name), &templates)?;
            there.map_or_else(|| Variables::copied_from(template, &self.path(name)), Ok)
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
    fn what_was_looked_at_is_what_the_vm_gets() {
        let folder = Folder::new();
        drop(folder.check("vars").unwrap().take().unwrap());
        let variables = folder.check("vars").unwrap();
        let mut other = store(8192);
        other[5000] = 7;
        fs::write(folder.path("new"), &other).unwrap();
        fs::rename(folder.path("new"), folder.path("vars")).unwrap();
        let error = variables.take().unwrap_err().to_string();
        assert!(error.contains("have changed since"), "{error}");
        let variables = folder.check("late").unwrap();
        fs::write(folder.path("late"), &other).unwrap();
        assert!(variables.take().unwrap_err().to_string().contains("have changed since"));
    }

    #[test]
    fn a_second_vm_is_told_that_they_are_in_use() {
        let folder = Folder::new();
        let variables = folder.check("vars").unwrap();
        let taken = variables.take().unwrap();
        for error in [folder.check("vars").unwrap_err(), variables.take().unwrap_err()] {
            assert!(error.to_string().contains("are in use: "), "{error}");
        }
        drop(taken);
        folder.check("vars").unwrap().take().unwrap();
    }

    #[test]
    fn a_disk_of_another_vm_is_seen_to_be_in_use_and_so_are_they_by_it() {
        let folder = Folder::new();
        drop(folder.check("vars").unwrap().take().unwrap());
        let disk = || disk::Disk::open(&disk::DiskOptions::new(folder.path("vars")));
        let open = disk().unwrap();
        assert!(folder.check("vars").unwrap_err().to_string().contains("are in use: "));
        drop(open);
        let _taken = folder.check("vars").unwrap().take().unwrap();
        assert!(matches!(disk(), Err(disk::OpenError::Busy { .. })));
    }

    #[test]
    fn a_file_that_is_none_or_belongs_to_another_firmware_stays_as_it_is() {
        let folder = Folder::new();
        fs::write(folder.path("other"), store(4096)).unwrap();
        let variables = folder.check("vars").unwrap();
        fs::copy(folder.path("other"), folder.path("vars")).unwrap();
        let error = variables.take().unwrap_err().to_string();
        assert!(error.contains("4096 bytes") && error.contains("8192"), "{error}");
        fs::write(folder.path("text"), [b'x'; 8192]).unwrap();
        let error = folder.check("text").unwrap_err().to_string();
        assert!(error.contains("is no variable store"), "{error}");
        assert_eq!(fs::read(folder.path("text")).unwrap(), [b'x'; 8192]);
        std::os::unix::fs::symlink("nowhere", folder.path("dangling")).unwrap();
        assert!(folder.check("dangling").unwrap_err().to_string().contains("cannot follow the link to"));
        assert!(folder.check("new/").unwrap_err().to_string().contains("is a directory"));
        for below in ["template/vars", "template/vm/vars"] {
            let error = folder.check(below).unwrap_err().to_string();
            assert!(error.contains("Not a directory"), "{error}");
        }
    }

    #[test]
    fn a_template_is_nobodys_own_variables_by_whatever_name() {
        let folder = Folder::new();
        std::os::unix::fs::symlink("template", folder.path("link")).unwrap();
        fs::write(folder.path("with-keys"), store(8192)).unwrap();
        for name in ["template", "link", "with-keys"] {
            let error = folder.check(name).unwrap_err().to_string();
            assert!(error.contains("each new VM's are copied from"), "{error}");
        }
        assert_eq!(fs::read(folder.path("template")).unwrap(), store(8192));
    }

    #[test]
    fn variables_that_come_while_they_are_made_stay_and_a_start_removes_no_file_of_others() {
        let folder = Folder::new();
        let variables = folder.check("vars").unwrap();
        let others = folder.path(&format!(".firmware-vars.{}", std::process::id()));
        fs::write(&others, "others").unwrap();
        fs::write(folder.path("vars"), "came meanwhile").unwrap();
        let error = variables.make().unwrap_err().to_string();
        assert!(error.contains("File exists"), "{error}");
        assert_eq!(fs::read(folder.path("vars")).unwrap(), b"came meanwhile");
        assert_eq!(fs::read(others).unwrap(), b"others");
    }
}
