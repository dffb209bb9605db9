//! Frames between the controller and a device (SATA 3.x, 10.5), and the registers they carry.

use super::registers::{error, status};

/// Bits of the second byte of a frame.
const INTERRUPT: u8 = 1 << 6;
const TO_HOST: u8 = 1 << 5;

/// Where frames of each kind are put in the area for received FISes (AHCI 1.3.1, 4.2.1).
pub(super) mod place {
    /// PIO setup.
    pub const PIO_SETUP: u64 = 0x20;
    /// Registers from the device.
    pub const D2H: u64 = 0x40;
    /// Set device bits.
    pub const SET_BITS: u64 = 0x58;
}

/// A device's registers as it reports them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Taskfile {
    pub status: u8,
    pub error: u8,
    pub count: u16,
    /// 48 bits.
    pub lba: u64,
    pub device: u8,
}

impl Taskfile {
    /// A command has ended well and has nothing to say.
    pub fn good() -> Taskfile {
        Taskfile { status: status::GOOD, ..Taskfile::default() }
    }

    /// A command that is unknown or not possible.
    pub fn aborted() -> Taskfile {
        Taskfile::failed(error::ABORTED)
    }

    /// A command that failed, with the bits of the error register.
    pub fn failed(error: u8) -> Taskfile {
        Taskfile { status: status::FAILED, error, ..Taskfile::default() }
    }

    pub fn is_failure(self) -> bool {
        self.status & (status::ERROR | status::FAULT) != 0
    }

    /// As a frame "registers, device to host".
    pub fn d2h(self, interrupt: bool) -> [u8; 20] {
        self.frame(0x34, if interrupt { INTERRUPT } else { 0 })
    }

    /// As a frame "PIO setup" for `bytes` bytes to the host, after which the status is this one's.
    pub fn pio_setup(self, bytes: u32) -> [u8; 20] {
        let mut frame = self.frame(0x5f, INTERRUPT | TO_HOST);
        frame[2] = self.status | status::DATA;
        frame[15] = self.status;
        // Frames have 16 bits for the count; longer transfers take several, of which this is the last.
        frame[16..18].copy_from_slice(&(bytes as u16).to_le_bytes());
        frame
    }

    fn frame(self, kind: u8, flags: u8) -> [u8; 20] {
        let [lba0, lba1, lba2, lba3, lba4, lba5, ..] = self.lba.to_le_bytes();
        let [count0, count1] = self.count.to_le_bytes();
        let mut frame = [0; 20];
        frame[..14].copy_from_slice(&[
            kind,
            flags,
            self.status,
            self.error,
            lba0,
            lba1,
            lba2,
            self.device,
            lba3,
            lba4,
            lba5,
            0,
            count0,
            count1,
        ]);
        frame
    }
}

/// A frame "set device bits": queued commands have ended, or one has failed.
pub(super) fn set_bits(status: u8, error: u8, ended: u32) -> [u8; 8] {
    let mut frame = [0xa1, INTERRUPT, status & 0x77, error, 0, 0, 0, 0];
    frame[4..].copy_from_slice(&ended.to_le_bytes());
    frame
}

/// What a device says of itself after a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Signature {
    Ata,
    Atapi,
}

impl Signature {
    /// The registers after a reset that went well (ACS-3, 6.5 and 7.9.5 on "diagnostics").
    pub fn taskfile(self) -> Taskfile {
        let (status, lba) = match self {
            Signature::Ata => (status::GOOD, 0x00_0001),
            Signature::Atapi => (0, 0xeb_1401),
        };
        Taskfile { status, error: 1, count: 1, lba, device: 0 }
    }

    /// The value of PxSIG.
    pub fn register(self) -> u32 {
        match self {
            Signature::Ata => 0x0000_0101,
            Signature::Atapi => 0xeb14_0101,
        }
    }
}

/// Registers from the host, as a command's frame brings them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CommandFis {
    /// Whether there is a command; else the control register was written.
    pub is_command: bool,
    pub command: u8,
    pub features: u16,
    /// 48 bits.
    pub lba: u64,
    pub device: u8,
    pub count: u16,
    pub control: u8,
    /// What queued commands that carry others say about them.
    pub auxiliary: u32,
}

impl CommandFis {
    /// `None` when it is no frame "registers, host to device".
    pub fn read(raw: &[u8; 64]) -> Option<CommandFis> {
        if raw[0] != 0x27 {
            return None;
        }
        Some(CommandFis {
            is_command: raw[1] & 0x80 != 0,
            command: raw[2],
            features: u16::from_le_bytes([raw[3], raw[11]]),
            lba: u64::from_le_bytes([raw[4], raw[5], raw[6], raw[8], raw[9], raw[10], 0, 0]),
            device: raw[7],
            count: u16::from_le_bytes([raw[12], raw[13]]),
            control: raw[15],
            auxiliary: u32::from_le_bytes([raw[16], raw[17], raw[18], raw[19]]),
        })
    }

    /// What comes back when the command at this place failed.
    pub fn echo(&self, status: u8, error: u8) -> Taskfile {
        Taskfile { status, error, count: self.count, lba: self.lba, device: self.device }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_lie_where_the_frames_have_them() {
        let mut raw = [0; 64];
        raw[..16].copy_from_slice(&[0x27, 0x80, 0x60, 8, 1, 2, 3, 0x40, 4, 5, 6, 9, 0x18, 0, 0, 4]);
        let fis = CommandFis::read(&raw).unwrap();
        assert!(fis.is_command);
        assert_eq!((fis.command, fis.features, fis.count, fis.control), (0x60, 0x0908, 0x18, 4));
        assert_eq!(fis.lba, 0x0605_0403_0201);
        let frame = fis.echo(0x51, 4).d2h(true);
        assert_eq!(frame[..14], [0x34, 0x40, 0x51, 4, 1, 2, 3, 0x40, 4, 5, 6, 0, 0x18, 0]);
        raw[0] = 0x34;
        assert_eq!(CommandFis::read(&raw), None);
    }
}
