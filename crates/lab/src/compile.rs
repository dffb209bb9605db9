//! Small libraries for QEMU, written in C and compiled when they are first needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::LabError;
use crate::places::{self, CacheLock, write_whole};
use crate::process;
use crate::system::key;

const COMPILER: &str = "cc";
const FLAGS: [&str; 4] = ["-shared", "-fPIC", "-O2", "-Wall"];

/// How long the compiler may take for one small file.
const COMPILE_LIMIT: Duration = Duration::from_secs(120);

/// One of them.
pub struct Library {
    /// Its name in the cache.
    pub name: &'static str,
    /// In C.
    pub source: &'static [u8],
    /// What it does: "it compiles the plugin that counts instructions".
    pub purpose: &'static str,
}

impl Library {
    /// Where it is, compiled, unless that was done before.
    pub fn ready(&self) -> Result<PathBuf, LabError> {
        let flags = FLAGS.join(" ");
        let folder = places::cache()?.join(self.name).join(key(&[self.source, flags.as_bytes()]));
        let library = folder.join(self.name).with_extension("so");
        if !library.is_file() {
            let lock = CacheLock::take(&places::cache()?)?;
            self.compile(&lock, &folder, &library)?;
        }
        Ok(library)
    }

    fn compile(&self, lock: &CacheLock, folder: &Path, library: &Path) -> Result<(), LabError> {
        let compiler = process::find(COMPILER).ok_or_else(|| LabError::Missing {
            program: COMPILER.into(),
            purpose: self.purpose,
            command: "apt-get install -y gcc libc6-dev (as root)",
        })?;
        let source = folder.join(self.name).with_extension("c");
        write_whole(lock, &source, &[self.source])?;
        let unfinished = folder.join(self.name).with_extension("so.new");
        let mut command = Command::new(&compiler);
        command.args(FLAGS).arg("-o").arg(&unfinished).arg(&source);
        let said = process::run(&mut command, COMPILE_LIMIT).map_err(LabError::path("start", &compiler))?;
        if !said.success() {
            let why = std::io::Error::other(said.reason());
            return Err(LabError::system("compile", source.display(), why));
        }
        std::fs::rename(&unfinished, library).map_err(LabError::path("write", library))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(library: &Library, names: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let lock = CacheLock::take(folder.path()).unwrap();
        let path = folder.path().join("library.so");
        match library.compile(&lock, folder.path(), &path) {
            Err(LabError::Missing { .. }) => eprintln!("no C compiler here: it was not compiled"),
            compiled => {
                compiled.unwrap();
                let bytes = std::fs::read(&path).unwrap();
                for name in names {
                    assert!(bytes.windows(name.len()).any(|window| window == name.as_bytes()), "{name}");
                }
            }
        }
    }

    #[test]
    fn the_libraries_compile_and_have_what_the_emulator_looks_for() {
        has(&crate::count::PLUGIN, &["qemu_plugin_install", "qemu_plugin_version"]);
        has(&crate::run::BIG_LOCK, &["tcg_handle_interrupt"]);
    }
}
