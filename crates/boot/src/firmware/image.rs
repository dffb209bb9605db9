//! The two files of a firmware: its code, and the template of its variables.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use super::volume::{HEAD, Volume, volume};
use crate::source::{Source, SourceError};

/// Flash ends at 4 GiB and has so much room below, down to the local APICs.
pub const ROOM: u64 = 16 << 20;
const BLOCK: u64 = 4096;
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
        /// "firmware for x86 PCs", "variable store of UEFI firmware".
        what: &'static str,
        /// Why it is none.
        why: &'static str,
        /// What would help.
        hint: &'static str,
    },
    /// Too large.
    #[error("the firmware {} has {len} bytes, but flash memory has room for {ROOM}. Use a smaller one.", .path.display())]
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

const CODE: &str = "firmware for x86 PCs";
const CODE_HINT: &str =
    "Give the code of an OVMF build (Debian's package ovmf has /usr/share/OVMF/OVMF_CODE_4M.fd).";
const STORE: &str = "variable store of UEFI firmware";
const STORE_HINT: &str = "Give the variables that belong to the code (OVMF_VARS_4M.fd for OVMF_CODE_4M.fd), or remove the file, and it is made anew.";

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
        let wrong = |why| FirmwareError::Wrong { path: path.to_path_buf(), what: CODE, why, hint: CODE_HINT };
        if source.len() > ROOM {
            return Err(FirmwareError::TooLarge { path: path.to_path_buf(), len: source.len() });
        }
        if source.len() < BLOCK || !source.len().is_multiple_of(BLOCK) {
            return Err(wrong("its length is no multiple of 4096 bytes"));
        }
        match volume(&head(&source)?, source.len()) {
            Ok(Volume::Other) => {}
            Ok(Volume::Variables) => return Err(wrong("it begins with a variable store")),
            Err(why) => return Err(wrong(why)),
        }
        let mut first = [0; RESET_VECTOR as usize];
        source.read_at(source.len() - RESET_VECTOR, &mut first)?;
        // NOPs may come before it, but a jump must be there: near, short or far.
        let jumps = first.iter().any(|byte| matches!(byte, 0xe9..=0xeb));
        if first.iter().all(|byte| *byte == first[0]) || !jumps {
            return Err(wrong("there is no code of an x86 CPU at its end, where such a CPU starts"));
        }
        Ok(Code(Blocks(source)))
    }
}

/// A variable store: a template of one, or one that a firmware has written.
#[derive(Debug)]
pub struct Template(Blocks);

impl Deref for Template {
    type Target = Blocks;

    fn deref(&self) -> &Blocks {
        &self.0
    }
}

impl Template {
    /// Opens it and looks whether it can be one.
    pub fn open(path: &Path) -> Result<Template, FirmwareError> {
        let source = Source::open("variable store", path)?;
        let wrong =
            |why| FirmwareError::Wrong { path: path.to_path_buf(), what: STORE, why, hint: STORE_HINT };
        if source.len() > ROOM {
            return Err(wrong("it is too large for one"));
        }
        if !source.len().is_multiple_of(BLOCK) {
            return Err(wrong("its length is no multiple of 4096 bytes"));
        }
        match volume(&head(&source)?, source.len()) {
            Ok(Volume::Variables) => Ok(Template(Blocks(source))),
            Ok(Volume::Other) => Err(wrong("its firmware volume holds no variables")),
            Err(why) => Err(wrong(why)),
        }
    }
}

/// Whether code and variables can be parts of one flash memory.
pub fn together(code: &Code, vars: &Template) -> Result<(), FirmwareError> {
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
        let vars = |len| Template::open(&folder.file("vars", vars(len))).unwrap();
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
        assert!(refused(vars(8192)).contains("begins with a variable store"));
        assert!(refused(code(8192)[..8000].to_vec()).contains("no multiple of 4096"));
        assert!(refused(vec![]).contains("no multiple of 4096"));
        assert!(refused(vec![0x7f; 8192]).contains("does not begin with a firmware volume"));
        let mut arm = code(8192);
        arm[8192 - 16..].fill(0);
        assert!(refused(arm).contains("no code of an x86 CPU at its end"));
        assert!(refused(code(32 << 20)).contains("has room for 16777216"));
        assert!(Code::open(folder.0.path()).unwrap_err().to_string().contains("is not a regular file"));
        let missing = Code::open(&folder.0.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("cannot open the firmware"), "{missing}");
    }

    #[test]
    fn what_is_no_variable_store_is_refused_with_the_reason() {
        let folder = folder();
        let refused = |bytes: Vec<u8>| Template::open(&folder.file("vars", bytes)).unwrap_err().to_string();
        assert!(refused(code(8192)).contains("holds no variables"));
        assert!(refused(vars(8192)[..8000].to_vec()).contains("no multiple of 4096"));
        assert!(refused(vars(8192)[..4096].to_vec()).contains("longer than the file"));
        assert!(refused(vec![]).contains("too short"));
    }
}
