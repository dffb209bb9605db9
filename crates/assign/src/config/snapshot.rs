//! What the hardware's configuration space held when the device was opened.

/// 4 KiB of configuration space; 0 behind what the hardware has.
#[derive(Clone)]
pub(crate) struct Snapshot {
    bytes: Box<[u8; 4096]>,
    /// Bytes that the hardware has: 256, or 4096 for PCI Express.
    size: u16,
}

impl Snapshot {
    /// Reads `size` bytes (256 to 4096) by `read`, four at a time, as configuration space is read.
    pub fn read<E>(size: u64, mut read: impl FnMut(u16, &mut [u8]) -> Result<(), E>) -> Result<Snapshot, E> {
        let size = size.clamp(64, 4096) as u16 / 4 * 4;
        let mut bytes = Box::new([0; 4096]);
        for offset in (0..size).step_by(4) {
            read(offset, &mut bytes[usize::from(offset)..usize::from(offset) + 4])?;
        }
        Ok(Snapshot { bytes, size })
    }

    /// The byte at `offset`; 0 outside.
    pub fn u8(&self, offset: u16) -> u8 {
        self.bytes.get(usize::from(offset)).copied().unwrap_or(0)
    }

    /// The 16 bits at `offset`.
    pub fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.u8(offset), self.u8(offset.saturating_add(1))])
    }

    /// The 32 bits at `offset`.
    pub fn u32(&self, offset: u16) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset.saturating_add(2))) << 16
    }

    /// `len` bytes from `offset`, as many as there are.
    pub fn bytes(&self, offset: u16, len: u16) -> &[u8] {
        let start = usize::from(offset).min(4096);
        &self.bytes[start..(start + usize::from(len)).min(4096)]
    }

    /// Bytes the hardware has.
    pub fn size(&self) -> u16 {
        self.size
    }
}
