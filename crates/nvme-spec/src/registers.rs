//! The controller's registers (3.1).

use std::time::Duration;

/// Offsets in BAR 0.
pub mod register {
    /// Controller capabilities, 64 bits.
    pub const CAP: u64 = 0x00;
    /// Version.
    pub const VS: u64 = 0x08;
    /// Interrupt mask set.
    pub const INTMS: u64 = 0x0c;
    /// Interrupt mask clear.
    pub const INTMC: u64 = 0x10;
    /// Controller configuration.
    pub const CC: u64 = 0x14;
    /// Controller status.
    pub const CSTS: u64 = 0x1c;
    /// Admin queue attributes.
    pub const AQA: u64 = 0x24;
    /// Admin submission queue base address, 64 bits.
    pub const ASQ: u64 = 0x28;
    /// Admin completion queue base address, 64 bits.
    pub const ACQ: u64 = 0x30;
    /// The first doorbell; they lie CAP.DSTRD apart: tail of queue 0, head of queue 0, tail of
    /// queue 1 ...
    pub const DOORBELLS: u64 = 0x1000;
}

/// CAP: what the controller can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Queues must lie in one piece of memory (CQR).
    pub const CONTIGUOUS: u64 = 1 << 16;
    /// The NVM command set (CSS bit 0).
    pub const NVM: u64 = 1 << 37;
    /// All I/O command sets (CSS bit 6).
    pub const ALL_SETS: u64 = 1 << 43;
    /// Where the time-out begins, in units of 500 ms (TO).
    pub const TIMEOUT_SHIFT: u32 = 24;

    /// Entries that a queue may have (MQES), 2 to 65536.
    pub fn max_queue_entries(self) -> u32 {
        (u32::from(self.0 as u16) + 1).max(2)
    }

    /// How long it may take to become ready or to stop being so (TO).
    pub fn ready_timeout(self) -> Duration {
        Duration::from_millis(500 * (self.0 >> Capabilities::TIMEOUT_SHIFT & 0xff).max(1))
    }

    /// Bytes from one doorbell to the next (DSTRD).
    pub fn doorbell_stride(self) -> u64 {
        4 << (self.0 >> 32 & 0xf)
    }

    /// Whether pages of 4096 bytes are possible (MPSMIN).
    pub fn has_small_pages(self) -> bool {
        self.0 >> 48 & 0xf == 0
    }

    /// Whether the NVM command set is there (CSS), alone or with all others.
    pub fn has_nvm(self) -> bool {
        self.0 & (Capabilities::NVM | Capabilities::ALL_SETS) != 0
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
    /// The controller is enabled (EN).
    pub const ENABLED: u32 = 1;
    /// Shutdown notification, two bits (SHN).
    pub const SHUTDOWN: u32 = 3 << 14;
    /// Sizes of the entries of I/O queues (IOSQES, IOCQES), two powers of two ...
    pub const ENTRY_SIZES: u32 = 0xff << 16;
    /// ... for the 64 bytes of a command and the 16 of a completion.
    pub const ENTRIES_OF_64_AND_16: u32 = 4 << 20 | 6 << 16;

    /// Disabled.
    pub const OFF: Configuration = Configuration(0);

    /// Enabled, with pages of 4096 bytes, entries of 64 and 16 bytes, and the NVM command set.
    pub fn on(capabilities: Capabilities) -> Configuration {
        let sets = if capabilities.0 & Capabilities::ALL_SETS != 0 { 6 } else { 0 };
        Configuration(Configuration::ENTRIES_OF_64_AND_16 | sets << 4 | Configuration::ENABLED)
    }

    /// The same, asking for a normal shutdown (SHN).
    pub fn shutting_down(self) -> Configuration {
        Configuration(self.0 & !Configuration::SHUTDOWN | 1 << 14)
    }
}

/// CSTS: how the controller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// Ready (RDY).
    pub const READY: u32 = 1;
    /// Fatal status (CFS).
    pub const FATAL: u32 = 2;
    /// A shutdown is being processed (SHST) ...
    pub const SHUTTING_DOWN: u32 = 1 << 2;
    /// ... or complete.
    pub const SHUT_DOWN: u32 = 2 << 2;

    /// A device that is not there any more reads as all ones.
    pub fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// It takes commands.
    pub fn is_ready(self) -> bool {
        self.0 & ControllerStatus::READY != 0
    }

    /// It met an error that only a reset ends (CFS).
    pub fn is_fatal(self) -> bool {
        self.0 & ControllerStatus::FATAL != 0
    }

    /// The shutdown that was asked for is complete (SHST).
    pub fn is_shut_down(self) -> bool {
        self.0 & (3 << 2) == ControllerStatus::SHUT_DOWN
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
