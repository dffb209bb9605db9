//! Debian's own programs for guests: packed with the libraries they need, to be laid over a guest's initramfs.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::archive::Archive;

/// What people test and look at disks with. `cargo xtask setup tests` installs what is missing.
const PROGRAMS: [&str; 8] =
    ["fio", "nvme", "smartctl", "hdparm", "lsblk", "blkdiscard", "mkfs.ext4", "e2fsck"];

/// A folder with `programs.cpio`, which is made once and kept in the lab's cache.
pub fn folder() -> PathBuf {
    let programs = PROGRAMS.map(|name| (name, find(name)));
    let mut libraries = BTreeSet::new();
    for (_, path) in &programs {
        libraries.extend(libraries_of(path));
    }
    let mut key = DefaultHasher::new();
    for path in programs.iter().map(|(_, path)| path).chain(&libraries) {
        let facts = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, facts.len(), facts.modified().ok()).hash(&mut key);
    }
    let all = lab::cache().unwrap().join("programs");
    let folder = all.join(format!("{:016x}", key.finish()));
    if !folder.join("programs.cpio").is_file() {
        let mut archive = Archive::new();
        let mut add = |inside: &str, path: &Path| {
            archive.file(inside.trim_start_matches('/'), 0o755, &fs::read(path).unwrap()).unwrap();
        };
        programs.iter().for_each(|(name, path)| add(&format!("bin/{name}"), path));
        libraries.iter().for_each(|path| add(path.to_str().unwrap(), path));
        // Tests that run at once make it at once: whole by the rename, and the same.
        fs::create_dir_all(&all).unwrap();
        let unfinished = tempfile::tempdir_in(&all).unwrap();
        fs::write(unfinished.path().join("programs.cpio"), archive.finish().unwrap()).unwrap();
        let renamed = fs::rename(unfinished.keep(), &folder);
        assert!(renamed.is_ok() || folder.join("programs.cpio").is_file(), "{renamed:?}");
    }
    folder
}

fn find(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!("there is no {name} here, which guests are to run. Get it with: cargo xtask setup tests")
        })
}

/// The libraries that a program is loaded with, and their loader, as `ldd` lists them.
fn libraries_of(program: &Path) -> Vec<PathBuf> {
    let said = Command::new("ldd").arg(program).output().expect("ldd comes with the C library");
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(said.status.success() && !text.contains("not found"), "ldd {}: {text}", program.display());
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
