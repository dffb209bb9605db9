//! The namespaces of the model: identify data, and commands on bytes in memory.

use std::collections::BTreeMap;

use dma::Iova;
use dma::fake::FakeIommu;
use zerocopy::FromBytes;

use super::{
    DATA_TRANSFER_ERROR, INVALID_FIELD, INVALID_NAMESPACE, INVALID_OPCODE, INVALID_PRP_OFFSET, SUCCESS,
};
use crate::nvme::spec::{Command, DeallocateRange, PAGE, io};

const BEYOND_THE_END: u16 = 0x80;

/// A namespace of the model.
#[derive(Clone, Copy, Debug)]
pub struct Namespace {
    /// Size in bytes.
    pub bytes: u64,
    /// Bytes of a block: 512 or 4096.
    pub block: u32,
}

pub(super) struct Media {
    namespaces: Vec<(Namespace, Vec<u8>)>,
    replaced: BTreeMap<Option<u32>, [u8; PAGE as usize]>,
}

impl Media {
    pub fn new(namespaces: Vec<Namespace>) -> Media {
        let made = namespaces.into_iter().map(|namespace| (namespace, vec![0; namespace.bytes as usize]));
        Media { namespaces: made.collect(), replaced: BTreeMap::new() }
    }

    pub fn replace(&mut self, namespace: Option<u32>, page: [u8; PAGE as usize]) {
        self.replaced.insert(namespace, page);
    }

    pub fn contents(&self, namespace: u32) -> Vec<u8> {
        self.find(namespace).map_or_else(Vec::new, |at| self.namespaces[at].1.clone())
    }

    fn find(&self, namespace: u32) -> Option<usize> {
        let at = (namespace as usize).checked_sub(1)?;
        (at < self.namespaces.len()).then_some(at)
    }

    pub fn identify(&self, which: u8, namespace: u32) -> Option<[u8; PAGE as usize]> {
        let replaced = if which == 1 { None } else { Some(namespace) };
        if let Some(page) = self.replaced.get(&replaced).filter(|_| which < 2) {
            return Some(*page);
        }
        let mut page = [0; PAGE as usize];
        match which {
            0 => {
                let (Namespace { bytes, block }, _) = self.namespaces[self.find(namespace)?];
                page[..8].copy_from_slice(&(bytes / u64::from(block)).to_le_bytes());
                // Format 1 is in use; deallocated blocks read as zeroes.
                page[26] = 1;
                page[33] = 1 | 1 << 3;
                page[128 + 4 + 2] = block.ilog2() as u8;
            }
            1 => {
                page[4..24].copy_from_slice(b"MODEL-1             ");
                page[24..64].copy_from_slice(b"skep model controller                   ");
                // Transfers of 128 KiB at most.
                page[77] = 5;
                page[516] = self.namespaces.len() as u8;
                page[520] = 1 << 2 | 1 << 3;
                page[525] = 1;
            }
            2 => (1..).zip(&self.namespaces).for_each(|(number, _)| page[4 * (number - 1)] = number as u8),
            _ => return None,
        }
        Some(page)
    }

    /// Carries out an I/O command; returns its status.
    pub fn run(&mut self, iommu: &FakeIommu, command: &Command) -> u16 {
        let Some(at) = self.find(command.namespace) else { return INVALID_NAMESPACE };
        let (Namespace { block, .. }, bytes) = &mut self.namespaces[at];
        let block = u64::from(*block);
        let place = |first: u64, blocks: u64| {
            let start = first.checked_mul(block)?;
            let end = start.checked_add(blocks.checked_mul(block)?)?;
            (end <= bytes.len() as u64).then_some(start as usize..end as usize)
        };
        let first = u64::from(command.words[0]) | u64::from(command.words[1]) << 32;
        let blocks = u64::from(command.words[2] & 0xffff) + 1;
        match command.opcode {
            io::FLUSH => SUCCESS,
            io::READ | io::WRITE => {
                let Some(range) = place(first, blocks) else { return BEYOND_THE_END };
                if range.len() as u64 > PAGE << 5 {
                    return INVALID_FIELD;
                }
                transfer(iommu, command, &mut bytes[range])
            }
            io::WRITE_ZEROES => {
                let Some(range) = place(first, blocks) else { return BEYOND_THE_END };
                bytes[range].fill(0);
                SUCCESS
            }
            io::DATASET => {
                let mut list = [0; 16];
                if iommu.read(Iova(command.prp1), &mut list).is_err() {
                    return DATA_TRANSFER_ERROR;
                }
                let range = DeallocateRange::read_from_bytes(&list).expect("16 bytes");
                let Some(range) = place(range.at, range.blocks.into()) else { return BEYOND_THE_END };
                bytes[range].fill(0);
                SUCCESS
            }
            _ => INVALID_OPCODE,
        }
    }
}

/// Moves data as the PRPs say.
fn transfer(iommu: &FakeIommu, command: &Command, data: &mut [u8]) -> u16 {
    if !command.prp1.is_multiple_of(4) {
        return INVALID_PRP_OFFSET;
    }
    let first = (PAGE - command.prp1 % PAGE) as usize;
    let mut pages = vec![command.prp1];
    let more = data.len().saturating_sub(first).div_ceil(PAGE as usize);
    match more {
        0 => {}
        1 => pages.push(command.prp2),
        _ => {
            // A list within one page: the driver's are no longer.
            let mut list = vec![0; 8 * more];
            if !command.prp2.is_multiple_of(8) || command.prp2 % PAGE + list.len() as u64 > PAGE {
                return INVALID_PRP_OFFSET;
            }
            if iommu.read(Iova(command.prp2), &mut list).is_err() {
                return DATA_TRANSFER_ERROR;
            }
            pages.extend(
                list.chunks_exact(8).map(|entry| u64::from_le_bytes(entry.try_into().expect("eight"))),
            );
        }
    }
    let mut done = 0;
    for (index, page) in pages.into_iter().enumerate() {
        if index > 0 && !page.is_multiple_of(PAGE) {
            return INVALID_PRP_OFFSET;
        }
        let len = ((PAGE - page % PAGE) as usize).min(data.len() - done);
        let piece = &mut data[done..done + len];
        let moved = match command.opcode {
            io::READ => iommu.write(Iova(page), piece),
            _ => iommu.read(Iova(page), piece),
        };
        if moved.is_err() {
            return DATA_TRANSFER_ERROR;
        }
        done += len;
    }
    SUCCESS
}
