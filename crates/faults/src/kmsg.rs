//! The kernel's log, record by record.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The kernel prints no longer record (`PRINTKRB_RECORD_MAX` and the prefix, 8 KiB before).
const LONGEST: usize = 16 << 10;

/// One record of the kernel's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number; the kernel counts records from 0 on.
    pub number: u64,
    /// Microseconds since boot.
    pub stamp: u64,
    /// The line, as in `dmesg`.
    pub text: Vec<u8>,
}

/// What is next in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A record.
    Record(Record),
    /// At least so many records were overwritten before they could be read.
    Lost(u64),
}

/// `/dev/kmsg`, from the moment on at which it was opened.
#[derive(Debug)]
pub struct KernelLog {
    file: File,
    /// The number of the record that should come next.
    next: Option<u64>,
    overrun: bool,
    /// A record that was read when the loss before it had to be reported first.
    held: Option<Record>,
}

impl KernelLog {
    /// Opens the log at its end. Needs CAP_SYSLOG where `kernel.dmesg_restrict` is 1; later reads need nothing.
    pub fn open() -> io::Result<KernelLog> {
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let mut file = File::options().read(true).custom_flags(flags).open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(KernelLog::over(file))
    }

    /// Reads records, one by each read(2), from a file that is not blocking.
    pub(super) fn over(file: File) -> KernelLog {
        KernelLog { file, next: None, overrun: false, held: None }
    }

    /// The next entry, or `None` when all that there is now was read. Records that programs wrote are passed over.
    pub fn read(&mut self) -> io::Result<Option<Entry>> {
        if let Some(record) = self.held.take() {
            return Ok(Some(Entry::Record(record)));
        }
        let mut buffer = [0; LONGEST];
        loop {
            let read = match self.file.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The record to be read next was overwritten; the read after this one goes on behind the gap.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.overrun = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some((number, record)) = parse(&buffer[..read]) else { continue };
            let expected = self.next.replace(number + 1).unwrap_or(number);
            let missed = number.saturating_sub(expected).max(u64::from(self.overrun));
            self.overrun = false;
            match (missed, record) {
                (0, None) => {}
                (0, Some(record)) => return Ok(Some(Entry::Record(record))),
                (missed, record) => {
                    self.held = record;
                    return Ok(Some(Entry::Lost(missed)));
                }
            }
        }
    }
}

impl AsFd for KernelLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Reads `PRIORITY,NUMBER,STAMP,FLAGS…;TEXT` and its lines of properties (Documentation/ABI/testing/dev-kmsg).
/// A record's number, and the record unless a program wrote it: the kernel's facility is 0, and nobody else can
/// use that.
fn parse(bytes: &[u8]) -> Option<(u64, Option<Record>)> {
    let semicolon = bytes.iter().position(|byte| *byte == b';')?;
    let mut fields = std::str::from_utf8(&bytes[..semicolon]).ok()?.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let number: u64 = fields.next()?.parse().ok()?;
    let stamp = fields.next()?.parse().ok()?;
    let text = bytes[semicolon + 1..].split(|byte| *byte == b'\n').next()?.to_vec();
    let kernel = priority >> 3 == 0;
    (number < u64::MAX).then(|| (number, kernel.then_some(Record { number, stamp, text })))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::fd::{FromRawFd, RawFd};

    /// A log whose records are written here, one by each write.
    pub fn pipe() -> (KernelLog, File) {
        let mut ends: [RawFd; 2] = [0; 2];
        // SAFETY: the array has room for two descriptors. O_DIRECT keeps writes apart.
        let done = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_DIRECT) };
        assert_eq!(done, 0);
        // SAFETY: the kernel just made both, and nobody else has them.
        let [read, write] = ends.map(|end| unsafe { File::from_raw_fd(end) });
        (KernelLog::over(read), write)
    }

    fn record(number: u64, text: &str) -> Option<Entry> {
        Some(Entry::Record(Record { number, stamp: 5140900, text: text.into() }))
    }

    #[test]
    fn records_come_whole_without_their_properties_and_without_those_of_programs() {
        let (mut log, mut kernel) = pipe();
        assert_eq!(log.read().unwrap(), None);
        kernel.write_all(b"3,339,5140900,-;one\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:09.0\n").unwrap();
        kernel.write_all(b"12,340,5140900,-;DMAR: forged by a program\n").unwrap();
        kernel.write_all(b"3,341,5140900,c,more;two; and a half\n").unwrap();
        assert_eq!(log.read().unwrap(), record(339, "one"));
        assert_eq!(log.read().unwrap(), record(341, "two; and a half"));
        assert_eq!(log.read().unwrap(), None);
    }

    #[test]
    fn records_that_were_overwritten_are_counted_before_the_next() {
        let (mut log, mut kernel) = pipe();
        for line in [&b"3,7,5140900,-;one\n"[..], b"3,12,5140900,-;two\n"] {
            kernel.write_all(line).unwrap();
        }
        assert_eq!(log.read().unwrap(), record(7, "one"));
        assert_eq!(log.read().unwrap(), Some(Entry::Lost(4)));
        assert_eq!(log.read().unwrap(), record(12, "two"));
        log.overrun = true;
        kernel.write_all(b"3,13,5140900,-;three\n").unwrap();
        assert_eq!(log.read().unwrap(), Some(Entry::Lost(1)));
        assert_eq!(log.read().unwrap(), record(13, "three"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, number: u64) {
            let _record = parse(&bytes);
            let _numbered = parse(&[format!("3,{number},1,-;").as_bytes(), &bytes].concat());
        }
    }
}
