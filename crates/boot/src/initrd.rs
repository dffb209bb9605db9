//! The initial RAM disk: read into high low RAM, behind the kernel.

use std::path::{Path, PathBuf};

use memory::{Gpa, GpaRange, Ram};

use crate::LoadError;
use crate::kernel::{give, mib};
use crate::source::{Source, SourceError};

const PAGE: u64 = 4096;

/// An initrd (initramfs), opened but not read.
#[derive(Debug)]
pub struct Initrd {
    source: Source,
}

/// Why an initrd cannot be given to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is nothing in it.
    #[error("the initrd {} is empty. Build it again, or start without one.", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It does not fit between the kernel and the end of low RAM.
    #[error(
        "the initrd {} has {len} bytes ({} MiB), but only {free} bytes of RAM between the kernel and {limit} can hold it. {}",
        .path.display(), mib(Gpa(*.len)), hint(*.enough)
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// Bytes that there is room for.
        free: u64,
        /// Where the room ends.
        limit: Gpa,
        /// RAM in bytes that would do; `None` when no amount would.
        enough: Option<u64>,
    },
}

fn hint(enough: Option<u64>) -> String {
    match enough {
        Some(bytes) => give(Gpa(bytes)),
        None => "More memory would not help: make it smaller.".into(),
    }
}

impl Initrd {
    /// The whole of it, as a part of its file, for firmware that reads it.
    pub fn part(&self) -> std::io::Result<crate::firmware::Part> {
        self.source.part(0, self.source.len())
    }

    /// Opens an initrd.
    pub fn open(path: &Path) -> Result<Initrd, InitrdError> {
        Initrd::not_empty(Source::open("initrd", path)?)
    }

    /// The same for an initrd in memory. `name` is what errors call it.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Initrd, InitrdError> {
        Initrd::not_empty(Source::from_bytes(name, bytes))
    }

    fn not_empty(source: Source) -> Result<Initrd, InitrdError> {
        if source.len() == 0 {
            return Err(InitrdError::Empty { path: source.name().to_path_buf() });
        }
        Ok(Initrd { source })
    }

    /// Chooses its place: on a page, as high as possible below `ram_end` and at most up to the byte `max`,
    /// and from `behind` on, where the kernel ends.
    pub(crate) fn place(&self, behind: Gpa, ram_end: Gpa, max: Gpa) -> Result<GpaRange, InitrdError> {
        let len = self.source.len();
        let limit = Gpa(ram_end.0.min(max.0.saturating_add(1)));
        let free = limit.0.saturating_sub(behind.0);
        let start = limit.0.checked_sub(len).map(|start| Gpa(start / PAGE * PAGE));
        let place = start.filter(|start| *start >= behind).and_then(|start| GpaRange::new(start, len));
        place.ok_or_else(|| {
            let enough = behind.align_up(PAGE).and_then(|start| start.checked_add(len)?.align_up(PAGE));
            let ceiling = memory::LOW_RAM_END.0.min(max.0.saturating_add(1));
            let enough = enough.map(|end| end.0).filter(|end| *end <= ceiling);
            InitrdError::NoRoom { path: self.source.name().to_path_buf(), len, free, limit, enough }
        })
    }

    /// Reads it into its place.
    pub(crate) fn copy(&self, ram: &Ram, place: GpaRange) -> Result<(), LoadError> {
        Ok(self.source.read_into(ram, place.start(), 0, place.len())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::tests::range;
    use proptest::prelude::*;

    fn initrd(len: usize) -> Initrd {
        Initrd::from_bytes("initrd.img", vec![1; len]).unwrap()
    }

    #[test]
    fn an_initrd_lies_on_a_page_at_the_end_of_low_ram() {
        let place =
            initrd(5000).place(range(0x100_0000, 0x1000).end(), Gpa(0x800_0000), Gpa(0x37ff_ffff)).unwrap();
        assert_eq!(place, range(0x800_0000 - 0x2000, 5000));
        let place =
            initrd(1).place(range(0x100_0000, 0x1000).end(), Gpa(0xc000_0000), Gpa(0x37ff_ffff)).unwrap();
        assert_eq!(place.start(), Gpa(0x37ff_f000));
    }

    #[test]
    fn too_large_an_initrd_is_an_error_that_says_how_much_ram_would_do() {
        let error =
            initrd(0x3000).place(range(0x100_0000, 0x800).end(), Gpa(0x100_2000), Gpa(u64::MAX)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the initrd initrd.img has 12288 bytes (1 MiB), but only 6144 bytes of RAM between the kernel and \
             0x1002000 can hold it. Give the VM at least 18 MiB of memory."
        );
        let error = initrd(0x3000)
            .place(range(0x100_0000, 0x800).end(), Gpa(0x200_0000), Gpa(0x100_1fff))
            .unwrap_err();
        assert!(error.to_string().ends_with("More memory would not help: make it smaller."), "{error}");
        assert!(matches!(Initrd::from_bytes("x", Vec::new()), Err(InitrdError::Empty { .. })));
    }

    proptest! {
        #[test]
        fn the_ram_that_is_said_to_be_enough_is_enough_and_less_is_not(len in 1usize..20_000, kernel in 1u64..20_000) {
            let (initrd, kernel) = (initrd(len), range(0x10_0000, kernel));
            let error = initrd.place(kernel.end(), kernel.end(), Gpa(u64::MAX)).unwrap_err();
            let InitrdError::NoRoom { enough: Some(enough), .. } = error else { panic!("{error}") };
            let place = initrd.place(kernel.end(), Gpa(enough), Gpa(u64::MAX)).unwrap();
            prop_assert!(place.start() >= kernel.end() && place.end().0 <= enough);
            prop_assert!(initrd.place(kernel.end(), Gpa(enough - PAGE), Gpa(u64::MAX)).is_err());
        }
    }
}
