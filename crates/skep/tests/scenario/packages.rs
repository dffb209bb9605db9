//! Files out of Debian's packages, which are fetched once into the lab's cache and never installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file of a package that a pattern of `tar` names, with `.` for the root folder. A package that has nothing but a
/// dependency on the newest of its kind stands for that.
///
/// # Errors
/// Why this machine cannot have it.
pub fn file(package: &str, pattern: &str) -> Result<PathBuf, String> {
    let all = lab::cache().map_err(|error| error.to_string())?.join("packages");
    let folder = all.join(format!("{package}-{:016x}", key(pattern)));
    // Tests that run at once wait for the one that fetches it.
    fs::create_dir_all(&all).map_err(|error| error.to_string())?;
    let lock = File::create(all.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if !folder.is_dir() {
        let unfinished = tempfile::tempdir_in(&all).map_err(|error| error.to_string())?;
        fetch(&newest(package)?, pattern, unfinished.path())?;
        only_file(unfinished.path())?;
        fs::rename(unfinished.keep(), &folder).map_err(|error| error.to_string())?;
    }
    only_file(&folder)
}

fn key(pattern: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut key = DefaultHasher::new();
    pattern.hash(&mut key);
    key.finish()
}

/// What a package of kernels stands for; any other is itself.
fn newest(package: &str) -> Result<String, String> {
    match package.starts_with("linux-image-") {
        true => lab::newest_kernel(package).map_err(|error| error.to_string()),
        false => Ok(package.to_owned()),
    }
}

fn fetch(package: &str, pattern: &str, folder: &Path) -> Result<(), String> {
    let known = run(Command::new("apt-get").args(["-q", "--print-uris", "download", package]))?;
    // 'URI' FILE SIZE HASH
    let size = known.split_whitespace().nth(2).and_then(|size| size.parse::<u64>().ok());
    let megabytes = size.map_or(0, |size| size.div_ceil(1_000_000));
    eprintln!("getting Debian's package {package} ({megabytes} MB), once");
    run(Command::new("apt-get").args(["-q", "download", package]).current_dir(folder))?;
    run(Command::new("sh").current_dir(folder).arg("-c").arg(format!(
        "set -e; dpkg-deb --fsys-tarfile ./*.deb > all.tar; tar -xf all.tar --wildcards '{pattern}'; rm all.tar ./*.deb"
    )))?;
    Ok(())
}

/// The first file below a folder, by name.
fn only_file(folder: &Path) -> Result<PathBuf, String> {
    let said = run(Command::new("find").arg(folder).args(["-type", "f"]))?;
    let first = said.lines().min().map(PathBuf::from);
    first.ok_or_else(|| format!("{} has no file", folder.display()))
}

fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let said =
        command.env("LC_ALL", "C").output().map_err(|error| format!("cannot start {name}: {error}"))?;
    if said.status.success() {
        return Ok(String::from_utf8_lossy(&said.stdout).into_owned());
    }
    // Without the names and addresses of mirrors, which are in the rest of such a line.
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    let first = errors.lines().find(|line| line.starts_with("E: ")).unwrap_or(errors.trim());
    let first = first.split(" [IP:").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().filter(|word| !word.contains("://")).collect();
    Err(format!("{name}: {} (the package lists may be old: apt-get update)", words.join(" ")))
}
