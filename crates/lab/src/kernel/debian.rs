//! Debian's stock kernel: fetched as a package, unpacked into the cache, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::LabError;
use crate::places::CacheLock;
use crate::process;

/// The package that always stands for the newest kernel.
const PACKAGE: &str = "linux-image-amd64";

/// A download may be slow.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// The folder of the unpacked package: `boot/`, `lib/modules/` in Debian's own layout.
pub struct Unpacked {
    /// The kernel's version, as in `/lib/modules/VERSION`.
    pub version: String,
    folder: PathBuf,
}

impl Unpacked {
    /// The bzImage.
    pub fn bzimage(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// The folder with `modules.dep`.
    pub fn modules(&self) -> PathBuf {
        for below in ["usr/lib/modules", "lib/modules"] {
            let folder = self.folder.join(below).join(&self.version);
            if folder.is_dir() {
                return folder;
            }
        }
        self.folder.join("lib/modules").join(&self.version)
    }

    /// The kernel that is in the cache already, if one is.
    pub fn cached(cache: &Path) -> Option<Unpacked> {
        let version = fs::read_to_string(marker(cache)).ok()?.trim().to_owned();
        let folder = kernels(cache).join(&version);
        folder.is_dir().then_some(Unpacked { version, folder })
    }

    /// Gets the newest kernel that this machine's package lists know; does nothing when it is there already.
    pub fn fetch(cache: &Path, _lock: &CacheLock) -> Result<Unpacked, LabError> {
        let package = newest_kernel(PACKAGE)?;
        let version = package.trim_start_matches("linux-image-").to_owned();
        let folder = kernels(cache).join(&version);
        if !folder.is_dir() {
            eprintln!("lab: getting Debian's kernel {version} (a package of some 70 to 120 MB)");
            download(&package, &version, &folder)?;
        }
        fs::write(marker(cache), &version).map_err(LabError::path("write", &marker(cache)))?;
        Ok(Unpacked { version, folder })
    }
}

fn kernels(cache: &Path) -> PathBuf {
    cache.join("kernels")
}

/// The file that names the version in use.
fn marker(cache: &Path) -> PathBuf {
    kernels(cache).join("debian")
}

/// The package of the newest kernel, for which a package without a kernel of its own (`linux-image-amd64`) stands.
///
/// # Errors
/// [`LabError::Fetch`] where the package lists do not have it.
pub fn newest_kernel(package: &str) -> Result<String, LabError> {
    let said = helper("apt-cache", Command::new("apt-cache").env("LC_ALL", "C").args(["depends", package]))?;
    said.stdout
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
        .ok_or_else(|| LabError::Fetch {
            why: format!("the package lists have no {package}"),
            hint: "On Debian, run: apt-get update (as root); elsewhere give --kernel PATH with a kernel that has everything built in",
        })
}

/// Downloads the package and unpacks it to `folder`.
fn download(package: &str, version: &str, folder: &Path) -> Result<(), LabError> {
    let work = folder.with_added_extension("new");
    let emptied = || {
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(&work)
    };
    emptied().map_err(LabError::path("make the folder", &work))?;
    let said = process::run(
        Command::new("apt-get").args(["-q", "download", package]).env("LC_ALL", "C").current_dir(&work),
        DOWNLOAD_LIMIT,
    )
    .map_err(|e| LabError::system("start", "apt-get", e))?;
    let deb = fs::read_dir(&work)
        .map_err(LabError::path("read", &work))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"));
    let Some(deb) = deb.filter(|_| said.success()) else {
        return Err(LabError::Fetch {
            why: format!("apt-get download {package}: {}", said.reason()),
            hint: "The package lists may be old, or the network away: run apt-get update (as root) and try again",
        });
    };
    helper("dpkg-deb", Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&work))?;
    fs::remove_file(&deb).map_err(LabError::path("remove", &deb))?;
    helper(
        "depmod",
        Command::new(process::find("depmod").unwrap_or_else(|| "depmod".into()))
            .arg("-b")
            .arg(&work)
            .arg(version),
    )?;
    fs::rename(&work, folder).map_err(LabError::path("put in place", folder))
}

/// Runs a helper that must succeed.
fn helper(program: &'static str, command: &mut Command) -> Result<process::Said, LabError> {
    if process::find(program).is_none() {
        return Err(match program {
            "depmod" => LabError::Missing {
                program: program.into(),
                purpose: "it finds out which kernel modules need which",
                command: "apt-get install -y kmod (as root)",
            },
            _ => LabError::Fetch {
                why: format!("there is no {program} here"),
                hint: "The stock kernel comes from Debian's packages; elsewhere give --kernel PATH with a kernel that has everything built in",
            },
        });
    }
    let said = process::run(command, STEP_LIMIT).map_err(|e| LabError::system("start", program, e))?;
    if said.success() {
        return Ok(said);
    }
    Err(LabError::Fetch {
        why: format!("{program}: {}", said.reason()),
        hint: "Look at the space on the disk that holds the cache (SKEP_CACHE), and try again",
    })
}
