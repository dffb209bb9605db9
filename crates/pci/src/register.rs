//! Offsets and bits of the type 0 header (PCI Local Bus Specification 3.0, 6.1 and 6.2).

/// Vendor ID, 16 bits.
pub const VENDOR_ID: u16 = 0x00;
/// Device ID, 16 bits.
pub const DEVICE_ID: u16 = 0x02;
/// Command, 16 bits.
pub const COMMAND: u16 = 0x04;
/// Status, 16 bits.
pub const STATUS: u16 = 0x06;
/// Revision ID, 8 bits; the class code follows in 24 bits.
pub const REVISION: u16 = 0x08;
/// Header type, 8 bits; bit 7: several functions.
pub const HEADER_TYPE: u16 = 0x0e;
/// Header type: the device has several functions.
pub const HEADER_TYPE_SEVERAL: u8 = 1 << 7;
/// First of six base address registers, 32 bits each.
pub const BAR0: u16 = 0x10;
/// Subsystem vendor ID, 16 bits; the subsystem ID follows.
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Expansion ROM base address, 32 bits.
pub const ROM_BAR: u16 = 0x30;
/// Offset of the first capability, 8 bits.
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt line, 8 bits: scratch for the guest.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin, 8 bits.
pub const INTERRUPT_PIN: u16 = 0x3d;

/// Command: I/O BARs decode.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: memory BARs decode.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may start DMA and send messages.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: parity errors are answered.
pub const COMMAND_PARITY: u16 = 1 << 6;
/// Command: SERR# may be driven.
pub const COMMAND_SERR: u16 = 1 << 8;
/// Command: the function may not drive its interrupt pin.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// Status: the interrupt pin is asserted, or would be but for [`COMMAND_INTX_DISABLE`].
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status: there is a list of capabilities.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
