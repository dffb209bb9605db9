//! Kernels for the emulated host and its guests: where they come from, in the forms that are needed.

mod debian;
mod image;
pub mod modules;

use std::fs;
use std::path::{Path, PathBuf};

use crate::LabError;
use crate::places::{CacheLock, Places, write_whole};
use crate::spec::Kernel;
use crate::system::key;

pub use debian::newest_kernel;
pub use image::unpack;

/// A kernel, ready to be booted.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The ELF kernel with its PVH entry, which needs no unpacking in the emulated CPU.
    pub elf: PathBuf,
    /// The bzImage, unless the kernel was given as ELF.
    pub bzimage: Option<PathBuf>,
    /// The folder with `modules.dep`; none when everything is built in.
    pub modules: Option<PathBuf>,
}

/// Finds or makes the kernel that was asked for.
pub fn prepare(kernel: &Kernel, places: &Places, lock: &CacheLock) -> Result<Ready, LabError> {
    match kernel {
        Kernel::Debian => {
            let unpacked = match debian::Unpacked::cached(&places.cache) {
                Some(unpacked) => unpacked,
                None => debian::Unpacked::fetch(&places.cache, lock)?,
            };
            let mut ready = from_image(&unpacked.bzimage(), places, lock)?;
            ready.modules = Some(unpacked.modules());
            Ok(ready)
        }
        Kernel::Lab => from_image(&find_lab_kernel(places)?, places, lock),
        Kernel::File(path) => from_image(path, places, lock),
    }
}

/// Whether Debian's kernel is in the cache.
pub fn has_debian_kernel() -> bool {
    crate::places::cache().is_ok_and(|cache| debian::Unpacked::cached(&cache).is_some())
}

/// Gets Debian's kernel into the cache unless one is there; its version.
///
/// # Errors
/// When it cannot be fetched: no Debian, no package lists, no network.
pub fn ensure_debian_kernel() -> Result<String, LabError> {
    let cache = crate::places::cache()?;
    let lock = CacheLock::take(&cache)?;
    let unpacked = match debian::Unpacked::cached(&cache) {
        Some(unpacked) => unpacked,
        None => debian::Unpacked::fetch(&cache, &lock)?,
    };
    Ok(unpacked.version)
}

/// Where `cargo xtask lab-kernel` leaves the lab kernel in the cache.
pub fn lab_kernel_in(cache: &Path) -> PathBuf {
    cache.join("kernels/lab/bzImage")
}

/// The lab kernel's bzImage, if there is one: for tests that say by name that they were skipped without it.
pub fn lab_kernel() -> Option<PathBuf> {
    find_lab_kernel(&Places::find().ok()?).ok()
}

/// The lab kernel's bzImage: `$SKEP_LAB_KERNEL`, else beside the tree, else from the cache.
fn find_lab_kernel(places: &Places) -> Result<PathBuf, LabError> {
    if let Some(path) = std::env::var_os("SKEP_LAB_KERNEL").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let cached = lab_kernel_in(&places.cache);
    beside(&places.tree)
        .or_else(|| cached.is_file().then(|| cached.clone()))
        .ok_or(LabError::NoLabKernel { cache: cached })
}

/// `../shared/lab/kernel/bzImage-*-lab`, the last by name, seen from the tree or a folder above it.
fn beside(tree: &Path) -> Option<PathBuf> {
    tree.ancestors().skip(1).find_map(|above| {
        let folder = fs::read_dir(above.join("shared/lab/kernel")).ok()?;
        folder
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("bzImage-") && name.ends_with("-lab")
            })
            .max()
    })
}

/// A kernel from a bzImage or an ELF file, with nothing but itself.
fn from_image(path: &Path, places: &Places, lock: &CacheLock) -> Result<Ready, LabError> {
    let path = path.canonicalize().map_err(LabError::path("open the kernel", path))?;
    let image = fs::read(&path).map_err(LabError::path("read the kernel", &path))?;
    if image::is_elf(&image) {
        return Ok(Ready { elf: path, bzimage: None, modules: None });
    }
    let elf = places.cache.join("elf").join(key(&[&image]));
    if !elf.is_file() {
        let plain =
            image::elf_of_bzimage(&image).map_err(|why| LabError::Kernel { path: path.clone(), why })?;
        write_whole(lock, &elf, &[&plain])?;
    }
    Ok(Ready { elf, bzimage: Some(path), modules: None })
}
