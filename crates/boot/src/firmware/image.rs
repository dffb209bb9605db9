//! The two files of a firmware: its code, and the template of its variables.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use super::modules::{can_secure_boot, needs_smm};
use super::volume::{self, HEAD, Volume, volume, volume_len};
use crate::kernel::is_kernel;
use crate::source::{Source, SourceError};

/// Flash ends at 4 GiB and has so much room below, down to the local APICs.
pub const ROOM: u64 = 16 << 20;
const BLOCK: u64 = volume::BLOCK as u64;
/// The first instruction of a PC is so far from the end of its firmware.
const RESET_VECTOR: u64 = 16;

/// What is wrong with a file of firmware.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// It cannot be opened or read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is not what it should be.
    #[error("{} is no {what}: {why}. {hint}", .path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// "UEFI firmware for x86 PCs", "variable store of UEFI firmware".
        what: &'static str,
        /// Why it is none.
        why: &'static str,
        /// What would help.
        hint: &'static str,
    },
    /// Too large.
    #[error("the firmware {} has {len} bytes, but flash memory has room for {ROOM}. {CODE_HINT}", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// The two do not belong together.
    #[error(
        "the firmware {} ({code_len} bytes) and the variable store {} ({vars_len} bytes) do not go together: flash memory of \
         both would have {} bytes, which is no power of two. Give the two files of one build (OVMF_CODE_4M.fd and \
         OVMF_VARS_4M.fd, say).",
        .code.display(), .vars.display(), code_len + vars_len
    )]
    Apart {
        /// The code's file.
        code: PathBuf,
        /// Its length.
        code_len: u64,
        /// The variables' file.
        vars: PathBuf,
        /// Its length.
        vars_len: u64,
    },
}

const CODE: &str = "UEFI firmware for x86 PCs";
const CODE_HINT: &str =
    "Give the code of an OVMF build (Debian's package ovmf has /usr/share/OVMF/OVMF_CODE_4M.fd).";
const SMM_HINT: &str = "Give a build without it: Debian's package ovmf has /usr/share/OVMF/OVMF_CODE_4M.fd, which can do Secure Boot as well (--secure-boot).";
const STORE: &str = "variable store of UEFI firmware";
/// QEMU's own format of disks, in which some distributions have their firmware (docs/interop/qcow2.txt, "Header").
const QCOW2: [u8; 4] = *b"QFI\xfb";
const QCOW2_WHY: &str = "it is a qcow2 image, and flash memory is read from raw files";
const QCOW2_HINT: &str = "Convert it: qemu-img convert -O raw FILE NEW-FILE.";
const TEMPLATE_HINT: &str = "Behind vars= is what new VMs' variables are copied from: give the variables that belong to the code (OVMF_VARS_4M.fd for OVMF_CODE_4M.fd).";
const OWN_HINT: &str =
    "Name another file for this VM's variables (--firmware-vars FILE); one that is not there is made.";
const OWN_DAMAGED_HINT: &str =
    "Put a copy of it in its place, or remove it: it is made anew then, without what was set.";
const COMBINED_HINT: &str = "Give the two files of such a build: its code, and behind vars= its variables (OVMF_CODE.fd and OVMF_VARS.fd).";
const KERNEL_HINT: &str = "A kernel is given by --kernel PATH.";

/// What is to be in flash memory: a file of whole blocks.
#[derive(Debug)]
pub struct Blocks(Source);

impl Blocks {
    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.name()
    }

    /// Its length in bytes: whole blocks of 4 KiB.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Never: it has at least one block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of its bytes.
    pub fn read(&self) -> Result<Vec<u8>, FirmwareError> {
        let mut bytes = vec![0; self.len() as usize];
        self.0.read_at(0, &mut bytes)?;
        Ok(bytes)
    }
}

/// The code of a firmware.
#[derive(Debug)]
pub struct Code(Blocks);

impl Deref for Code {
    type Target = Blocks;

    fn deref(&self) -> &Blocks {
        &self.0
    }
}

impl Code {
    /// Opens it and looks whether it can be one.
    pub fn open(path: &Path) -> Result<Code, FirmwareError> {
        let source = Source::open("firmware", path)?;
        let wrong = |why, hint| FirmwareError::Wrong { path: path.to_path_buf(), what: CODE, why, hint };
        let head = head(&source)?;
        // What it is comes before how long it is: firmware for other CPUs is often longer.
        if head.is_empty() {
            return Err(wrong("it is empty", CODE_HINT));
        }
        if head.starts_with(&QCOW2) {
            return Err(wrong(QCOW2_WHY, QCOW2_HINT));
        }
        if is_kernel(&head) {
            return Err(wrong("it is a kernel or another program", KERNEL_HINT));
        }
        if !source.len().is_multiple_of(BLOCK) {
            return Err(wrong("its length is no multiple of 4096 bytes", CODE_HINT));
        }
        let mut first = [0; RESET_VECTOR as usize];
        source.read_at(source.len() - RESET_VECTOR, &mut first)?;
        // NOPs may come before it, but a jump must be there: near, short or far.
        let jumps = first.iter().any(|byte| matches!(byte, 0xe9..=0xeb));
        let starts = jumps && first.iter().any(|byte| *byte != first[0]);
        match volume(&head, source.len()) {
            Ok(Volume::Other) => {}
            // The first of several volumes.
            Ok(Volume::Variables) if starts => {
                return Err(wrong("it holds variables and code in one file", COMBINED_HINT));
            }
            Ok(Volume::Variables) => return Err(wrong("it is a variable store", CODE_HINT)),
            Err(why) => return Err(wrong(why, CODE_HINT)),
        }
        if !starts {
            let why = "there is no code of an x86 CPU at its end, where such a CPU starts";
            return Err(wrong(why, CODE_HINT));
        }
        if source.len() > ROOM {
            return Err(FirmwareError::TooLarge { path: path.to_path_buf(), len: source.len() });
        }
        Ok(Code(Blocks(source)))
    }

    /// Refuses a build that works only with System Management Mode, which skep's VMs do not have: it would hang at its start.
    pub fn without_smm(self) -> Result<Code, FirmwareError> {
        if !needs_smm(&self.read()?) {
            return Ok(self);
        }
        Err(FirmwareError::Wrong {
            path: self.path().to_path_buf(),
            what: "firmware for skep's VMs",
            why: "it needs System Management Mode (SMM), which they do not have",
            hint: SMM_HINT,
        })
    }

    /// Refuses a build that starts whatever it finds, signed or not, since it was made without Secure Boot.
    pub fn with_secure_boot(self) -> Result<Code, FirmwareError> {
        if can_secure_boot(&self.read()?) {
            return Ok(self);
        }
        Err(FirmwareError::Wrong {
            path: self.path().to_path_buf(),
            what: "firmware for Secure Boot",
            why: "nothing in it says that it was built with that (EDK II's module SecureBootConfigDxe), so it may start what is not signed",
            hint: "Give a build with it (Debian's /usr/share/OVMF/OVMF_CODE_4M.fd), or leave --secure-boot out.",
        })
    }
}

/// A file with a firmware's variables.
#[derive(Debug)]
pub struct VariableStore(Blocks);

impl Deref for VariableStore {
    type Target = Blocks;

    fn deref(&self) -> &Blocks {
        &self.0
    }
}

impl VariableStore {
    /// Opens what new VMs' variables are copied from, and looks whether it can be that.
    pub fn template(path: &Path) -> Result<VariableStore, FirmwareError> {
        VariableStore::open("template of variables", path, [TEMPLATE_HINT; 2])
    }

    /// Opens the variables of a VM, and looks whether they can be that.
    pub fn of_vm(path: &Path) -> Result<VariableStore, FirmwareError> {
        VariableStore::open("file of the firmware's variables", path, [OWN_HINT, OWN_DAMAGED_HINT])
    }

    /// The hints are for a file that is no such store, and for one that is damaged.
    fn open(
        what: &'static str,
        path: &Path,
        hints: [&'static str; 2],
    ) -> Result<VariableStore, FirmwareError> {
        let source = Source::open(what, path)?;
        let [other, damaged] = hints;
        let wrong = |why, hint| FirmwareError::Wrong { path: path.to_path_buf(), what: STORE, why, hint };
        let head = head(&source)?;
        if head.starts_with(&QCOW2) {
            return Err(wrong(QCOW2_WHY, QCOW2_HINT));
        }
        let hint = if volume_len(&head).is_some() { damaged } else { other };
        match volume(&head, source.len()) {
            Ok(Volume::Other) => return Err(wrong("its firmware volume holds no variables", other)),
            Ok(Volume::Variables) => {}
            Err(why) => return Err(wrong(why, hint)),
        }
        if source.len() > ROOM {
            return Err(wrong("it is too large for one", other));
        }
        if !source.len().is_multiple_of(BLOCK) {
            return Err(wrong("its length is no multiple of 4096 bytes", hint));
        }
        Ok(VariableStore(Blocks(source)))
    }
}

/// Whether code and variables can be parts of one flash memory.
pub fn together(code: &Code, vars: &VariableStore) -> Result<(), FirmwareError> {
    let len = code.len() + vars.len();
    if len.is_power_of_two() && len <= ROOM {
        return Ok(());
    }
    let [code_path, vars_path] = [code.path(), vars.path()].map(Path::to_path_buf);
    Err(FirmwareError::Apart { code: code_path, code_len: code.len(), vars: vars_path, vars_len: vars.len() })
}

fn head(source: &Source) -> Result<Vec<u8>, SourceError> {
    let mut head = vec![0; HEAD.min(source.len() as usize)];
    source.read_at(0, &mut head)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::super::volume::tests::head as volume_head;
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn file(&self, name: &str, bytes: Vec<u8>) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        }
    }

    fn folder() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn code(len: usize) -> Vec<u8> {
        let mut bytes = volume_head(false, len as u64);
        bytes.resize(len, 0);
        // nop; nop; jmp near
        bytes[len - 16..len - 11].copy_from_slice(&[0x90, 0x90, 0xe9, 0xfb, 0xff]);
        bytes
    }

    fn vars(len: usize) -> Vec<u8> {
        let mut bytes = volume_head(true, len as u64);
        bytes.resize(len, 0xff);
        bytes
    }

    #[test]
    fn code_and_variables_of_one_build_go_together_and_others_do_not() {
        let folder = folder();
        let code = Code::open(&folder.file("code", code(0x37_c000))).unwrap();
        let vars = |len| VariableStore::template(&folder.file("vars", vars(len))).unwrap();
        assert!(together(&code, &vars(0x8_4000)).is_ok());
        let error = together(&code, &vars(0x2_0000)).unwrap_err().to_string();
        assert!(
            error.contains("3653632 bytes")
                && error.contains("131072 bytes")
                && error.contains("no power of two"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_firmware_is_refused_with_the_reason() {
        let folder = folder();
        let refused = |bytes: Vec<u8>| Code::open(&folder.file("code", bytes)).unwrap_err().to_string();
        assert!(refused(vars(8192)).contains("it is a variable store"));
        assert!(refused(code(8192)[..8000].to_vec()).contains("no multiple of 4096"));
        assert!(refused(vec![]).contains("it is empty"));
        let combined = [vars(8192), code(8192)].concat();
        assert!(refused(combined).contains("variables and code in one file"));
        assert!(refused([&b"\x7fELF"[..], &[0; 8188]].concat()).contains("--kernel PATH"));
        assert!(refused(vec![0x7f; 8192]).contains("does not begin with a firmware volume"));
        let mut arm = code(8192);
        arm[8192 - 16..].fill(0);
        assert!(refused(arm).contains("no code of an x86 CPU at its end"));
        assert!(refused(code(32 << 20)).contains("has room for 16777216"));
        let mut long = code(64 << 20);
        long[(64 << 20) - 16..].fill(0);
        assert!(refused(long).contains("no code of an x86 CPU at its end"));
        assert!(Code::open(folder.0.path()).unwrap_err().to_string().contains("is not a regular file"));
        let missing = Code::open(&folder.0.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("cannot open the firmware"), "{missing}");
    }

    #[test]
    fn what_is_no_variable_store_is_refused_with_the_reason() {
        let folder = folder();
        let refused =
            |bytes: Vec<u8>| VariableStore::template(&folder.file("vars", bytes)).unwrap_err().to_string();
        assert!(refused(code(8192)).contains("holds no variables"));
        assert!(refused(vars(8192)[..4096].to_vec()).contains("longer than the file"));
        let mut odd = vars(8192);
        odd.push(0xff);
        assert!(refused(odd).contains("no multiple of 4096"));
        assert!(refused(vec![]).contains("too short"));
    }

    #[test]
    fn only_a_vms_own_damaged_variables_are_said_to_be_made_anew() {
        let folder = folder();
        let damaged = folder.file("damaged", vars(8192)[..4096].to_vec());
        let disk = folder.file("disk", vec![7; 8192]);
        let anew = |opened: Result<VariableStore, FirmwareError>| {
            opened.unwrap_err().to_string().contains("it is made anew")
        };
        assert!(anew(VariableStore::of_vm(&damaged)));
        assert!(!anew(VariableStore::of_vm(&disk)));
        assert!(!anew(VariableStore::template(&damaged)) && !anew(VariableStore::template(&disk)));
    }

    #[test]
    fn an_image_in_qemus_format_is_called_that_with_the_way_to_convert_it() {
        let folder = folder();
        let path = folder.file("firmware.qcow2", [&QCOW2[..], &[0; 9000]].concat());
        let errors = [Code::open(&path).unwrap_err(), VariableStore::template(&path).unwrap_err()];
        for error in errors.map(|error| error.to_string()) {
            assert!(error.contains("is a qcow2 image") && error.contains("convert -O raw"), "{error}");
        }
    }
}
