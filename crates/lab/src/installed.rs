//! An installed system: a small Debian with systemd on a disk with an EFI system partition, as an installer leaves it.
//!
//! Made once from Debian's packages, and kept in the cache. Whoever uses a disk of it gets a copy.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::LabError;
use crate::process;
use crate::system::key;

/// What makes it, by name.
const RECIPE: [(&str, &str); 4] = [
    ("make.sh", include_str!("../installed/make.sh")),
    ("in-root.sh", include_str!("../installed/in-root.sh")),
    ("init", include_str!("../installed/init")),
    ("at-boot.service", include_str!("../installed/at-boot.service")),
];

/// The programs that the recipe uses.
const PROGRAMS: [&str; 5] = ["mmdebstrap", "mke2fs", "mkfs.vfat", "mcopy", "sgdisk"];

/// How long it may take; most of it is the download.
const INSTALL_LIMIT: Duration = Duration::from_secs(3600);

/// Where the partitions of a disk begin, as `make.sh` lays them out.
pub const ESP_AT: u64 = 1 << 20;
/// The same of the root file system, which is the last partition.
pub const ROOT_AT: u64 = 65 << 20;

/// The boot loader on a disk, at its own path and at that of removable media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// systemd-boot, with the kernel in the EFI system partition.
    SystemdBoot,
    /// GRUB, with the kernel in the root file system.
    Grub,
}

impl Loader {
    /// What a disk with it is called in a description.
    pub const fn disk(self) -> &'static str {
        match self {
            Loader::SystemdBoot => "debian",
            Loader::Grub => "debian-grub",
        }
    }

    /// The disk with it, in the system's folder.
    const fn image(self) -> &'static str {
        match self {
            Loader::SystemdBoot => "systemd-boot.img",
            Loader::Grub => "grub.img",
        }
    }
}

impl fmt::Display for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.disk())
    }
}

/// The system in the cache.
pub struct Installed {
    folder: PathBuf,
}

impl Installed {
    /// Finds it, or makes it, which takes some minutes.
    ///
    /// # Errors
    /// What stands in the way of making it.
    pub fn prepare() -> Result<Installed, LabError> {
        let all = crate::cache()?.join("installed");
        fs::create_dir_all(&all).map_err(LabError::path("make the folder", &all))?;
        // Whoever wants it at the same time waits for the one that makes it.
        let path = all.join("lock");
        let lock = File::create(&path).map_err(LabError::path("open the lock file", &path))?;
        lock.lock().map_err(LabError::path("lock", &path))?;
        let suite = suite()?;
        let parts: Vec<&[u8]> =
            RECIPE.iter().map(|(_, text)| text.as_bytes()).chain([suite.as_bytes()]).collect();
        let folder = all.join(format!("debian-{}", key(&parts)));
        if !folder.is_dir() {
            make(&suite, &all, &folder)?;
        }
        Ok(Installed { folder })
    }

    /// The folder with `vmlinuz` and `initrd`, which boot it without its boot loader.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Copies a disk to a file, which becomes sparse.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn copy(&self, loader: Loader, to: &File) -> Result<(), LabError> {
        let from = self.folder.join(loader.image());
        let copied = File::open(&from).and_then(|file| copy_sparse(file, to));
        copied.map_err(LabError::path("copy", &from))
    }
}

/// Copies all but zeros.
fn copy_sparse(mut from: File, to: &File) -> io::Result<()> {
    let mut chunk = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let read = from.read(&mut chunk)?;
        if read == 0 {
            return to.set_len(at);
        }
        let piece = &chunk[..read];
        if piece.iter().any(|byte| *byte != 0) {
            to.write_all_at(piece, at)?;
        }
        at += read as u64;
    }
}

/// Debian's release here, which the packages come from.
fn suite() -> Result<String, LabError> {
    let facts = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| facts.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    field("VERSION_CODENAME=").filter(|_| field("ID=").is_some_and(|id| id == "debian")).ok_or(
        LabError::Description {
            why: "this machine is no Debian, and an installed Debian is made of its packages".into(),
            hint: "Give a disk an image of your own: nvme:PATH",
        },
    )
}

/// Makes the system, and takes away those of older recipes.
fn make(suite: &str, all: &Path, folder: &Path) -> Result<(), LabError> {
    if let Some(missing) = PROGRAMS.into_iter().find(|program| process::find(program).is_none()) {
        return Err(LabError::Missing {
            program: missing.into(),
            purpose: "an installed Debian is made with it",
            command: "apt-get install -y mmdebstrap e2fsprogs dosfstools mtools gdisk (as root)",
        });
    }
    let unfinished = all.join("unfinished");
    // Nobody else has the lock, so what is there was given up.
    let emptied = || {
        for entry in fs::read_dir(all)?.flatten().filter(|entry| entry.path().is_dir()) {
            fs::remove_dir_all(entry.path())?;
        }
        fs::create_dir(&unfinished)?;
        RECIPE.iter().try_for_each(|(name, text)| fs::write(unfinished.join(name), text))
    };
    emptied().map_err(LabError::path("write in", all))?;
    eprintln!("lab: making an installed Debian from its packages (some 150 MB), once");
    let path = std::env::var("PATH").unwrap_or_default();
    let said = process::run(
        Command::new("sh")
            .args(["make.sh", suite])
            .current_dir(&unfinished)
            .env("LC_ALL", "C")
            .env("PATH", format!("{path}:/usr/sbin:/sbin")),
        INSTALL_LIMIT,
    )
    .map_err(|e| LabError::system("start", "sh", e))?;
    if !said.success() {
        return Err(LabError::Install { why: said.reason() });
    }
    fs::rename(&unfinished, folder).map_err(LabError::path("put in place", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_all_bytes_and_the_holes() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("from");
        let from = File::create(&path).unwrap();
        from.set_len((3 << 20) + 7).unwrap();
        from.write_all_at(b"in the middle", (1 << 20) - 3).unwrap();
        let to =
            File::options().create_new(true).read(true).write(true).open(folder.path().join("to")).unwrap();
        copy_sparse(File::open(&path).unwrap(), &to).unwrap();
        assert!(fs::read(folder.path().join("to")).unwrap() == fs::read(&path).unwrap());
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "the holes are holes");
    }

    #[test]
    fn the_recipe_puts_partitions_where_the_lab_looks_for_them() {
        let make = RECIPE[0].1;
        let esp: u64 = make.lines().find_map(|line| line.strip_prefix("ESP=")).unwrap().parse().unwrap();
        assert!(make.contains("--new 1:1M:+${ESP}M") && make.contains("--new 2:$((1 + ESP))M"));
        assert_eq!((ESP_AT, ROOT_AT), (1 << 20, (1 + esp) << 20));
    }
}
