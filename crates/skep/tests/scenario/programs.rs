//! Debian's own programs for guests: packed with the libraries they need, to be laid over a guest's initramfs.
//!
//! Debian's fio is loaded with the libraries of all its engines, and those of Ceph alone bring fifty more: 80 MB for each
//! guest to unpack, and seconds of relocations at each start of fio. No test uses these engines, so they are replaced by
//! libraries that have their names and symbols and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::archive::Archive;

/// What people test and look at disks with, and the clock. `cargo xtask setup tests` installs what is missing.
const PROGRAMS: [&str; 9] =
    ["fio", "nvme", "smartctl", "hdparm", "lsblk", "blkdiscard", "mkfs.ext4", "e2fsck", "hwclock"];

/// Engines of fio for what no test has, by the beginnings of their libraries' names.
const UNUSED: [&str; 8] = [
    "libgfapi.so",
    "libnbd.so",
    "libibverbs.so",
    "librdmacm.so",
    "librados.so",
    "librbd.so",
    "libpmemblk.so",
    "libpmem.so",
];

/// A folder with `programs.cpio` and, for fio in the host, `unused` with the libraries that replace those of the unused
/// engines and `unused.path` with its path. It is made once and kept in the lab's cache.
pub fn folder() -> PathBuf {
    let programs = PROGRAMS.map(|name| (name, find(name)));
    let fio = &programs[0].1;
    let (unused, used): (Vec<_>, Vec<_>) =
        needed_by(fio).into_iter().partition(|name| UNUSED.iter().any(|start| name.starts_with(start)));
    let of_fio = libraries_of(fio);
    let used: Vec<PathBuf> = of_fio.into_iter().filter(|path| is_one_of(path, &used)).collect();
    let mut libraries: BTreeSet<PathBuf> = used.iter().cloned().collect();
    for path in programs[1..].iter().map(|(_, path)| path).chain(&used) {
        libraries.extend(libraries_of(path));
    }
    let mut key = DefaultHasher::new();
    unused.hash(&mut key);
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
        let empty = unfinished.path().join("unused");
        fs::create_dir(&empty).unwrap();
        without_content(fio, &used, &unused, &empty);
        let beside = libraries.iter().find(|path| is_one_of(path, &["libc.so.6".to_owned()])).unwrap();
        for name in &unused {
            add(beside.with_file_name(name).to_str().unwrap(), &empty.join(name));
        }
        fs::write(unfinished.path().join("unused.path"), folder.join("unused").to_str().unwrap()).unwrap();
        fs::write(unfinished.path().join("programs.cpio"), archive.finish().unwrap()).unwrap();
        let renamed = fs::rename(unfinished.keep(), &folder);
        assert!(renamed.is_ok() || folder.join("programs.cpio").is_file(), "{renamed:?}");
    }
    folder
}

/// Programs, and libraries that nothing names, with the libraries that all of these need.
pub fn packed(names: &[&str], others: &[&Path]) -> Vec<u8> {
    let mut archive = Archive::new();
    let mut add = |inside: &str, path: &Path| {
        archive.file(inside.trim_start_matches('/'), 0o755, &fs::read(path).unwrap()).unwrap();
    };
    let programs: Vec<(&str, PathBuf)> = names.iter().map(|name| (*name, find(name))).collect();
    programs.iter().for_each(|(name, path)| add(&format!("bin/{name}"), path));
    let all = programs.iter().map(|(_, path)| path.as_path()).chain(others.iter().copied());
    let libraries: BTreeSet<PathBuf> =
        all.flat_map(libraries_of).chain(others.iter().map(|path| path.to_path_buf())).collect();
    libraries.iter().for_each(|path| add(path.to_str().unwrap(), path));
    archive.finish().unwrap()
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
    let text = said(Command::new("ldd").arg(program));
    assert!(!text.contains("not found"), "ldd {}: {text}", program.display());
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

fn is_one_of(path: &Path, names: &[String]) -> bool {
    path.file_name().is_some_and(|file| names.iter().any(|name| file == name.as_str()))
}

/// The libraries that a program names itself.
fn needed_by(program: &Path) -> Vec<String> {
    let text = said(Command::new("readelf").args(["-d", "-W"]).arg(program));
    let name =
        |line: &str| Some(line.split_once("(NEEDED)")?.1.split_once('[')?.1.split_once(']')?.0.to_owned());
    text.lines().filter_map(name).collect()
}

/// Makes libraries of these names in a folder, each with every symbol that the program needs and none of the used
/// libraries has, in the version it needs, and with no content.
fn without_content(program: &Path, used: &[PathBuf], names: &[String], folder: &Path) {
    let symbols = |option: &str, path: &Path| -> BTreeSet<(String, String)> {
        let text = said(Command::new("nm").args(["-D", "-P", option]).arg(path));
        let words = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?))
        });
        // Weak ones (w) may be missing.
        let strong = words.filter(|(_, kind)| *kind != "w").map(|(name, _)| name);
        strong
            .map(|name| name.split_once('@').unwrap_or((name, "")))
            .map(|(name, version)| (name.to_owned(), version.trim_start_matches('@').to_owned()))
            .collect()
    };
    let there: BTreeSet<String> =
        used.iter().flat_map(|path| symbols("--defined-only", path)).map(|(name, _)| name).collect();
    let missing = symbols("--undefined-only", program).into_iter().filter(|(name, _)| !there.contains(name));
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, version) in missing {
        versions.entry(version).or_default().push(name);
    }
    let source: String =
        versions.values().flatten().map(|name| format!("void {name}(void) {{}}\n")).collect();
    let script: String = versions
        .iter()
        .filter(|(version, _)| !version.is_empty())
        .map(|(version, names)| format!("{version} {{ global: {}; }};\n", names.join("; ")))
        .collect();
    let (code, map) = (folder.join("unused.c"), folder.join("unused.map"));
    fs::write(&code, source).unwrap();
    fs::write(&map, script).unwrap();
    for name in names {
        said(
            Command::new("cc")
                .args(["-shared", "-nostdlib", "-fno-builtin", "-w", "-o"])
                .arg(folder.join(name))
                .arg(format!("-Wl,-soname,{name},--version-script,{}", map.display()))
                .arg(&code),
        );
    }
    fs::remove_file(code).unwrap();
    fs::remove_file(map).unwrap();
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
