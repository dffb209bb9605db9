//! Requests become commands.

use super::flight::{Data, Flight, Stage, UnderWay};
use super::{BOUNCE_SIZE, Facts, NvmeQueue, copy};
use crate::contract::{Durability, Operation, Request, Sectors, Unmap};
use crate::nvme::transfer::{LIST_ENTRIES, LIST_SIZE, Share, pages_of, prps};
use nvme_spec::{Command, DatasetRange};

impl NvmeQueue {
    /// Begins as many commands of a flight as there is room for; returns whether these were all.
    pub(super) fn begin(&mut self, index: u16) -> bool {
        while let Some((command, data)) = self.next_command(index) {
            let flight = self.flights[usize::from(index)].as_mut().expect("it is under way");
            let id = self.free_commands.pop().expect("`next_command` saw that there is one");
            flight.open += 1;
            let command = self.place_data(id, index, command, data);
            self.commands[usize::from(id)] = Some(UnderWay::new(index, command, data));
            self.push(id);
        }
        self.flights[usize::from(index)].as_ref().is_none_or(Flight::is_begun)
    }

    /// The next command of a flight, if there is more and room for it.
    pub(super) fn next_command(&mut self, index: u16) -> Option<(Command, Data)> {
        let flight = self.flights[usize::from(index)].as_mut()?;
        if flight.is_begun() || self.free_commands.is_empty() {
            return None;
        }
        let Facts { namespace, block, limits, .. } = self.facts;
        let blocks = |sectors: Sectors| sectors.0 * Sectors::SIZE / u64::from(block);
        let Request { operation, buffers, .. } = &flight.request;
        let (at, transfer) = match *operation {
            Operation::Flush => (Sectors(0), Some(Command::flush(namespace))),
            Operation::Discard(range) => (range.start, Some(Command::deallocate(namespace, 0))),
            Operation::WriteZeroes(range, unmap) => {
                let count = blocks(range.count) as u32;
                (
                    range.start,
                    Some(Command::write_zeroes(
                        namespace,
                        blocks(range.start),
                        count,
                        unmap == Unmap::Allowed,
                    )),
                )
            }
            Operation::Read { at } | Operation::Write { at, .. } => (at, None),
        };
        if let Some(command) = transfer {
            flight.begun();
            return Some((command, Data::None));
        }
        let from = flight.cursor;
        let data = match from.share(buffers, &limits) {
            Share::Direct(bytes) => Data::Direct { from, bytes },
            Share::Bounced(bytes) => Data::Bounced { from, bytes, buffer: self.free_bounces.pop()? },
        };
        flight.cursor = from.advance(buffers, data.bytes());
        let (first, count) =
            (blocks(at) + from.at / u64::from(block), (data.bytes() / u64::from(block)) as u32);
        let command = match *operation {
            Operation::Write { durability, .. } => {
                Command::write(namespace, first, count, durability == Durability::Stable)
            }
            _ => Command::read(namespace, first, count),
        };
        Some((command, data))
    }

    /// Tells a command where its data is, with its list filled and data to be written copied where it must be.
    pub(super) fn place_data(&self, id: u16, index: u16, command: Command, data: Data) -> Command {
        let memory = self.memory.as_ref().expect("there until dropped");
        let request = &self.flights[usize::from(index)].as_ref().expect("it is under way").request;
        let at = self.lists + u64::from(id) * LIST_SIZE;
        let mut list = [0; LIST_ENTRIES];
        let list_at = memory.iova(at);
        let (prp1, prp2, entries) = match data {
            Data::None => {
                if let Operation::Discard(range) = request.operation {
                    let block = u64::from(self.facts.block) / Sectors::SIZE;
                    let (first, blocks) = (range.start.0 / block, (range.count.0 / block) as u32);
                    let range =
                        DatasetRange { attributes: 0.into(), blocks: blocks.into(), lba: first.into() };
                    memory.put(at, &range);
                    return Command { dptr: [list_at.into(), 0.into()], ..command };
                }
                return command;
            }
            Data::Direct { from, bytes } => prps(from.pages(&request.buffers, bytes), list_at, &mut list),
            Data::Bounced { from, bytes, buffer } => {
                let start = self.bounces + u64::from(buffer) * BOUNCE_SIZE;
                if let Operation::Write { .. } = request.operation {
                    copy(bytes, |done, piece| {
                        request.buffers.read_at(from.at + done, piece);
                        memory.write(start + done, piece);
                    });
                }
                prps(pages_of(memory.iova(start), bytes), list_at, &mut list)
            }
        };
        if entries > 0 {
            memory.put(at, &list[..entries]);
        }
        Command { dptr: [prp1.into(), prp2.into()], ..command }
    }

    /// Puts a command into the ring.
    pub(super) fn push(&mut self, id: u16) {
        let command = self.commands[usize::from(id)].as_mut().expect("it is under way");
        command.since = self.clock.now;
        command.stage = Stage::Sent;
        let entry = Command { cid: id.into(), ..command.command };
        self.ring.push(self.memory.as_ref().expect("there until dropped"), &entry);
    }
}
