//! The namespaces of the model: identify data, and commands on bytes in memory.

use std::collections::BTreeMap;

use dma::Iova;
use dma::fake::FakeIommu;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros};

use nvme_spec::{Command, DatasetRange, IdentifyController, IdentifyNamespace, PAGE, Status, cns, io};

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
        let replaced = if which == cns::CONTROLLER { None } else { Some(namespace) };
        if let Some(page) = self.replaced.get(&replaced).filter(|_| which < 2) {
            return Some(*page);
        }
        match which {
            cns::NAMESPACE => {
                let (Namespace { bytes, block }, _) = self.namespaces[self.find(namespace)?];
                let mut page = IdentifyNamespace::new_zeroed();
                page.nsze = (bytes / u64::from(block)).into();
                page.flbas = 1;
                page.lbaf[1] = (block.ilog2() << 16).into();
                page.dlfeat =
                    IdentifyNamespace::DEALLOCATED_IS_ZEROES | IdentifyNamespace::WRITE_ZEROES_DEALLOCATES;
                Some(zerocopy::transmute!(page))
            }
            cns::CONTROLLER => {
                let mut page = IdentifyController::new_zeroed();
                page.sn = *b"MODEL-1             ";
                page.mn = *b"skep model controller                   ";
                // Transfers of 128 KiB at most.
                page.mdts = 5;
                page.nn = (self.namespaces.len() as u32).into();
                page.oncs =
                    (IdentifyController::DATASET_MANAGEMENT | IdentifyController::WRITE_ZEROES).into();
                page.vwc = IdentifyController::WRITE_CACHE;
                Some(zerocopy::transmute!(page))
            }
            cns::ACTIVE_NAMESPACES => {
                let mut page = [0; PAGE as usize];
                (1..).zip(&self.namespaces).for_each(|(number, _)| page[4 * (number - 1)] = number as u8);
                Some(page)
            }
            _ => None,
        }
    }

    /// Carries out an I/O command; returns its status.
    pub fn run(&mut self, iommu: &FakeIommu, command: &Command) -> Status {
        let Some(at) = self.find(command.nsid.get()) else { return Status::INVALID_NAMESPACE };
        let (Namespace { block, .. }, bytes) = &mut self.namespaces[at];
        let block = u64::from(*block);
        let place = |first: u64, blocks: u64| {
            let start = first.checked_mul(block)?;
            let end = start.checked_add(blocks.checked_mul(block)?)?;
            (end <= bytes.len() as u64).then_some(start as usize..end as usize)
        };
        let (first, blocks) = (command.lba(), command.blocks());
        match command.opcode {
            io::FLUSH => Status::SUCCESS,
            io::READ | io::WRITE => {
                let Some(range) = place(first, blocks) else { return Status::LBA_RANGE };
                if range.len() as u64 > PAGE << 5 {
                    return Status::INVALID_FIELD;
                }
                transfer(iommu, command, &mut bytes[range])
            }
            io::WRITE_ZEROES => {
                let Some(range) = place(first, blocks) else { return Status::LBA_RANGE };
                bytes[range].fill(0);
                Status::SUCCESS
            }
            io::DATASET_MANAGEMENT => {
                let mut list = [0; 16];
                if iommu.read(Iova(command.dptr[0].get()), &mut list).is_err() {
                    return Status::DATA_TRANSFER_ERROR;
                }
                let range = DatasetRange::read_from_bytes(&list).expect("16 bytes");
                let Some(range) = place(range.lba.get(), range.blocks.get().into()) else {
                    return Status::LBA_RANGE;
                };
                bytes[range].fill(0);
                Status::SUCCESS
            }
            _ => Status::INVALID_OPCODE,
        }
    }
}

/// Moves data as the PRPs say.
fn transfer(iommu: &FakeIommu, command: &Command, data: &mut [u8]) -> Status {
    let [prp1, prp2] = command.dptr.map(U64::get);
    if !prp1.is_multiple_of(4) {
        return Status::PRP_OFFSET;
    }
    let first = (PAGE - prp1 % PAGE) as usize;
    let mut pages = vec![prp1];
    let more = data.len().saturating_sub(first).div_ceil(PAGE as usize);
    match more {
        0 => {}
        1 => pages.push(prp2),
        _ => {
            // A list within one page: the driver's are no longer.
            let mut list = vec![0; 8 * more];
            if !prp2.is_multiple_of(8) || prp2 % PAGE + list.len() as u64 > PAGE {
                return Status::PRP_OFFSET;
            }
            if iommu.read(Iova(prp2), &mut list).is_err() {
                return Status::DATA_TRANSFER_ERROR;
            }
            pages.extend(
                list.chunks_exact(8).map(|entry| u64::from_le_bytes(entry.try_into().expect("eight"))),
            );
        }
    }
    let mut done = 0;
    for (index, page) in pages.into_iter().enumerate() {
        if index > 0 && !page.is_multiple_of(PAGE) {
            return Status::PRP_OFFSET;
        }
        let len = ((PAGE - page % PAGE) as usize).min(data.len() - done);
        let piece = &mut data[done..done + len];
        let moved = match command.opcode {
            io::READ => iommu.write(Iova(page), piece),
            _ => iommu.read(Iova(page), piece),
        };
        if moved.is_err() {
            return Status::DATA_TRANSFER_ERROR;
        }
        done += len;
    }
    Status::SUCCESS
}
