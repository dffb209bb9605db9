//! The lab's own kernel: one image with everything built in, made from Debian's kernel source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::setup::{self, must, package};

/// A series that has all the lab wants, iommufd first, and that Debian 12 (in its security suite) and 13 both have.
const SOURCE: &str = "linux-source-6.12";

const CONFIG: &str = "crates/lab/kernel/lab.config";

/// What a kernel is built with.
const TOOLS: [setup::Package; 8] = [
    package("build-essential", "gcc"),
    package("make", "make"),
    package("flex", "flex"),
    package("bison", "bison"),
    package("bc", "bc"),
    package("xz-utils", "xz"),
    package("perl", "perl"),
    package("libelf-dev", "/usr/include/libelf.h"),
];

/// Builds it and puts it into the cache, or finds it there. With `--configure-only`, stops before compiling.
pub fn run() -> Result<()> {
    let only_configure = std::env::args().any(|word| word == "--configure-only");
    let cache = lab::cache()?;
    let image = lab::lab_kernel_in(&cache);
    let config = fs::read(CONFIG).with_context(|| format!("cannot read {CONFIG}"))?;
    let used = image.with_extension("config");
    if image.is_file() && fs::read(&used).is_ok_and(|used| used == config) {
        println!("{} is there already, with this configuration", image.display());
        return Ok(());
    }
    setup::install(&TOOLS)?;
    let work = cache.join("kernels/lab/work");
    let source = unpack(&work)?;
    configure(&source, &config)?;
    if only_configure {
        println!("configured in {}", source.display());
        return Ok(());
    }
    println!("compiling: a quarter of an hour on 2 CPUs");
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    must(make(&source).arg(format!("-j{jobs}")).arg("bzImage"))?;
    fs::copy(source.join("arch/x86/boot/bzImage"), &image)
        .with_context(|| format!("cannot write {}", image.display()))?;
    fs::write(&used, &config).with_context(|| format!("cannot write {}", used.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    println!("{}", image.display());
    Ok(())
}

/// Gets the source package and unpacks the kernel in it.
fn unpack(work: &Path) -> Result<PathBuf> {
    let source = work.join("source");
    if source.join("Makefile").is_file() {
        return Ok(source);
    }
    fs::create_dir_all(&source).with_context(|| format!("cannot make {}", source.display()))?;
    println!("getting {SOURCE} (some 150 MB)");
    must(Command::new("apt-get").args(["-q", "download", SOURCE]).current_dir(work)).with_context(|| {
        format!(
            "Debian 12 has {SOURCE} in bookworm-backports: add that to apt's sources and run apt-get update"
        )
    })?;
    let deb = fs::read_dir(work)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let Some(deb) = deb else { bail!("apt-get left no package in {}", work.display()) };
    must(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(work))?;
    let archive = work.join(format!("usr/src/{SOURCE}.tar.xz"));
    must(Command::new("tar").arg("xJf").arg(&archive).arg("-C").arg(&source).arg("--strip-components=1"))?;
    Ok(source)
}

/// The smallest kernel there is, and on top of it what the lab's configuration says.
fn configure(source: &Path, config: &[u8]) -> Result<()> {
    let fragment = source.join("lab.config");
    fs::write(&fragment, config).with_context(|| format!("cannot write {}", fragment.display()))?;
    must(make(source).arg("tinyconfig"))?;
    let merge = ["scripts/kconfig/merge_config.sh", "-m", ".config", "lab.config"];
    must(Command::new("sh").args(merge).current_dir(source).stdout(Stdio::null()))?;
    must(make(source).arg("olddefconfig"))?;
    check(source, config)
}

/// The kernel's build leaves out in silence what depends on something that is missing.
fn check(source: &Path, config: &[u8]) -> Result<()> {
    let made = fs::read_to_string(source.join(".config")).context("the kernel has no .config")?;
    let asked = String::from_utf8_lossy(config).into_owned();
    let lost: Vec<&str> = asked
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && line.ends_with("=y"))
        .filter(|line| !made.lines().any(|other| other == *line))
        .collect();
    if !lost.is_empty() {
        println!("not in this kernel, though asked for: {}", lost.join(" "));
    }
    Ok(())
}

fn make(source: &Path) -> Command {
    let mut make = Command::new("make");
    make.args(["-s", "-C"]).arg(source);
    make
}
