//! Compressed kernels, whole files by gzip, xz or zstd: unpacked into memory, as their kind asks for nothing less.
//!
//! A hostile file costs no more than [`UNPACKED_MAX`] and [`WINDOW_MAX`] bytes of memory, and the time to read
//! [`PACKED_MAX`] bytes and write [`UNPACKED_MAX`].

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::{KernelError, NAMED_BY, damaged, is_kernel, other, unsupported};
use crate::source::Source;

/// A compressed kernel may have so many bytes once it is unpacked. Debian's has 60 MiB, and one with all its debugging
/// symbols about 400 MiB.
pub const UNPACKED_MAX: u64 = 512 << 20;
/// And so many before that.
const PACKED_MAX: u64 = 256 << 20;
/// What an archive may look back, in bytes: as much as `xz -9` and `zstd --ultra -22` do at most.
const WINDOW_MAX: u64 = 128 << 20;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Xz,
    Zstd,
}

impl Compression {
    /// By a file's first bytes. RFC 1952, 2.3.1; the .xz file format, 2.1.1; RFC 8878, 3.1.1.
    pub(super) fn of(start: &[u8]) -> Option<Compression> {
        match start {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
            Compression::Zstd => "zstd",
        }
    }

    fn reader<'a>(self, packed: impl BufRead + 'a) -> Box<dyn Read + 'a> {
        match self {
            Compression::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Compression::Xz => Box::new(XzReader::new_mem_limit(packed, true, (WINDOW_MAX >> 10) as u32)),
            Compression::Zstd => Box::new(ZstdFrames { rest: Some(packed), frame: None }),
        }
    }
}

/// Unpacks a kernel. Only its beginning, if that is no kernel's.
pub(super) fn unpack(source: &Source, compression: Compression) -> Result<Source, KernelError> {
    let packed = BufReader::new(Packed { source, at: 0 });
    let mut reader = compression.reader(packed.take(PACKED_MAX));
    let name = compression.name();
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::OutOfMemory => unsupported(
            source,
            format!("is compressed by {name} with a window of more than {} MiB", WINDOW_MAX >> 20),
            "Unpack it first.",
        ),
        _ => damaged(source, format!("its {name} data cannot be unpacked ({cause})")),
    };

    let mut bytes = Vec::new();
    reader.by_ref().take(NAMED_BY as u64).read_to_end(&mut bytes).map_err(failed)?;
    if !is_kernel(&bytes) {
        let what = format!("{name}-compressed data, and in it {}", other::describe(&bytes));
        return Err(KernelError::NotAKernel { path: source.name().to_path_buf(), what });
    }
    let too_large = |what: String| {
        unsupported(
            source,
            what,
            "Take the debugging symbols out of it (strip --strip-debug), or unpack it first.",
        )
    };
    if source.len() > PACKED_MAX {
        return Err(too_large(format!("has more than {} MiB of {name} data", PACKED_MAX >> 20)));
    }
    let room = UNPACKED_MAX - bytes.len() as u64;
    if reader.take(room + 1).read_to_end(&mut bytes).map_err(failed)? as u64 > room {
        return Err(too_large(format!("unpacks to more than {} MiB", UNPACKED_MAX >> 20)));
    }
    bytes.shrink_to_fit();
    Ok(source.unpacked(bytes))
}

/// Reads an image from its beginning to its end.
struct Packed<'a> {
    source: &'a Source,
    at: u64,
}

impl Read for Packed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = (self.source.len() - self.at).min(bytes.len() as u64) as usize;
        self.source.read_at(self.at, &mut bytes[..len]).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// The contents of zstd frames, one after the other.
struct ZstdFrames<R: BufRead> {
    frame: Option<StreamingDecoder<R, FrameDecoder>>,
    /// What comes next, between two frames.
    rest: Option<R>,
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(mut frame) = self.frame.take() {
                let len = frame.read(bytes)?;
                if len > 0 || bytes.is_empty() {
                    self.frame = Some(frame);
                    return Ok(len);
                }
                self.rest = Some(frame.into_inner());
            }
            let Some(mut rest) = self.rest.take() else { return Ok(0) };
            if rest.fill_buf()?.is_empty() {
                return Ok(0);
            }
            let frame = StreamingDecoder::new_with_max_window_size(rest, WINDOW_MAX);
            self.frame = Some(frame.map_err(io::Error::other)?);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::KernelImage;
    use crate::tests::{packed_by, tiny_bzimage, tiny_elf};

    const PROGRAMS: [&[&str]; 4] =
        [&["gzip", "-c"], &["xz", "-c"], &["xz", "-c", "--x86", "--lzma2=dict=32MiB"], &["zstd", "-c", "-q"]];

    fn opened(bytes: Vec<u8>) -> Result<KernelImage, String> {
        KernelImage::from_bytes("it", bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn a_compressed_kernel_is_what_it_is_unpacked() {
        for kernel in [tiny_elf(), tiny_bzimage()] {
            let plain = opened(kernel.clone()).unwrap();
            for program in PROGRAMS {
                let packed = opened(packed_by(program, &kernel)).unwrap();
                assert_eq!(format!("{packed:?}"), format!("{plain:?}"), "{program:?}");
                // In two pieces, as parallel compressors and `cat` make them.
                let (start, end) = kernel.split_at(100);
                let both = opened([packed_by(program, start), packed_by(program, end)].concat()).unwrap();
                assert_eq!(format!("{both:?}"), format!("{plain:?}"), "{program:?}");
            }
        }
    }

    #[test]
    fn what_is_no_kernel_is_named_and_not_unpacked_to_its_end() {
        for program in PROGRAMS {
            let mut archive = b"070701".to_vec();
            archive.resize(32 << 20, 0);
            let mut packed = packed_by(program, &archive);
            // Nobody finds out that its end is missing.
            packed.truncate(packed.len() - 8);
            let said = opened(packed).unwrap_err();
            assert!(said.contains("-compressed data, and in it an initramfs archive"), "{said}");
            assert!(said.contains("swapped"), "{said}");
        }
        let twice = packed_by(&["gzip", "-c"], &packed_by(&["xz", "-c"], &tiny_elf()));
        let said = opened(twice).unwrap_err();
        assert!(
            said.contains("gzip-compressed data, and in it xz-compressed data (unpack it first"),
            "{said}"
        );
    }

    #[test]
    fn a_damaged_archive_is_an_error_wherever_it_is_damaged() {
        let mut kernel = tiny_elf();
        // Nothing that can be told from a damaged kernel: more of the file, which is not looked at.
        kernel.extend((0..20_000u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()));
        for program in PROGRAMS {
            let packed = packed_by(program, &kernel);
            for cut in [12, packed.len() / 2, packed.len() - 3] {
                let said = opened(packed[..cut].to_vec()).unwrap_err();
                assert!(said.contains("cannot be unpacked"), "{program:?} {cut}: {said}");
            }
        }
    }

    #[test]
    fn an_archive_that_unpacks_to_more_than_the_limit_is_refused() {
        let mut kernel = tiny_elf();
        kernel.resize(4 << 20, 0);
        // Members and frames follow each other; so do streams of xz. One of 4 MiB is enough to make many of.
        let zeroes = vec![0; 4 << 20];
        for program in [PROGRAMS[0], PROGRAMS[3]] {
            let (first, more) = (packed_by(program, &kernel), packed_by(program, &zeroes));
            let count = (UNPACKED_MAX >> 22) as usize;
            let bomb = [first.clone(), more.repeat(count)].concat();
            assert!(bomb.len() < 1 << 20, "{} bytes", bomb.len());
            let said = opened(bomb).unwrap_err();
            assert!(said.contains("unpacks to more than 512 MiB. Take the debugging symbols out"), "{said}");
        }
    }

    #[test]
    fn a_window_that_is_too_large_is_refused_before_memory_is_taken_for_it() {
        let xz = packed_by(&["xz", "-c", "--lzma2=dict=512MiB"], &tiny_elf());
        let said = opened(xz).unwrap_err();
        assert!(said.contains("by xz with a window of more than 128 MiB. Unpack it first"), "{said}");
        // A frame header of RFC 8878, 3.1.1.1, with a window of 1 GiB.
        let zstd = [&b"\x28\xb5\x2f\xfd\x00\xa0"[..], &[0; 8]].concat();
        let said = opened(zstd).unwrap_err();
        assert!(said.contains("window"), "{said}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_hostile_archive_is_unpacked_or_refused(
            which in 0..PROGRAMS.len(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            static PACKED: LazyLock<Vec<Vec<u8>>> =
                LazyLock::new(|| PROGRAMS.iter().map(|program| packed_by(program, &tiny_elf())).collect());
            let mut packed = PACKED[which].clone();
            for (at, value) in edits {
                // The first bytes would only make it another kind.
                let at = 6 + at.index(packed.len() - 6);
                packed[at] = value;
            }
            if cut.index(4) == 0 {
                packed.truncate(6 + cut.index(packed.len() - 6));
            }
            if let Err(error) = opened(packed) {
                prop_assert!(error.ends_with('.'), "{}", error);
            }
        }
    }
}
