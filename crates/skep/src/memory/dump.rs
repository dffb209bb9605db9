//! All RAM in a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::image::Image;
use crate::ask::Failure;
use crate::table::bytes;

/// Read and written in one go.
const CHUNK: usize = 1 << 20;
/// Zeroes of this length, aligned, are not written.
const BLOCK: usize = 4096;
/// Whoever waits longer than this is told how far it is.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// Writes all RAM to a new file, each byte at its guest address. On failure there is no file.
pub fn dump(image: &Image, path: &Path) -> Result<(), Failure> {
    let fail = |what: &str, cause: &io::Error, hint: &str| {
        Failure::other(format_args!("cannot {what} the file {}: {cause}. {hint}", path.display()))
    };
    // Guest RAM holds secrets: nobody else may read the file, from its first moment on.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|cause| {
        let exists = cause.kind() == io::ErrorKind::AlreadyExists;
        let hint = if exists { "Remove it, or choose another name." } else { "Check the path." };
        fail("create", &cause, hint)
    })?;
    let result = fill(&file, image, &mut Progress::new()).map_err(|error| match error {
        Broken::Image(failure) => failure,
        Broken::File(cause) => fail("write", &cause, "Its disk may be full."),
    });
    if result.is_err()
        && let Err(cause) = fs::remove_file(path)
    {
        crate::report::error(format_args!("cannot remove the unfinished file {}: {cause}.", path.display()));
    }
    result
}

/// At which end copying broke.
enum Broken {
    Image(Failure),
    File(io::Error),
}

fn fill(file: &File, image: &Image, progress: &mut Progress) -> Result<(), Broken> {
    let end = image.segments().iter().map(|segment| segment.start + segment.len).max().unwrap_or(0);
    file.set_len(end).map_err(Broken::File)?;
    let data: Vec<_> = image.segments().iter().map(|segment| (segment, segment.data())).collect();
    let total = data.iter().flat_map(|(_, pieces)| pieces).map(|piece| piece.len).sum();
    let (mut buffer, mut copied) = (vec![0; CHUNK], 0);
    for (segment, pieces) in data {
        for piece in pieces {
            let mut done = 0;
            while done < piece.len {
                let chunk = &mut buffer[..(piece.len - done).min(CHUNK as u64) as usize];
                let from = piece.from + done;
                segment.read(from, chunk).map_err(Broken::Image)?;
                write_sparsely(file, segment.start + from, chunk).map_err(Broken::File)?;
                done += chunk.len() as u64;
                copied += chunk.len() as u64;
                progress.show(copied, total);
            }
        }
    }
    progress.end();
    Ok(())
}

/// Writes what is not zero into a file that is zero.
fn write_sparsely(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut from = 0;
    // Neighbours that are both zero or both not go together.
    for run in bytes.chunks(BLOCK).collect::<Vec<_>>().chunk_by(|one, next| is_zero(one) == is_zero(next)) {
        let len: usize = run.iter().map(|block| block.len()).sum();
        if !is_zero(run[0]) {
            file.write_all_at(&bytes[from..from + len], at + from as u64)?;
        }
        from += len;
    }
    Ok(())
}

/// How far it is, on a terminal.
struct Progress {
    since: Instant,
    shown: Option<Instant>,
}

impl Progress {
    fn new() -> Progress {
        Progress { since: Instant::now(), shown: None }
    }

    fn show(&mut self, done: u64, total: u64) {
        let often = self.shown.is_some_and(|shown| shown.elapsed() < PROGRESS_AFTER / 5);
        if self.since.elapsed() < PROGRESS_AFTER || often || !io::stderr().is_terminal() {
            return;
        }
        self.shown = Some(Instant::now());
        // If standard error is gone there is nobody to look.
        drop(write!(io::stderr(), "\r{}\x1b[K", line(done, total)));
    }

    fn end(&self) {
        if self.shown.is_some() {
            drop(write!(io::stderr(), "\r\x1b[K"));
        }
    }
}

fn line(done: u64, total: u64) -> String {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    format!("{percent:3} % of {}", bytes(total))
}

#[cfg(test)]
mod tests {
    use super::super::image::tests::{image, image_of};
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn every_byte_is_at_its_guest_address_and_zeroes_take_no_room() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ram");
        let image = image();
        image.segments()[0].write(0x1fff, &[7]);
        image.segments()[2].write(0x8_0001, &[8, 9]);
        dump(&image, &path).unwrap();
        let written = fs::read(&path).unwrap();
        assert_eq!(written.len(), 0x50_0000);
        assert_eq!((written[0x1fff], &written[0x48_0001..0x48_0003]), (7, &[8, 9][..]));
        assert_eq!(written.iter().filter(|byte| **byte != 0).count(), 3);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert!(metadata.blocks() * 512 <= 256 << 10, "{} blocks", metadata.blocks());
    }

    #[test]
    fn a_file_that_exists_is_left_as_it_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let Err(Failure::Other(text)) = dump(&image(), file.path()) else { panic!() };
        assert!(text.ends_with("Remove it, or choose another name."), "{text}");
    }

    #[test]
    fn nothing_is_left_of_a_dump_that_fails() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ram");
        // No file reaches that far.
        let Err(Failure::Other(text)) = dump(&image_of(&[(1 << 63, 0x1000)]), &path) else { panic!() };
        assert!(text.starts_with("cannot write the file "), "{text}");
        assert!(!path.exists());
    }

    #[test]
    fn progress_is_said_in_percent() {
        assert_eq!((line(0, 0), line(3 << 29, 3 << 30)), ("  0 % of 0 B".into(), " 50 % of 3 GiB".into()));
    }
}
