//! Registers and their bits (AHCI 1.3.1, section 3).

/// Room for 32 ports.
pub(super) const ABAR_SIZE: usize = 0x2000;

/// Registers of the controller.
pub(super) mod host {
    /// Host capabilities.
    pub const CAP: usize = 0x00;
    /// Global host control.
    pub const GHC: usize = 0x04;
    /// Interrupt status, a bit a port.
    pub const IS: usize = 0x08;
    /// Ports implemented.
    pub const PI: usize = 0x0c;
    /// Version.
    pub const VS: usize = 0x10;

    /// CAP: 64-bit addresses, NCQ, command list override, AHCI only, 6 Gb/s and 32 command slots.
    pub const CAPABILITIES: u32 = 1 << 31 | 1 << 30 | 1 << 24 | 3 << 20 | 1 << 18 | 31 << 8;
    /// VS: 1.3.1.
    pub const VERSION: u32 = 0x0001_0301;

    /// GHC: reset the controller.
    pub const GHC_RESET: u32 = 1 << 0;
    /// GHC: interrupts are on.
    pub const GHC_INTERRUPTS: u32 = 1 << 1;
    /// GHC: AHCI, which is all there is here.
    pub const GHC_AHCI: u32 = 1 << 31;
}

/// Registers of port 0; those of the others follow, [`PORT_SIZE`](port::SIZE) bytes apart.
pub(super) mod port {
    /// Where those of port 0 are.
    pub const FIRST: u64 = 0x100;
    /// Bytes from port to port.
    pub const SIZE: u64 = 0x80;

    /// Command list, 64 bits in two halves.
    pub const CLB: u64 = 0x00;
    /// Its upper half.
    pub const CLBU: u64 = 0x04;
    /// Received FISes, 64 bits in two halves.
    pub const FB: u64 = 0x08;
    /// Its upper half.
    pub const FBU: u64 = 0x0c;
    /// Interrupt status.
    pub const IS: u64 = 0x10;
    /// Interrupt enable.
    pub const IE: u64 = 0x14;
    /// Command and status.
    pub const CMD: u64 = 0x18;
    /// Task file.
    pub const TFD: u64 = 0x20;
    /// Signature.
    pub const SIG: u64 = 0x24;
    /// SStatus.
    pub const SSTS: u64 = 0x28;
    /// SControl.
    pub const SCTL: u64 = 0x2c;
    /// SError.
    pub const SERR: u64 = 0x30;
    /// SActive.
    pub const SACT: u64 = 0x34;
    /// Commands issued.
    pub const CI: u64 = 0x38;

    /// IS: a register FIS came.
    pub const IS_D2H: u32 = 1 << 0;
    /// IS: a PIO setup FIS came.
    pub const IS_PIO: u32 = 1 << 1;
    /// IS: a set device bits FIS came.
    pub const IS_SDB: u32 = 1 << 3;
    /// IS: the link was made anew; mirrors [`SERR_EXCHANGED`].
    pub const IS_CONNECT: u32 = 1 << 6;
    /// IS: the link came or went; mirrors [`SERR_PHY`].
    pub const IS_PHY: u32 = 1 << 22;
    /// IS: a command had more data than room.
    pub const IS_OVERFLOW: u32 = 1 << 24;
    /// IS: what the host sent is no FIS.
    pub const IS_INTERFACE: u32 = 1 << 27;
    /// IS: memory that is not there.
    pub const IS_HOST_BUS: u32 = 1 << 29;
    /// IS: the device reported an error.
    pub const IS_TASK_FILE: u32 = 1 << 30;
    /// Bits of IE that exist.
    pub const IE_MASK: u32 = 0xfdc0_00ff;

    /// CMD: process commands.
    pub const CMD_START: u32 = 1 << 0;
    /// CMD: the device is spun up (it always is).
    pub const CMD_SPIN_UP: u32 = 1 << 1;
    /// CMD: the device has power (it always has).
    pub const CMD_POWER_ON: u32 = 1 << 2;
    /// CMD: clear BSY and DRQ.
    pub const CMD_OVERRIDE: u32 = 1 << 3;
    /// CMD: put FISes into memory.
    pub const CMD_RECEIVE: u32 = 1 << 4;
    /// CMD: FISes are put into memory.
    pub const CMD_RECEIVING: u32 = 1 << 14;
    /// CMD: the command list is in use.
    pub const CMD_RUNNING: u32 = 1 << 15;
    /// CMD: devices may come and go.
    pub const CMD_HOT_PLUG: u32 = 1 << 18;
    /// CMD: bits that only a driver cares for: the device is ATAPI, and its light.
    pub const CMD_SCRATCH: u32 = 1 << 24 | 1 << 25;

    /// SCTL, device detection: nothing asked.
    pub const DET_NONE: u32 = 0;
    /// SCTL: take the link offline.
    pub const DET_OFFLINE: u32 = 4;

    /// SERR: nobody answers any more.
    pub const SERR_PERSISTENT: u32 = 1 << 9;
    /// SERR: the other side does not keep to the protocol.
    pub const SERR_PROTOCOL: u32 = 1 << 10;
    /// SERR: the link came or went.
    pub const SERR_PHY: u32 = 1 << 16;
    /// SERR: a device has made the link anew.
    pub const SERR_EXCHANGED: u32 = 1 << 26;
}

/// Bits of ATA's status (ACS-3, 6.2).
pub(super) mod status {
    /// Busy.
    pub const BUSY: u8 = 1 << 7;
    /// Ready.
    pub const READY: u8 = 1 << 6;
    /// Device fault.
    pub const FAULT: u8 = 1 << 5;
    /// Seek complete, which drivers expect beside [`READY`].
    pub const SEEK: u8 = 1 << 4;
    /// Data request.
    pub const DATA: u8 = 1 << 3;
    /// Error.
    pub const ERROR: u8 = 1 << 0;
    /// A command has ended well.
    pub const GOOD: u8 = READY | SEEK;
    /// A command has failed.
    pub const FAILED: u8 = READY | SEEK | ERROR;
}

/// Bits of ATA's error (ACS-3, 6.3).
pub(super) mod error {
    /// Uncorrectable.
    pub const UNCORRECTABLE: u8 = 1 << 6;
    /// There is no such address.
    pub const NOT_FOUND: u8 = 1 << 4;
    /// Aborted: unknown, or not possible.
    pub const ABORTED: u8 = 1 << 2;
}
