//! Commands as jobs: what to ask of the disk, in how many steps.

use std::sync::Arc;

use disk::{DiskError, Durability, Operation, SectorRange, Sectors, Unmap};
use memory::{Buffers, Ram, RamError};
use zerocopy::IntoBytes;

use crate::nvme::data;
use crate::nvme::namespace::Attached;
use crate::nvme::spec::{Command, DatasetRange, Status, io};
use crate::scratch::{SCRATCH, Scratch};

/// Logical blocks are protected (PRINFO); there is no metadata here.
const PROTECTION: u32 = 0xf << 26;

/// A command that needs more of a disk than one request.
pub(super) enum Job {
    /// One request, which is on its way.
    Once,
    /// Zeroes, a limited range at a time.
    Zero {
        left: SectorRange,
        unmap: Unmap,
        /// The disk has shown that it cannot zero by itself.
        by_writing: bool,
        end: End,
    },
    /// Ranges to deallocate, a limited range at a time.
    Deallocate { left: std::vec::IntoIter<SectorRange>, range: SectorRange },
    /// Guest memory to be compared with the disk, a scratch's length at a time.
    Compare { at: Sectors, guest: Buffers, done: u64 },
}

/// What follows the last of the zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// They are brought to stable storage.
    Flushed,
    /// The same, if the cache is off by then.
    AsTheCacheIs,
    /// Nothing.
    Told,
}

/// What begins with a command.
pub(super) enum Plan {
    /// A single request.
    Request(Operation, Buffers),
    /// Several steps, the first of which is not made yet.
    Steps(Job),
    /// Nothing to do.
    Done,
}

/// What a command is planned with.
pub(super) struct Planner<'a> {
    pub(super) namespace: &'a Attached,
    pub(super) ram: &'a Arc<Ram>,
    /// When writes count as done, unless the command asks for more.
    pub(super) durability: Durability,
}

impl Planner<'_> {
    /// Reads a command. `buffers` are empty.
    pub(super) fn plan(&self, command: &Command, mut buffers: Buffers) -> Result<Plan, (Status, Buffers)> {
        match self.try_plan(command, &mut buffers) {
            Ok(Planned::Request(operation)) => Ok(Plan::Request(operation, buffers)),
            Ok(Planned::Compare(at)) => Ok(Plan::Steps(Job::Compare { at, guest: buffers, done: 0 })),
            Ok(Planned::Steps(job)) => Ok(Plan::Steps(job)),
            Ok(Planned::Done) => Ok(Plan::Done),
            Err(status) => Err((status, buffers)),
        }
    }

    fn try_plan(&self, command: &Command, buffers: &mut Buffers) -> Result<Planned, Status> {
        if command.flags & 3 != 0 {
            // No fused operations.
            return Err(Status::INVALID_FIELD);
        }
        match command.opcode {
            io::FLUSH => Ok(Planned::Request(Operation::Flush)),
            io::READ | io::WRITE | io::COMPARE => {
                let range = self.range(command)?;
                let bytes = self.namespace.bytes(command.blocks());
                if bytes > data::MAX_TRANSFER {
                    return Err(Status::INVALID_FIELD);
                }
                data::gather(command, bytes, self.ram, buffers)?;
                let at = range.start;
                Ok(match command.opcode {
                    io::READ => Planned::Request(Operation::Read { at }),
                    io::COMPARE => Planned::Compare(at),
                    _ => Planned::Request(Operation::Write { at, durability: self.durability(command) }),
                })
            }
            io::WRITE_ZEROES => {
                let left = self.range(command)?;
                let unmap =
                    if command.cdw12.get() & Command::DEAC != 0 { Unmap::Allowed } else { Unmap::Forbidden };
                let by_writing = self.namespace.geometry().write_zeroes.is_none();
                let end = match self.durability(command) {
                    Durability::Stable => End::Flushed,
                    Durability::Cached => End::AsTheCacheIs,
                };
                Ok(Planned::Steps(Job::Zero { left, unmap, by_writing, end }))
            }
            io::DATASET_MANAGEMENT => self.dataset_management(command),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    fn range(&self, command: &Command) -> Result<SectorRange, Status> {
        if command.cdw12.get() & PROTECTION != 0 {
            return Err(Status::INVALID_FIELD);
        }
        self.namespace.sectors(command.lba(), command.blocks())
    }

    fn durability(&self, command: &Command) -> Durability {
        if command.cdw12.get() & Command::FUA != 0 && self.namespace.caches() {
            return Durability::Stable;
        }
        self.durability
    }

    /// All but "deallocate" is advice that does not matter here (6.7).
    fn dataset_management(&self, command: &Command) -> Result<Planned, Status> {
        if command.cdw11.get() & Command::AD == 0 {
            return Ok(Planned::Done);
        }
        let count = (command.cdw10.get() & 0xff) as usize + 1;
        let mut raw = [DatasetRange::default(); 256];
        let raw = &mut raw[..count];
        self.copy_in(command, raw.as_mut_bytes())?;
        let mut list = Vec::with_capacity(count);
        for range in raw.iter() {
            let range = self.namespace.sectors(range.lba.get(), range.blocks.get().into())?;
            if range.count.0 > 0 {
                list.push(range);
            }
        }
        if self.namespace.geometry().discard.is_none() {
            return Ok(Planned::Done);
        }
        let mut left = list.into_iter();
        Ok(match left.next() {
            Some(range) => Planned::Steps(Job::Deallocate { left, range }),
            None => Planned::Done,
        })
    }

    fn copy_in(&self, command: &Command, bytes: &mut [u8]) -> Result<(), Status> {
        let mut buffers = Buffers::new(self.ram.clone());
        data::gather(command, bytes.len() as u64, self.ram, &mut buffers)?;
        buffers.read(bytes);
        Ok(())
    }
}

enum Planned {
    Request(Operation),
    Compare(Sectors),
    Steps(Job),
    Done,
}

/// What follows a step of a job.
pub(super) enum Next {
    /// A request to the disk.
    Ask(Operation, Buffers),
    /// The job is done.
    Done(Status),
}

/// The scratch memory of one queue.
#[derive(Default)]
pub(super) struct Scratches {
    /// What zeroes are written from.
    zeroes: Scratch,
    /// What a disk is compared through, one command at a time.
    compared: Scratch,
}

impl Job {
    /// Whether the job needs the scratch that there is once only.
    pub(super) fn is_compare(&self) -> bool {
        matches!(self, Job::Compare { .. })
    }

    /// The memory that the job holds until it is done, as so many pieces of a list.
    pub(super) fn room(&self) -> usize {
        match self {
            Job::Once | Job::Zero { .. } => 0,
            Job::Deallocate { left, .. } => (left.len() * size_of::<SectorRange>()).div_ceil(Buffers::PIECE),
            Job::Compare { guest, .. } => guest.room(),
        }
    }

    /// The next request to the disk. `empty` are buffers without pieces, for requests without data; `through` says that a
    /// cache of the disk is off now.
    pub(super) fn next(
        &mut self,
        namespace: &Attached,
        scratch: &mut Scratches,
        empty: Buffers,
        through: bool,
    ) -> Next {
        let lent = |buffers: Result<Buffers, RamError>, operation| match buffers {
            Ok(buffers) => Next::Ask(operation, buffers),
            Err(_) => Next::Done(Status::INTERNAL_ERROR),
        };
        // As long a range as the disk takes at once, in whole blocks.
        let most = |range: SectorRange, max: Sectors| {
            let block = namespace.bytes(1) / Sectors::SIZE;
            SectorRange { start: range.start, count: Sectors(range.count.0.min(max.0 / block * block)) }
        };
        let geometry = namespace.geometry();
        match self {
            Job::Once => Next::Done(Status::SUCCESS),
            Job::Zero { left, end, .. } if left.count.0 == 0 => match std::mem::replace(end, End::Told) {
                End::Flushed => Next::Ask(Operation::Flush, empty),
                End::AsTheCacheIs if through => Next::Ask(Operation::Flush, empty),
                End::AsTheCacheIs | End::Told => Next::Done(Status::SUCCESS),
            },
            Job::Zero { left, unmap, by_writing, .. } => {
                let range = most(*left, geometry.write_zeroes.map_or(Sectors(0), |zeroes| zeroes.max));
                if *by_writing || range.count.0 == 0 {
                    let write = Operation::Write { at: left.start, durability: Durability::Cached };
                    let bytes = left.count.0.saturating_mul(Sectors::SIZE).min(SCRATCH);
                    return lent(scratch.zeroes.lend(bytes), write);
                }
                Next::Ask(Operation::WriteZeroes(range, *unmap), empty)
            }
            Job::Deallocate { range, .. } => {
                let part = most(*range, geometry.discard.map_or(Sectors(0), |discard| discard.max));
                if part.count.0 == 0 {
                    return Next::Done(Status::SUCCESS);
                }
                Next::Ask(Operation::Discard(part), empty)
            }
            Job::Compare { at, guest, done } => {
                let left = guest.bytes() - *done;
                if left == 0 {
                    return Next::Done(Status::SUCCESS);
                }
                let read = Operation::Read { at: Sectors(at.0 + *done / Sectors::SIZE) };
                lent(scratch.compared.lend(left.min(SCRATCH)), read)
            }
        }
    }

    /// A request has been answered. Returns the command's status if nothing more needs to be asked; `copied` counts
    /// bytes that went through scratch memory.
    pub(super) fn answered(
        &mut self,
        operation: Operation,
        result: Result<(), DiskError>,
        buffers: &Buffers,
        copied: &mut u64,
    ) -> Result<Option<Status>, DiskError> {
        match (self, operation, result) {
            (Job::Zero { by_writing, .. }, Operation::WriteZeroes(..), Err(DiskError::Unsupported)) => {
                *by_writing = true;
                Ok(None)
            }
            // Deallocating is advice (6.7).
            (Job::Deallocate { .. }, _, Err(DiskError::Unsupported)) => Ok(Some(Status::SUCCESS)),
            (_, _, Err(error)) => Err(error),
            (Job::Once, ..) => Ok(Some(Status::SUCCESS)),
            (Job::Zero { left, .. }, Operation::WriteZeroes(range, _), Ok(())) => {
                advance(left, range.count);
                Ok(None)
            }
            (Job::Zero { left, .. }, Operation::Write { .. }, Ok(())) => {
                *copied += buffers.bytes();
                advance(left, Sectors::in_bytes(buffers.bytes()));
                Ok(None)
            }
            (Job::Deallocate { left, range }, Operation::Discard(part), Ok(())) => {
                advance(range, part.count);
                if range.count.0 == 0 {
                    match left.next() {
                        Some(next) => *range = next,
                        None => return Ok(Some(Status::SUCCESS)),
                    }
                }
                Ok(None)
            }
            (Job::Compare { guest, done, .. }, _, Ok(())) => {
                *copied += buffers.bytes();
                if !equal(guest, *done, buffers) {
                    return Ok(Some(Status::COMPARE_FAILURE));
                }
                *done += buffers.bytes();
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

fn advance(range: &mut SectorRange, by: Sectors) {
    range.start.0 += by.0;
    range.count.0 -= by.0.min(range.count.0);
}

/// Whether the guest's memory from `offset` on holds what was read from the disk.
fn equal(guest: &Buffers, offset: u64, disk: &Buffers) -> bool {
    let (mut one, mut other) = ([0; 4096], [0; 4096]);
    (0..disk.bytes()).step_by(4096).all(|done| {
        let len = (disk.bytes() - done).min(4096) as usize;
        guest.read_at(offset + done, &mut one[..len]);
        disk.read_at(done, &mut other[..len]);
        one[..len] == other[..len]
    })
}
