//! What a PCI function is to the bus.

use crate::bar::Decoded;
use crate::error::PciError;

/// Whether other functions may be at the same device number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceNumber {
    /// The function is the only one of its device.
    Own,
    /// Other functions may be there.
    Shared,
}

/// A PCI function: an emulated device or an assigned one. Called by every vCPU at once, so it keeps its own
/// locks; the bus makes one write to its configuration space at a time.
///
/// Accesses are 1, 2, 4 or 8 bytes, little endian, and never cross the end of a BAR or of configuration
/// space; what a guest writes is not to be trusted in any other way.
pub trait Function: Send + Sync {
    /// A name for people: "virtio-blk disk0", "0000:01:00.0".
    fn name(&self) -> &str;

    /// Whether others may be at its device number.
    fn device_number(&self) -> DeviceNumber {
        DeviceNumber::Shared
    }

    /// Reads configuration space at `offset` (0 to 4095). Bit 7 of the header type is the bus's.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space. The bus looks at [`Function::decoded`] afterwards.
    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError>;

    /// Where the BARs decode, by the state of configuration space.
    fn decoded(&self) -> Decoded;

    /// Reads `data.len()` bytes at `offset` of a BAR.
    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]);

    /// Writes to a BAR.
    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> Result<(), PciError>;

    /// The bus now sends accesses of this BAR here (`Some`) or no longer (`None`): the time to map memory and
    /// doorbells, or to take them away. When mapping fails, the function must serve all accesses by
    /// [`Function::read_bar`] and [`Function::write_bar`], and reports the failure.
    fn bar_moved(&self, bar: usize, at: Option<crate::DecodedAt>) -> Result<(), PciError>;

    /// Back to the state after power-on, with no DMA and no interrupt on its way. The bus has taken the BARs
    /// away before. BAR addresses may stay as they were assigned before the guest started.
    fn reset(&self) -> Result<(), PciError>;
}
