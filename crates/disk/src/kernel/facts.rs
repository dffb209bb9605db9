//! What a block device or file says about itself.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::contract::{Access, AfterDiscard, Discard, Geometry, Sectors, WriteCache, WriteZeroes};

/// `linux/fs.h`; libc has not all of them.
const BLKROGET: libc::c_ulong = 0x125e;
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKIOMIN: libc::c_ulong = 0x1278;
const BLKIOOPT: libc::c_ulong = 0x1279;
const BLKALIGNOFF: libc::c_ulong = 0x127a;
const BLKPBSZGET: libc::c_ulong = 0x127b;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// One request for zeroes or discard covers at most this much, so that none takes minutes. Guests split.
const LONGEST_RANGE: u64 = 1 << 30;
/// A disk that is sent its zeroes gets them in smaller portions still.
const LONGEST_WRITTEN_RANGE: u64 = 32 << 20;

/// What lies behind the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    BlockDevice,
    File,
}

/// Which memory the kernel takes for direct I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Alignment {
    /// Every piece starts at a multiple of this many bytes, a power of two.
    pub(crate) address: u32,
    /// Every piece is a multiple of this many bytes long, a power of two.
    pub(crate) length: u32,
}

impl Alignment {
    pub(super) fn allows(self, pieces: &[libc::iovec]) -> bool {
        // Bits that must be 0: there is a division less for each piece.
        let (address, length) = (self.address as usize - 1, self.length as usize - 1);
        pieces.iter().all(|piece| piece.iov_base as usize & address == 0 && piece.iov_len & length == 0)
    }
}

type Fact<T> = Result<T, (&'static str, io::Error)>;

pub(super) fn read(file: &File, kind: Kind, access: Access) -> Fact<(Geometry, Alignment)> {
    match kind {
        Kind::BlockDevice => block_device(file, access),
        Kind::File => raw_file(file, access),
    }
}

/// The size of a device or file in bytes, now.
pub(super) fn bytes(file: &File, kind: Kind) -> io::Result<u64> {
    match kind {
        Kind::BlockDevice => ioctl::<u64>(file, BLKGETSIZE64),
        Kind::File => Ok(file.metadata()?.len()),
    }
}

fn block_device(file: &File, access: Access) -> Fact<(Geometry, Alignment)> {
    let word = |what, request| ioctl::<u32>(file, request).map_err(|cause| (what, cause));
    let bytes = ioctl::<u64>(file, BLKGETSIZE64).map_err(|cause| ("size", cause))?;
    let logical_block = word("block size", BLKSSZGET)?;
    let physical_block = word("physical block size", BLKPBSZGET)?.max(logical_block);
    let read_only = word("write protection", BLKROGET)? != 0;
    if read_only && access == Access::ReadWrite {
        return Err(("write access", io::Error::from_raw_os_error(libc::EROFS)));
    }
    // The next three are hints for the guest; a device without them has none to give.
    let minimum_io = word("", BLKIOMIN).unwrap_or(0).max(logical_block);
    let optimal_io = word("", BLKIOOPT).unwrap_or(0);
    let alignment_offset = word("", BLKALIGNOFF).unwrap_or(0).min(physical_block - 1);

    let sysfs = Sysfs::of(file);
    let discard_max = sysfs.number("queue/discard_max_bytes").unwrap_or(0);
    let zeroes_max = sysfs.number("queue/write_zeroes_max_bytes").unwrap_or(0);
    let after = match sysfs.number("queue/discard_zeroes_data") {
        Some(1) => AfterDiscard::Zeroes,
        _ => AfterDiscard::Unspecified,
    };
    let blocks = |bytes: u64| Sectors::in_bytes(bytes - bytes % u64::from(physical_block));
    let geometry = Geometry {
        capacity: Sectors::in_bytes(bytes - bytes % u64::from(logical_block)),
        logical_block,
        physical_block,
        alignment_offset,
        minimum_io,
        optimal_io,
        access,
        write_cache: match sysfs.text("queue/write_cache").as_deref() {
            Some("write through") => WriteCache::WriteThrough,
            _ => WriteCache::WriteBack,
        },
        fua: sysfs.number("queue/fua") == Some(1),
        rotational: sysfs.number("queue/rotational") == Some(1),
        discard: (discard_max >= u64::from(physical_block)).then(|| Discard {
            max: blocks(discard_max.min(LONGEST_RANGE)),
            granularity: sysfs
                .number("queue/discard_granularity")
                .and_then(|bytes| u32::try_from(bytes).ok())
                .unwrap_or(0)
                .max(logical_block),
            after,
        }),
        // Without help of the disk the kernel writes the zeroes itself.
        write_zeroes: Some(WriteZeroes {
            max: blocks(if zeroes_max > 0 {
                zeroes_max.clamp(LONGEST_WRITTEN_RANGE, LONGEST_RANGE)
            } else {
                LONGEST_WRITTEN_RANGE
            }),
        }),
        model: sysfs.device_text("model"),
        serial: sysfs.serial(),
    };
    // Kernels that have no such file ask for whole blocks. The file holds a mask.
    let address = sysfs.number("queue/dma_alignment").map_or(u64::from(logical_block), |mask| mask + 1);
    let address = u32::try_from(address).ok().filter(|a| a.is_power_of_two()).unwrap_or(logical_block);
    Ok((geometry, Alignment { address, length: logical_block }))
}

/// The longest transfer that the device under a disk takes at once when every page of memory lies apart from
/// the next: what is longer has to be cut up. Whole pages and blocks; unlimited where nothing is known.
pub(super) fn longest_transfer(file: &File, kind: Kind, logical_block: u32) -> u64 {
    const PAGE: u64 = 4096;
    let unit = PAGE.max(u64::from(logical_block));
    let sysfs = match kind {
        Kind::BlockDevice => Sysfs::of(file),
        Kind::File => Sysfs::numbered(file.metadata().map_or(0, |metadata| metadata.dev())),
    };
    let segments = sysfs.number("queue/max_segments").map_or(u64::MAX, |count| count.saturating_mul(PAGE));
    let bytes = sysfs.number("queue/max_sectors_kb").map_or(u64::MAX, |kib| kib.saturating_mul(1024));
    let longest = segments.min(bytes);
    (longest - longest % unit).max(unit)
}

fn raw_file(file: &File, access: Access) -> Fact<(Geometry, Alignment)> {
    let metadata = file.metadata().map_err(|cause| ("size", cause))?;
    let direct = direct_alignment(file);
    let logical_block = direct.map_or(512, |alignment| alignment.length.max(512));
    let alignment = direct.unwrap_or(Alignment { address: 512, length: 512 });
    let file_block = u32::try_from(metadata.blksize()).unwrap_or(4096);
    let physical_block =
        if file_block.is_power_of_two() { file_block.clamp(logical_block, 65536) } else { logical_block };
    let geometry = Geometry {
        capacity: Sectors::in_bytes(metadata.len() - metadata.len() % u64::from(logical_block)),
        logical_block,
        physical_block,
        alignment_offset: 0,
        minimum_io: physical_block,
        optimal_io: 0,
        access,
        write_cache: WriteCache::WriteBack,
        fua: false,
        rotational: false,
        discard: Some(Discard {
            max: Sectors::in_bytes(LONGEST_RANGE),
            granularity: physical_block,
            after: AfterDiscard::Zeroes,
        }),
        write_zeroes: Some(WriteZeroes { max: Sectors::in_bytes(LONGEST_RANGE) }),
        model: None,
        serial: None,
    };
    Ok((geometry, alignment))
}

/// What the file system says about direct I/O (Linux 6.1, STATX_DIOALIGN).
fn direct_alignment(file: &File) -> Option<Alignment> {
    const STATX_DIOALIGN: u32 = 0x2000;
    // SAFETY: statx is plain data, for which all zeroes are valid.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH asks about the descriptor; the answer has room for a statx.
    let status = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, STATX_DIOALIGN, &raw mut answer)
    };
    let (address, length) = (answer.stx_dio_mem_align, answer.stx_dio_offset_align);
    let known = status == 0 && answer.stx_mask & STATX_DIOALIGN != 0;
    (known && address.is_power_of_two() && length.is_power_of_two()).then_some(Alignment { address, length })
}

/// Asks the driver for one number.
fn ioctl<T: Default>(file: &File, request: libc::c_ulong) -> io::Result<T> {
    let mut answer = T::default();
    // SAFETY: every request used here writes one integer of the type it is called with.
    if unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut answer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer)
}

/// A block device's folder in sysfs. A partition has little of its own; the disk around it has the rest.
struct Sysfs {
    whole: PathBuf,
}

impl Sysfs {
    fn of(file: &File) -> Sysfs {
        Sysfs::numbered(file.metadata().map_or(0, |metadata| metadata.rdev()))
    }

    fn numbered(number: u64) -> Sysfs {
        let link = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
        let folder = fs::canonicalize(&link).unwrap_or_else(|_| link.into());
        let whole = match folder.parent() {
            Some(parent) if folder.join("partition").exists() => parent.to_owned(),
            _ => folder,
        };
        Sysfs { whole }
    }

    fn text(&self, name: &str) -> Option<String> {
        read_text(&self.whole.join(name))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    fn device_text(&self, name: &str) -> Option<String> {
        self.text(&format!("device/{name}"))
    }

    fn serial(&self) -> Option<String> {
        host::serial_number(&self.whole)
    }
}

fn read_text(path: &Path) -> Option<String> {
    printable(&fs::read(path).ok()?)
}

/// Devices put anything into these fields; only printable ASCII goes further.
fn printable(bytes: &[u8]) -> Option<String> {
    let text: String = bytes.iter().map(|b| char::from(*b)).filter(|c| (' '..='~').contains(c)).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
