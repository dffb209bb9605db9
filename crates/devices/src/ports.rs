//! Devices at fixed I/O ports.

/// A device at fixed I/O ports. `offset` counts from its first port; accesses are 1, 2 or 4 bytes and lie
/// within its ports.
pub trait PortDevice: Send + Sync {
    /// Reads; what the device leaves alone stays all ones.
    fn read(&self, offset: u16, data: &mut [u8]);
    /// Writes.
    fn write(&self, offset: u16, data: &[u8]);
    /// Back to power-on.
    fn reset(&self);
}
