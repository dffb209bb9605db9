//! Disk images: bytes that depend on the serial number and the size alone, or an installed system, in files without a name;
//! or files of the user.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::LabError;
use crate::installed::Installed;
use crate::spec::{Contents, Disk, Size};

/// Past this many bytes a generated disk is zeros: huge disks are for addresses, not for reading.
const FILLED: u64 = 256 << 20;

const CHUNK: usize = 1 << 20;

/// A disk's image, open.
pub struct Image {
    /// The open image; an image without a name vanishes with the last process that holds it.
    pub file: File,
    /// Its size in bytes.
    pub size: Size,
    /// Its SHA-256 in hex, for a generated image as it is before the first write.
    pub sha256: Option<String>,
}

impl Image {
    /// Opens or generates what is on `disk`, whose serial number is `serial`.
    pub fn open(disk: &Disk, serial: &str, cache: &Path) -> Result<Image, LabError> {
        match &disk.contents {
            Contents::Generated(size) => {
                let file = unnamed(*size, cache).map_err(|e| LabError::system("make a disk of", size, e))?;
                fill(&file, serial, *size).map_err(|e| LabError::system("fill a disk of", size, e))?;
                Ok(Image { sha256: Some(sum(serial, *size, &file, cache)?), file, size: *size })
            }
            Contents::Installed(loader) => {
                let system = Installed::prepare()?;
                let file =
                    vanishing(cache).map_err(|e| LabError::system("make a disk in", cache.display(), e))?;
                system.copy(*loader, &file)?;
                let size = file.metadata().map_err(LabError::path("look at a disk in", cache))?.len();
                Ok(Image { file, size: Size::bytes(size), sha256: None })
            }
            Contents::Image(path) => {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .open(path)
                    .map_err(LabError::path("open the disk image", path))?;
                let size = file.metadata().map_err(LabError::path("look at", path))?.len();
                if size == 0 || size % disk.logical.bytes() != 0 {
                    return Err(LabError::Description {
                        why: format!(
                            "disk image {} has {size} bytes, which is no whole number of {}-byte blocks",
                            path.display(),
                            disk.logical.bytes()
                        ),
                        hint: "Make it longer with truncate -s",
                    });
                }
                Ok(Image { file, size: Size::bytes(size), sha256: None })
            }
        }
    }
}

/// A file of this size that no folder knows: in RAM when it is small, else in the cache's file system.
fn unnamed(size: Size, cache: &Path) -> io::Result<File> {
    let file = if size.as_bytes() <= FILLED { in_memory("skep-lab-disk")? } else { vanishing(cache)? };
    file.set_len(size.as_bytes())?;
    Ok(file)
}

/// An empty file on the cache's disk that nothing but its descriptor knows.
fn vanishing(cache: &Path) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(cache)
}

/// An empty file in RAM that nothing but its descriptor knows.
pub fn in_memory(name: &str) -> io::Result<File> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the name is a C string that lives through the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Word `index` of a disk: splitmix64 as a function of the position, so that any part can be made alone.
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn seed(serial: &str, size: Size) -> u64 {
    let hash = Sha256::digest(format!("skep lab disk {serial} {}", size.as_bytes()));
    hash.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// What is on a generated disk before the first write to it.
pub struct Original {
    seed: u64,
}

impl Original {
    /// That of the disk with this serial number and size.
    pub fn new(serial: &str, size: Size) -> Original {
        Original { seed: seed(serial, size) }
    }

    /// The bytes from `at` on, which is a multiple of 8.
    pub fn read(&self, at: u64, bytes: &mut [u8]) {
        let filled = FILLED.saturating_sub(at).min(bytes.len() as u64);
        // No longer than `bytes`.
        let (filled, zeros) = bytes.split_at_mut(filled as usize);
        for (index, piece) in filled.chunks_mut(8).enumerate() {
            piece.copy_from_slice(&word(self.seed, at / 8 + index as u64).to_le_bytes()[..piece.len()]);
        }
        zeros.fill(0);
    }
}

fn fill(mut file: &File, serial: &str, size: Size) -> io::Result<()> {
    let original = Original::new(serial, size);
    let end = size.as_bytes().min(FILLED);
    let mut chunk = vec![0; CHUNK];
    for at in (0..end).step_by(CHUNK) {
        // At most CHUNK.
        let piece = &mut chunk[..(end - at).min(CHUNK as u64) as usize];
        original.read(at, piece);
        file.write_all(piece)?;
    }
    Ok(())
}

/// The checksum of a generated disk: from the cache, or computed and put there.
fn sum(serial: &str, size: Size, file: &File, cache: &Path) -> Result<String, LabError> {
    let folder = cache.join("sums");
    let path = folder.join(format!("{:016x}-{}", seed(serial, size), size.as_bytes()));
    if let Ok(known) = fs::read_to_string(&path)
        && known.len() == 64
    {
        return Ok(known);
    }
    let sum = hash(file).map_err(|e| LabError::system("read a disk of", size, e))?;
    // Two labs may write it at once: both write the same, and whole by the rename.
    let unfinished = folder.join(format!("{}.new", std::process::id()));
    let write = || {
        fs::create_dir_all(&folder)?;
        fs::write(&unfinished, &sum)?;
        fs::rename(&unfinished, &path)
    };
    write().map_err(LabError::path("write", &path))?;
    Ok(sum)
}

/// The SHA-256 of all that is in `file`, in hex.
fn hash(file: &File) -> io::Result<String> {
    let mut file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hash.update(&chunk[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated(serial: &str, size: Size, cache: &Path) -> Image {
        let disk = Disk::generated(crate::Bus::Ahci, size);
        Image::open(&disk, serial, cache).unwrap()
    }

    #[test]
    fn contents_depend_on_serial_and_size_alone() {
        let cache = tempfile::tempdir().unwrap();
        let sum = |serial, mib| generated(serial, Size::mib(mib), cache.path()).sha256.unwrap();
        assert_eq!(sum("A", 2), sum("A", 2));
        assert_ne!(sum("A", 2), sum("B", 2));
        assert_ne!(sum("A", 2)[..], sum("A", 3)[..]);
    }

    #[test]
    fn the_known_sum_is_that_of_the_bytes() {
        let cache = tempfile::tempdir().unwrap();
        let image = generated("A", Size::bytes(1_000_448), cache.path());
        assert_eq!(image.file.metadata().unwrap().len(), 1_000_448);
        assert_eq!(image.sha256, Some(hash(&image.file).unwrap()));
        assert_eq!(image.sha256, generated("A", Size::bytes(1_000_448), cache.path()).sha256);
    }

    #[test]
    fn any_part_of_a_generated_disk_can_be_told_alone() {
        let cache = tempfile::tempdir().unwrap();
        let size = Size::bytes(3 << 20);
        let image = generated("A", size, cache.path());
        let (mut there, mut told) = (vec![0; 5000], vec![1; 5000]);
        std::os::unix::fs::FileExt::read_exact_at(&image.file, &mut there, 4096).unwrap();
        Original::new("A", size).read(4096, &mut told);
        assert_eq!(there, told);
        Original::new("A", size).read(FILLED - 8, &mut told);
        assert!(told[..8] != [0; 8] && told[8..].iter().all(|byte| *byte == 0), "zeros past what is filled");
    }

    #[test]
    fn an_image_that_is_no_whole_number_of_blocks_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        fs::write(&path, [0; 700]).unwrap();
        let disk: Disk = format!("nvme:{}", path.display()).parse().unwrap();
        let error = Image::open(&disk, "N", folder.path()).err().unwrap().to_string();
        assert!(error.contains("disk.img") && error.contains("700"), "{error}");
    }
}
