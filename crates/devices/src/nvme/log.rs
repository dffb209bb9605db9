//! What the controller remembers for its log pages (5.14.1).

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use disk::{Counters, DiskError, Operation};

use super::completion::field;
use super::spec::{ErrorEntry, Health, PAGE, Status};

/// Entries of the error log.
pub(super) const ERRORS: usize = 32;
/// Most namespaces that the list of changed ones names.
const MAX_CHANGED: usize = PAGE as usize / 4;

/// Critical warning: reliability is degraded.
const DEGRADED: u8 = 1 << 2;

/// A failed command, for the error log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed {
    pub(super) sq: u16,
    pub(super) cid: u16,
    pub(super) status: Status,
    pub(super) lba: u64,
    pub(super) nsid: u32,
}

/// The controller's memory.
pub(super) struct Log {
    since: Instant,
    errors: VecDeque<ErrorEntry>,
    count: u64,
    media_errors: u64,
    critical_warning: u8,
    changed: BTreeSet<u32>,
}

impl Log {
    pub(super) fn new() -> Log {
        Log {
            since: Instant::now(),
            errors: VecDeque::with_capacity(ERRORS),
            count: 0,
            media_errors: 0,
            critical_warning: 0,
            changed: BTreeSet::new(),
        }
    }

    /// A command failed at the disk. Returns whether the subsystem has become unreliable by that.
    pub(super) fn failed(&mut self, failed: Failed, error: DiskError) -> bool {
        self.count += 1;
        if self.errors.len() == ERRORS {
            self.errors.pop_back();
        }
        self.errors.push_front(ErrorEntry {
            count: self.count.into(),
            sq_id: failed.sq.into(),
            cid: failed.cid.into(),
            status: (field(failed.status) << 1).into(),
            location: 0xffff.into(),
            lba: failed.lba.into(),
            nsid: failed.nsid.into(),
            vendor: 0,
            reserved: [0; 35],
        });
        self.media_errors += u64::from(error == DiskError::Media);
        let degraded = error == DiskError::Gone && self.critical_warning & DEGRADED == 0;
        if degraded {
            self.critical_warning |= DEGRADED;
        }
        degraded
    }

    /// The error log, newest first.
    pub(super) fn errors(&self) -> Vec<u8> {
        use zerocopy::IntoBytes;
        let mut page = vec![0; ERRORS * size_of::<ErrorEntry>()];
        for (to, entry) in page.chunks_mut(size_of::<ErrorEntry>()).zip(&self.errors) {
            to.copy_from_slice(entry.as_bytes());
        }
        page
    }

    /// SMART / health information, of what went through the disks.
    pub(super) fn health(&self, disks: impl Iterator<Item = Counters>) -> Health {
        let mut sum = Counters::default();
        for disk in disks {
            sum.reads += disk.reads;
            sum.writes += disk.writes;
            sum.bytes_read += disk.bytes_read;
            sum.bytes_written += disk.bytes_written;
        }
        let units = |bytes: u64| u128::from(bytes.div_ceil(512_000)).into();
        Health {
            critical_warning: self.critical_warning,
            // 300 K: there is nothing to measure.
            temperature: 300.into(),
            spare: 100,
            spare_threshold: 10,
            used: 0,
            reserved6: [0; 26],
            units_read: units(sum.bytes_read),
            units_written: units(sum.bytes_written),
            read_commands: u128::from(sum.reads).into(),
            write_commands: u128::from(sum.writes).into(),
            busy_time: 0.into(),
            power_cycles: 1.into(),
            power_on_hours: u128::from(self.since.elapsed().as_secs() / 3600).into(),
            unsafe_shutdowns: 0.into(),
            media_errors: u128::from(self.media_errors).into(),
            error_entries: u128::from(self.count).into(),
            reserved192: [0; 320],
        }
    }

    /// A namespace is other than before.
    pub(super) fn changed(&mut self, nsid: u32) {
        if self.changed.len() < MAX_CHANGED {
            self.changed.insert(nsid);
        }
    }

    /// The list of changed namespaces; with `clear` it is empty afterwards.
    pub(super) fn take_changed(&mut self, clear: bool) -> Vec<u8> {
        let mut page: Vec<u8> = self.changed.iter().flat_map(|nsid| nsid.to_le_bytes()).collect();
        page.resize(PAGE as usize, 0);
        if clear {
            self.changed.clear();
        }
        page
    }
}

/// What the driver is told of a disk's error.
pub(super) fn status_of(error: DiskError, operation: Operation) -> Status {
    match (error, operation) {
        (DiskError::Media, Operation::Read { .. }) => Status::READ_ERROR,
        (DiskError::Media, _) => Status::WRITE_FAULT,
        (DiskError::NoSpace, _) => Status::CAPACITY_EXCEEDED,
        (DiskError::Gone, _) => Status::NAMESPACE_NOT_READY,
        (DiskError::ReadOnly, _) => Status::READ_ONLY,
        (DiskError::DmaBlocked, _) => Status::DATA_TRANSFER_ERROR,
        (DiskError::OutOfRange, _) => Status::LBA_RANGE,
        (DiskError::Unaligned | DiskError::TooLong | DiskError::Unsupported, _) => Status::INVALID_FIELD,
        (DiskError::Cancelled, _) => Status::ABORT_REQUESTED,
        // The driver may try these again.
        (DiskError::TimedOut | DiskError::QueueFull | DiskError::Other(_), _) => Status::INTERNAL_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_log_is_bounded_and_newest_first() {
        let mut log = Log::new();
        for cid in 0..100 {
            let failed = Failed { sq: 1, cid, status: Status::READ_ERROR, lba: 7, nsid: 1 };
            assert!(!log.failed(failed, DiskError::Media));
        }
        let page = log.errors();
        assert_eq!(page.len(), ERRORS * 64);
        assert_eq!((page[0], page[10]), (100, 99));
        assert_eq!(log.health(std::iter::empty()).media_errors.get(), 100);
    }

    #[test]
    fn a_lost_disk_is_a_warning_once() {
        let mut log = Log::new();
        let failed = Failed { sq: 1, cid: 1, status: Status::NAMESPACE_NOT_READY, lba: 0, nsid: 1 };
        assert!(log.failed(failed, DiskError::Gone));
        assert!(!log.failed(failed, DiskError::Gone));
        assert_eq!(log.health(std::iter::empty()).critical_warning, DEGRADED);
    }

    #[test]
    fn namespaces_that_changed_are_listed_until_read() {
        let mut log = Log::new();
        log.changed(3);
        log.changed(1);
        log.changed(3);
        assert_eq!(log.take_changed(false)[..12], [1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(log.take_changed(true)[0], 1);
        assert_eq!(log.take_changed(true)[0], 0);
    }
}
