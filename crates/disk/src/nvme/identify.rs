//! Identify data, read as bytes that a device may have filled with anything.

use nvme_spec::{IdentifyController, IdentifyNamespace, PAGE};
use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

/// What a controller says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControllerData {
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// Longest transfer in bytes (MDTS), in pages of 4096; `None` when there is no limit.
    pub max_transfer: Option<u64>,
    /// Number of the highest namespace (NN).
    pub namespaces: u32,
    /// It can deallocate (ONCS, dataset management).
    pub deallocate: bool,
    /// It can write zeroes.
    pub write_zeroes: bool,
    /// It has a volatile write cache.
    pub volatile_cache: bool,
}

impl ControllerData {
    /// Reads the data structure of CNS 01h.
    pub fn read(data: &[u8; PAGE as usize]) -> ControllerData {
        let page = IdentifyController::read_from_bytes(data).expect("it has the size of a page");
        let can = |command| page.oncs.get() & command != 0;
        ControllerData {
            serial: text(&page.sn),
            model: text(&page.mn),
            firmware: text(&page.fr),
            max_transfer: match page.mdts {
                0 => None,
                power => Some(PAGE.checked_shl(power.into()).filter(|max| *max >= PAGE).unwrap_or(u64::MAX)),
            },
            namespaces: page.nn.get(),
            deallocate: can(IdentifyController::DATASET_MANAGEMENT),
            write_zeroes: can(IdentifyController::WRITE_ZEROES),
            volatile_cache: page.vwc & IdentifyController::WRITE_CACHE != 0,
        }
    }
}

/// What is known about a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamespaceData {
    /// Size in logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block: 512 to 4096.
    pub block: u32,
    /// It is write protected.
    pub read_only: bool,
    /// Deallocated blocks read as zeroes (DLFEAT).
    pub zeroes_after_deallocate: bool,
    /// Write zeroes may deallocate (DLFEAT).
    pub write_zeroes_deallocates: bool,
    /// Preferred granularity of writes in blocks (NPWG).
    pub write_granularity: u32,
    /// Preferred granularity of deallocation in blocks (NPDG).
    pub deallocate_granularity: u32,
    /// Optimal size of a write in blocks (NOWS); 0 when it names none.
    pub optimal_write: u32,
}

/// Why a namespace cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// There is none of that number.
    #[error("there is no active namespace of that number. `nvme list-ns` on the host shows those there are")]
    Absent,
    /// Its blocks carry metadata.
    #[error(
        "its blocks carry {0} bytes of metadata. Format it without (`nvme format --ms=0`), or let the host's kernel drive it"
    )]
    Metadata(u16),
    /// Its blocks are of a size that guests do not take.
    #[error(
        "its blocks have 2^{0} bytes; skep drives blocks of 512 to 4096 bytes. Format it with such (`nvme format --lbaf`)"
    )]
    BlockSize(u8),
}

impl NamespaceData {
    /// Reads the data structure of CNS 00h.
    pub fn read(data: &[u8; PAGE as usize]) -> Result<NamespaceData, Refusal> {
        let page = IdentifyNamespace::read_from_bytes(data).expect("it has the size of a page");
        let blocks = page.nsze.get();
        if blocks == 0 {
            return Err(Refusal::Absent);
        }
        let format = page.lbaf[usize::from(page.flbas & 0xf | page.flbas >> 1 & 0x30)].get();
        let (metadata, power) = (format as u16, (format >> 16) as u8);
        if metadata != 0 {
            return Err(Refusal::Metadata(metadata));
        }
        // More bytes than any device has would not fit into what counts them.
        if !(9..=12).contains(&power) || blocks > 1 << 51 {
            return Err(Refusal::BlockSize(power));
        }
        let preferred = page.nsfeat & IdentifyNamespace::PREFERRED_SIZES != 0;
        // The fields hold one less, where there are any.
        let size = |field: U16| if preferred { u32::from(field.get()) + 1 } else { 1 };
        Ok(NamespaceData {
            blocks,
            block: 1 << power,
            read_only: page.nsattr & IdentifyNamespace::WRITE_PROTECTED != 0,
            zeroes_after_deallocate: page.dlfeat & IdentifyNamespace::DEALLOCATED
                == IdentifyNamespace::DEALLOCATED_IS_ZEROES,
            write_zeroes_deallocates: page.dlfeat & IdentifyNamespace::WRITE_ZEROES_DEALLOCATES != 0,
            write_granularity: size(page.npwg),
            deallocate_granularity: size(page.npdg),
            optimal_write: if preferred { size(page.nows) } else { 0 },
        })
    }
}

/// Text padded with blanks; what is not printable ASCII becomes a question mark.
fn text(bytes: &[u8]) -> String {
    let clean = bytes.iter().map(|byte| match byte {
        0 => ' ',
        0x20..0x7f => char::from(*byte),
        _ => '?',
    });
    clean.collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn namespace(format: u8, metadata: u16, power: u8) -> [u8; 4096] {
        let mut data = [0; 4096];
        data[..8].copy_from_slice(&1000u64.to_le_bytes());
        data[26] = format;
        let at = 128 + 4 * usize::from(format);
        data[at..at + 2].copy_from_slice(&metadata.to_le_bytes());
        data[at + 2] = power;
        data
    }

    #[test]
    fn the_format_in_use_decides_the_block_size() {
        assert_eq!(NamespaceData::read(&namespace(3, 0, 12)).unwrap().block, 4096);
        assert_eq!(NamespaceData::read(&namespace(0, 8, 9)), Err(Refusal::Metadata(8)));
        assert_eq!(NamespaceData::read(&namespace(0, 0, 13)), Err(Refusal::BlockSize(13)));
        assert_eq!(NamespaceData::read(&[0; 4096]), Err(Refusal::Absent));
    }

    #[test]
    fn model_and_serial_lose_their_padding() {
        let mut data = [b' '; 4096];
        data[4..8].copy_from_slice(b"NV0\0");
        data[24..36].copy_from_slice(b"A model\xff    ");
        data[77] = 7;
        let data = ControllerData::read(&data);
        assert_eq!((data.serial.as_str(), data.model.as_str()), ("NV0", "A model?"));
        assert_eq!(data.max_transfer, Some(512 << 10));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(seed in prop::collection::vec(any::<u8>(), 4096)) {
            let data: [u8; 4096] = seed.try_into().unwrap();
            ControllerData::read(&data);
            if let Ok(namespace) = NamespaceData::read(&data) {
                prop_assert!(namespace.blocks.checked_mul(namespace.block.into()).is_some());
            }
        }
    }
}
