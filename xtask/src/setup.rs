//! What the chores need from Debian: installed when it is missing, without questions.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::Plan;
use crate::quiet;

/// A package, known to be there by a program that is in it.
#[derive(Clone)]
pub struct Package {
    name: &'static str,
    program: &'static str,
}

/// A package and a program in it.
pub const fn package(name: &'static str, program: &'static str) -> Package {
    Package { name, program }
}

/// What the lab needs.
const LAB: [Package; 2] = [package("qemu-system-x86", "qemu-system-x86_64"), package("kmod", "depmod")];

/// Its shell. The plain busybox goes by the same name, and does not do.
const BUSYBOX: Package = package("busybox-static", "busybox-static");

/// What guests of the tests run to try their disks, what their host looks at the disks with afterwards, what makes
/// installed systems, discs and compressed kernels, what emulates TPMs, and what reads ACPI tables.
const FOR_TESTS: [Package; 19] = [
    package("fio", "fio"),
    package("nvme-cli", "nvme"),
    package("smartmontools", "smartctl"),
    package("hdparm", "hdparm"),
    package("e2fsprogs", "mkfs.ext4"),
    package("util-linux", "lsblk"),
    package("util-linux-extra", "hwclock"),
    package("qemu-utils", "qemu-img"),
    package("mmdebstrap", "mmdebstrap"),
    package("swtpm", "swtpm"),
    package("tpm2-tools", "tpm2"),
    package("python3", "python3"),
    package("dosfstools", "mkfs.vfat"),
    package("mtools", "mcopy"),
    package("gdisk", "sgdisk"),
    package("xorriso", "xorriso"),
    package("xz-utils", "xz"),
    package("zstd", "zstd"),
    package("acpica-tools", "iasl"),
];

/// Gets what the tests need: the lab, and the programs that they and its guests run.
pub fn tests() -> Result<()> {
    lab()?;
    install(&FOR_TESTS)
}

/// Gets what the lab needs: QEMU, busybox, Debian's kernel in the cache (unpacked there, not installed).
pub fn lab() -> Result<()> {
    let mut wanted = LAB.to_vec();
    if !lab::has_static_busybox() {
        wanted.push(BUSYBOX);
    }
    install(&wanted)?;
    // The package lists of a fresh machine are empty, and without them no kernel is found.
    if std::env::var_os("SKEP_LAB_KERNEL").is_none() && !lab::has_debian_kernel() && lists_are_empty() {
        update()?;
    }
    lab::ensure_debian_kernel().map(|_| ()).context("the lab has no kernel")
}

/// Installs the packages whose program is not there.
pub fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| find(package.program).is_none())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get install --no-remove {}", missing.join(" "));
    if find("apt-get").is_none() {
        bail!(
            "not installed here: {}. This is no Debian, so install them in its own way",
            missing.join(", ")
        );
    }
    if lists_are_empty() {
        update()?;
    }
    let plan = Plan::of(&missing)?;
    if let Some(refusal) = plan.refusal(&missing) {
        bail!(refusal);
    }
    println!("{}", plan.announcement(&missing));
    // The machine may have changed since we asked.
    let mut words = vec!["apt-get", "install", "-y", "--no-install-recommends", "--no-remove"];
    words.extend(&missing);
    as_root("installing packages", &words, &command)
}

/// Runs a helper that must succeed.
pub fn must(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        bail!("{name} {} failed ({status})", words.join(" "));
    }
    Ok(())
}

/// The program of this name, also in folders that only root has on the PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether apt-get update was never run here.
fn lists_are_empty() -> bool {
    let lists = Path::new("/var/lib/apt/lists");
    let has_list = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().contains("_Packages");
    !std::fs::read_dir(lists).is_ok_and(|entries| entries.flatten().any(has_list))
}

fn update() -> Result<()> {
    as_root("getting Debian's package lists (some 10 MB)", &["apt-get", "update", "-q"], "apt-get update")
}

/// Runs a command as root, by sudo when we are not; `what` is what it does, `plain` what a person would run.
fn as_root(what: &str, words: &[&str], plain: &str) -> Result<()> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
    // With -n, sudo fails instead of asking for a password.
    let sudo = || Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|out| out.status.success());
    let mut command = Command::new("env");
    if !root && sudo() {
        command = Command::new("sudo");
        command.args(["-n", "env"]);
    } else if !root {
        bail!("this needs root, and sudo does not let us without a password. Run as root: {plain}");
    }
    command.args(["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"]).args(words);
    quiet::run(what, "apt", command).with_context(|| format!("try as root: {plain}"))
}
