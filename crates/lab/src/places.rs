//! Where things are: the cache, the built programs, the tree that holds them.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::LabError;

/// The folders that the lab works with.
#[derive(Debug, Clone)]
pub struct Places {
    /// What is kept between runs: `$SKEP_CACHE`, else `$XDG_CACHE_HOME/skep`, else `~/.cache/skep`.
    pub cache: PathBuf,
    /// The static programs for the emulated host.
    pub dist: PathBuf,
    /// The tree that holds `dist`, shown in the emulated host at /tree.
    pub tree: PathBuf,
}

/// The program that is init in the emulated host and in its guests.
pub const INIT: &str = "lab-init";

impl Places {
    /// Finds them, starting from the running program: in a folder `dist` above it, as for everything that
    /// cargo builds, else beside it, as when installed.
    pub fn find() -> Result<Places, LabError> {
        let exe = env::current_exe().map_err(|e| LabError::system("find", "the running program", e))?;
        let above = exe.ancestors().skip(1).map(|folder| folder.join("dist"));
        let dist = above
            .chain(exe.parent().map(Path::to_owned))
            .find(|folder| folder.join(INIT).is_file())
            .ok_or(LabError::NotBuilt { name: INIT })?;
        let tree =
            dist.ancestors().find(|folder| folder.join("Cargo.toml").is_file()).unwrap_or(&dist).to_owned();
        Ok(Places { cache: cache()?, dist, tree })
    }
}

/// The cache folder, made if it is not there.
pub fn cache() -> Result<PathBuf, LabError> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("SKEP_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("skep")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/skep")))
        .unwrap_or_else(|| PathBuf::from("/var/cache/skep"));
    fs::create_dir_all(&cache).map_err(LabError::path("make the cache folder", &cache))?;
    cache.canonicalize().map_err(LabError::path("find", &cache))
}

/// Holds the cache while something in it is made; others wait. Ends when dropped.
pub struct CacheLock(#[expect(dead_code, reason = "closing it is what unlocks")] File);

impl CacheLock {
    /// Waits for the lock.
    pub fn take(cache: &Path) -> Result<CacheLock, LabError> {
        let path = cache.join("lock");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(LabError::path("open the lock file", &path))?;
        file.lock().map_err(LabError::path("lock", &path))?;
        Ok(CacheLock(file))
    }
}

/// Writes a file of the cache whole or not at all. The cache is locked, so the unfinished name is ours alone.
pub fn write_whole(_lock: &CacheLock, path: &Path, contents: &[&[u8]]) -> Result<(), LabError> {
    let unfinished = path.with_added_extension("new");
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = File::create(&unfinished)?;
        for part in contents {
            file.write_all(part)?;
        }
        file.sync_data()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(LabError::path("write", path))
}
