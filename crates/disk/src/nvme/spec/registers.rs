//! The controller's registers (Base 1.4, 3.1).

use std::time::Duration;

/// Offsets in BAR 0.
pub mod register {
    /// Controller capabilities, 64 bits.
    pub const CAP: u64 = 0x00;
    /// Controller configuration.
    pub const CC: u64 = 0x14;
    /// Controller status.
    pub const CSTS: u64 = 0x1c;
    /// Sizes of the admin queues.
    pub const AQA: u64 = 0x24;
    /// Where the admin submission queue is, 64 bits.
    pub const ASQ: u64 = 0x28;
    /// Where the admin completion queue is, 64 bits.
    pub const ACQ: u64 = 0x30;
    /// The first doorbell.
    pub const DOORBELLS: u64 = 0x1000;
}

/// CAP: what the controller can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Entries that a queue may have (MQES), 2 to 65536.
    pub fn max_queue_entries(self) -> u32 {
        (u32::from(self.0 as u16) + 1).max(2)
    }

    /// How long it may take to become ready or to stop being so (TO).
    pub fn ready_timeout(self) -> Duration {
        Duration::from_millis(500 * (self.0 >> 24 & 0xff).max(1))
    }

    /// Bytes from one doorbell to the next (DSTRD).
    pub fn doorbell_stride(self) -> u64 {
        4 << (self.0 >> 32 & 0xf)
    }

    /// Whether pages of 4096 bytes are possible (MPSMIN).
    pub fn has_small_pages(self) -> bool {
        self.0 >> 48 & 0xf == 0
    }

    /// Whether the NVM command set is there (CSS bit 0, or bit 6 for all I/O command sets).
    pub fn has_nvm(self) -> bool {
        self.0 >> 37 & 0x41 != 0
    }

    /// Offset of a queue's submission doorbell; the completion doorbell follows it.
    pub fn doorbell(self, queue: u16) -> u64 {
        register::DOORBELLS + 2 * u64::from(queue) * self.doorbell_stride()
    }
}

/// CC: how the controller is to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Configuration(pub u32);

impl Configuration {
    /// Disabled.
    pub const OFF: Configuration = Configuration(0);

    /// Enabled, with pages of 4096 bytes, entries of 64 and 16 bytes, and the NVM command set.
    pub fn on(capabilities: Capabilities) -> Configuration {
        let sets = if capabilities.0 >> 37 & 0x40 != 0 { 6 } else { 0 };
        Configuration(4 << 20 | 6 << 16 | sets << 4 | 1)
    }

    /// The same, asking for a normal shutdown (SHN).
    pub fn shutting_down(self) -> Configuration {
        Configuration(self.0 & !(3 << 14) | 1 << 14)
    }
}

/// CSTS: how the controller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status(pub u32);

impl Status {
    /// A device that is not there any more reads as all ones.
    pub fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// It takes commands.
    pub fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// It met an error that only a reset ends (CFS).
    pub fn is_fatal(self) -> bool {
        self.0 & 2 != 0
    }

    /// The shutdown that was asked for is complete (SHST).
    pub fn is_shut_down(self) -> bool {
        self.0 >> 2 & 3 == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_as_the_specification_lays_them_out() {
        // QEMU's: MQES 2047, CQR, TO 15, CSS NVM and all command sets.
        let cap = Capabilities(0x0000_0820_0f01_07ff | 1 << 43);
        assert_eq!(cap.max_queue_entries(), 2048);
        assert_eq!(cap.ready_timeout(), Duration::from_millis(7500));
        assert_eq!((cap.doorbell_stride(), cap.doorbell(2)), (4, 0x1010));
        assert!(cap.has_nvm() && cap.has_small_pages());
        assert_eq!(Configuration::on(cap).0 >> 4 & 7, 6);
        assert_eq!(Configuration::on(Capabilities(1 << 37)).0, 0x0046_0001);
    }
}
