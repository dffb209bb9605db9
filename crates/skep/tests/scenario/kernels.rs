//! Debian's other kernels for guests, from their packages, once, in the lab's cache.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

/// The folder with `NAME/vmlinuz` for each of these packages that could be had, and their names. Of others it says why.
pub fn fetched<'a>(packages: &[&'a str]) -> (PathBuf, Vec<&'a str>) {
    let all = lab::cache().unwrap().join("flavours");
    fs::create_dir_all(&all).unwrap();
    // Tests that run at once wait for the one that fetches.
    let lock = File::create(all.join("lock")).unwrap();
    lock.lock().unwrap();
    let there = packages.iter().copied().filter(|package| {
        let kernel = all.join(package).join("vmlinuz");
        let fetched = if kernel.is_file() { Ok(()) } else { fetch(package, &kernel) };
        fetched.inspect_err(|why| println!("{package} is not tried: {why}")).is_ok()
    });
    let there = there.collect();
    (all, there)
}

/// Downloads what a package that always stands for the newest kernel stands for, and keeps its kernel.
fn fetch(package: &str, kernel: &std::path::Path) -> Result<(), String> {
    let depends = said(Command::new("apt-cache").env("LC_ALL", "C").args(["depends", package]))?;
    let newest = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let newest = newest.ok_or_else(|| format!("it stands for no kernel: {depends}"))?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    said(
        Command::new("apt-get")
            .args(["-q", "download", &format!("linux-image-{newest}")])
            .current_dir(folder.path()),
    )?;
    said(Command::new("sh").args(["-c", "dpkg-deb -x *.deb ."]).current_dir(folder.path()))?;
    let unpacked = folder.path().join(format!("boot/vmlinuz-{newest}"));
    let place = kernel.parent().expect("it lies in its package's folder");
    fs::create_dir_all(place)
        .and_then(|()| fs::copy(unpacked, kernel.with_extension("new")))
        .and_then(|_| fs::rename(kernel.with_extension("new"), kernel))
        .map_err(|error| error.to_string())
}

fn said(command: &mut Command) -> Result<String, String> {
    let run = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&run.stderr);
    if run.status.success() { Ok(said) } else { Err(format!("{command:?}: {complaint}")) }
}
