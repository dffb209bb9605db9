//! The machine that the tables describe: its fixed places, and what differs from one VM to the next.
//!
//! The constants are the only place where skep's fixed ports, interrupts and addresses are named. Device
//! models decode what is said here; the ACPI tables announce it.

use std::ops::RangeInclusive;

use memory::{Gpa, GpaRange, Ram};

/// Fixed I/O ports.
pub mod port {
    // The PM registers lie where firmware expects them of a PC with Intel's 440FX.

    /// PM1a event block: status (2 bytes), then enable (2 bytes). ACPI 6.5, 4.8.3.1.
    pub const PM1A_EVENT: u16 = 0xb000;
    /// Its length in bytes.
    pub const PM1A_EVENT_LEN: u8 = 4;
    /// PM1a control register. SCI_EN (bit 0) reads as 1 from reset on, for there is no SMI command port that
    /// could set it. ACPI 6.5, 4.8.3.2.
    pub const PM1A_CONTROL: u16 = 0xb004;
    /// Its length in bytes.
    pub const PM1A_CONTROL_LEN: u8 = 2;
    /// ACPI PM timer: 24 bits counting at 3.579545 MHz. ACPI 6.5, 4.8.3.3.
    pub const PM_TIMER: u16 = 0xb008;
    /// Its length in bytes.
    pub const PM_TIMER_LEN: u8 = 4;
    /// First port of the block that holds all PM registers.
    pub const PM_BASE: u16 = PM1A_EVENT;
    /// Length of that block in bytes.
    pub const PM_LEN: u8 = 16;
    /// So many are reserved for a PIIX4's power management (82371AB data sheet, 7.1.12).
    pub const PIIX4_PM_LEN: u16 = 64;
    /// Reset control register; writing [`RESET_VALUE`](super::RESET_VALUE) restarts the machine.
    pub const RESET: u16 = 0xcf9;
    /// PCI configuration address, 4 bytes. The reset register hides in its second byte.
    pub const PCI_CONFIG_ADDRESS: u16 = 0xcf8;
    /// PCI configuration data, 4 bytes.
    pub const PCI_CONFIG_DATA: u16 = 0xcfc;
    /// First serial port, 8 bytes.
    pub const COM1: u16 = 0x3f8;
    /// The 8259s (two ports each, in KVM), and their registers for level and edge.
    pub const I8259: [u16; 3] = [0x20, 0xa0, 0x4d0];
    /// The 8254 (four ports, in KVM).
    pub const I8254: u16 = 0x40;
    /// System control port B: the 8254's third counter and the speaker (in KVM).
    pub const SYSTEM_CONTROL_B: u16 = 0x61;
    /// System control port A: reset, and address line 20.
    pub const SYSTEM_CONTROL_A: u16 = 0x92;
    /// Real-time clock: index, then data.
    pub const RTC: u16 = 0x70;
    /// Which of the clock's registers has the century.
    pub const RTC_CENTURY: u8 = 0x32;
    /// Firmware configuration: twelve ports (QEMU, docs/specs/fw_cfg.rst).
    pub const FW_CFG: u16 = 0x510;
    /// So many.
    pub const FW_CFG_LEN: u8 = 12;
    /// Keyboard controller: data.
    pub const I8042_DATA: u16 = 0x60;
    /// Keyboard controller: status and command.
    pub const I8042_COMMAND: u16 = 0x64;
}

/// What is written to [`port::RESET`] to restart the machine (full reset, then reset CPU).
pub const RESET_VALUE: u8 = 0x06;

/// SLP_TYP in PM1a control that means soft off (S5): that of Intel's PIIX4, which firmware knows without asking.
pub const SLEEP_TYPE_SOFT_OFF: u8 = 0;

/// Fixed interrupts: GSIs, that is, inputs of the I/O APIC.
pub mod gsi {
    /// The timer (8254). ISA interrupt 0 arrives at input 2.
    pub const TIMER: u32 = 2;
    /// First serial port.
    pub const COM1: u8 = 4;
    /// Real-time clock.
    pub const RTC: u8 = 8;
    /// ACPI's system control interrupt: level, active high.
    pub const SCI: u8 = 9;
    /// The lowest of the eight inputs that PCI's INTx pins share: level.
    pub const PCI_FIRST: u32 = 16;
    /// How many they are.
    pub const PCI_COUNT: u32 = 8;
    /// Inputs of the I/O APIC.
    pub const COUNT: u32 = 24;

    /// The input to which a device on the root bus has its pin (0 is INTA) wired.
    pub fn of_pci(device: u8, pin: u8) -> u32 {
        PCI_FIRST + (u32::from(device) + u32::from(pin)) % PCI_COUNT
    }
}

/// Fixed addresses outside RAM.
pub mod mmio {
    use memory::Gpa;

    /// The I/O APIC.
    pub const IO_APIC: Gpa = Gpa(0xfec0_0000);
    /// Every CPU's local APIC.
    pub const LOCAL_APIC: Gpa = Gpa(0xfee0_0000);
    /// The TPM's localities, the first of which has its command response buffer. TCG PC Client Platform TPM Profile 1.05, 6.3.1.
    pub const TPM: Gpa = Gpa(0xfed4_0000);
    /// How many bytes they take.
    pub const TPM_LEN: u64 = 0x5000;
}

/// A machine as the guest is told about it.
#[derive(Debug, Clone)]
pub struct Platform {
    /// The CPUs.
    pub cpus: Cpus,
    /// The one PCI segment.
    pub pci: HostBridge,
    /// Whether there is a keyboard controller at [`port::I8042_DATA`].
    pub i8042: bool,
    /// Whether firmware starts it, which has a configuration device at [`port::FW_CFG`] and finds a south bridge on the bus.
    pub firmware: bool,
    /// Whether VGA's legacy registers and memory answer.
    pub vga: bool,
    /// Whether there is a TPM at [`mmio::TPM`].
    pub tpm: bool,
    /// The machine's UUID, in the byte order in which it is written (RFC 9562).
    pub uuid: [u8; 16],
}

/// How many CPUs there are and how they are grouped.
///
/// APIC ids are packed as the CPUID topology leaves want it: threads, cores and sockets each in as many bits
/// as they need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus {
    sockets: u32,
    cores: u32,
    threads: u32,
}

impl Cpus {
    /// At most this many CPUs, which is also KVM's limit.
    pub const MAX: u32 = 4096;

    /// `sockets` packages of `cores` cores of `threads` threads; `None` when one is 0 or they are more than
    /// [`Cpus::MAX`] together.
    pub fn new(sockets: u32, cores: u32, threads: u32) -> Option<Cpus> {
        let count = sockets.checked_mul(cores)?.checked_mul(threads)?;
        (1..=Cpus::MAX).contains(&count).then_some(Cpus { sockets, cores, threads })
    }

    /// How many CPUs there are.
    pub fn count(self) -> u32 {
        self.sockets * self.cores * self.threads
    }

    /// How many packages.
    pub fn sockets(self) -> u32 {
        self.sockets
    }

    /// Cores in each package.
    pub fn cores(self) -> u32 {
        self.cores
    }

    /// Threads in each core.
    pub fn threads(self) -> u32 {
        self.threads
    }

    /// Bits of an APIC id that number the threads of a core (CPUID 0xB, sub-leaf 0).
    pub fn thread_bits(self) -> u32 {
        self.threads.next_power_of_two().ilog2()
    }

    /// Bits of an APIC id below the socket's number (CPUID 0xB, sub-leaf 1).
    pub fn package_bits(self) -> u32 {
        self.thread_bits() + self.cores.next_power_of_two().ilog2()
    }

    /// APIC ids, the boot CPU's (0) first.
    pub fn apic_ids(self) -> impl Iterator<Item = u32> {
        (0..self.count()).map(move |index| {
            let (core, thread) = (index / self.threads, index % self.threads);
            let (socket, core) = (core / self.cores, core % self.cores);
            socket << self.package_bits() | core << self.thread_bits() | thread
        })
    }
}

/// The PCI host bridge: where its configuration space is and what it passes on to devices.
#[derive(Debug, Clone)]
pub struct HostBridge {
    /// Memory-mapped configuration space, which also says which buses there are.
    pub ecam: Ecam,
    /// Memory below 4 GiB for BARs.
    pub window32: GpaRange,
    /// Memory above 4 GiB for BARs.
    pub window64: Option<GpaRange>,
    /// I/O ports for BARs; must keep off every port in [`port`].
    pub ports: Option<RangeInclusive<u16>>,
    /// What the guest may drive by PCI Express's own registers.
    pub native: NativeControl,
}

/// PCI Express features that the guest may take over (_OSC). PCI Firmware 3.3, 4.5.1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NativeControl {
    /// Hot plug by slot registers.
    pub hotplug: bool,
    /// Power management events by root port registers.
    pub power_events: bool,
    /// Advanced error reporting.
    pub errors: bool,
}

/// Memory-mapped PCI configuration space: 1 MiB for each bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ecam {
    range: GpaRange,
    first_bus: u8,
}

impl Ecam {
    /// Configuration space of the buses from `first_bus` on, as many as `range` has MiB. `None` when the range
    /// is not whole MiB, holds buses above 255, or starts so low that bus 0 would lie below address 0.
    pub fn new(range: GpaRange, first_bus: u8) -> Option<Ecam> {
        const BUS: u64 = 1 << 20;
        let whole = range.start().0.is_multiple_of(BUS) && range.len().is_multiple_of(BUS);
        let fits = u64::from(first_bus) + range.len() / BUS <= 256;
        let above = range.start().0 >= u64::from(first_bus) * BUS;
        (whole && fits && above).then_some(Ecam { range, first_bus })
    }

    /// The addresses.
    pub fn range(self) -> GpaRange {
        self.range
    }

    /// The first bus.
    pub fn first_bus(self) -> u8 {
        self.first_bus
    }

    /// The last bus.
    pub fn last_bus(self) -> u8 {
        (u64::from(self.first_bus) + (self.range.len() >> 20) - 1) as u8
    }

    /// Where bus 0 would be, which is what MCFG wants to know.
    pub fn base(self) -> Gpa {
        Gpa(self.range.start().0 - (u64::from(self.first_bus) << 20))
    }
}

/// A machine that cannot be: two things claim one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the machine's layout is impossible: {}. Give the windows and the RAM places of their own.", .problems.join("; "))]
pub struct LayoutError {
    /// Everything found wrong, a phrase each.
    pub problems: Vec<String>,
}

impl Platform {
    /// Checks that RAM, windows and fixed places keep off each other; reports everything at once.
    pub fn check(&self, ram: &Ram) -> Result<(), LayoutError> {
        let page = |gpa| GpaRange::new(gpa, 4096).expect("a page of a fixed device");
        let tpm = GpaRange::new(mmio::TPM, mmio::TPM_LEN).expect("a constant");
        let mut places = vec![
            ("the I/O APIC", page(mmio::IO_APIC)),
            ("the local APIC", page(mmio::LOCAL_APIC)),
            ("the TPM", tpm),
            ("PCI configuration space", self.pci.ecam.range()),
            ("the 32-bit PCI window", self.pci.window32),
        ];
        places.extend(self.pci.window64.map(|window| ("the 64-bit PCI window", window)));
        places.extend(ram.segments().iter().map(|segment| ("RAM", segment.range())));

        let mut problems = Vec::new();
        for (index, (one, range)) in places.iter().enumerate() {
            for (other, taken) in &places[index + 1..] {
                if range.overlaps(*taken) {
                    problems.push(format!("{one} at {range} overlaps {other} at {taken}"));
                }
            }
        }
        let window = self.pci.window32;
        if window.end() > Gpa(1 << 32) {
            problems.push(format!("the 32-bit PCI window at {window} reaches beyond 4 GiB"));
        }
        if let Some(ports) = &self.pci.ports {
            let fixed = port::PCI_CONFIG_DATA + 3;
            if ports.is_empty() || *ports.start() <= fixed {
                let (start, end) = (ports.start(), ports.end());
                problems.push(format!(
                    "the PCI port window {start:#x}-{end:#x} must be a range above the fixed ports, which end at {fixed:#x}"
                ));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(LayoutError { problems }) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start), len).unwrap()
    }

    pub(crate) fn platform(cpus: Cpus) -> Platform {
        Platform {
            cpus,
            pci: HostBridge {
                ecam: Ecam::new(range(0xe000_0000, 256 << 20), 0).unwrap(),
                window32: range(0xc000_0000, 0x2000_0000),
                window64: Some(range(1 << 40, 1 << 38)),
                ports: Some(0xc000..=0xffff),
                native: NativeControl::default(),
            },
            i8042: false,
            firmware: false,
            vga: false,
            tpm: false,
            uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
        }
    }

    #[test]
    fn apic_ids_give_each_level_whole_bits() {
        let cpus = Cpus::new(2, 3, 2).unwrap();
        assert_eq!(cpus.apic_ids().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!((cpus.thread_bits(), cpus.package_bits()), (1, 3));
        assert_eq!(Cpus::new(1, 1, 1).unwrap().apic_ids().collect::<Vec<_>>(), [0]);
        assert!(Cpus::new(0, 1, 1).is_none());
        assert!(Cpus::new(1 << 20, 1 << 20, 1).is_none());
    }

    #[test]
    fn configuration_space_is_a_mebibyte_for_each_bus() {
        let ecam = Ecam::new(range(0xe010_0000, 3 << 20), 1).unwrap();
        assert_eq!((ecam.first_bus(), ecam.last_bus(), ecam.base()), (1, 3, Gpa(0xe000_0000)));
        assert!(Ecam::new(range(0xe000_0000, 257 << 20), 0).is_none());
        assert!(Ecam::new(range(0xe000_0000, 0x1000), 0).is_none());
        assert!(Ecam::new(range(0, 1 << 20), 1).is_none());
    }

    #[test]
    fn every_collision_is_reported_at_once() {
        let ram = Ram::new(&memory::ram_ranges(1 << 30)).unwrap();
        let mut platform = platform(Cpus::new(1, 1, 1).unwrap());
        platform.check(&ram).unwrap();
        platform.pci.window32 = range(0x3000_0000, 0xd000_0000);
        platform.pci.ports = Some(0x600..=0x6ff);
        let found = platform.check(&ram).unwrap_err().problems;
        assert_eq!(found.len(), 6, "{found:?}");
        assert!(
            found[1].starts_with("the local APIC at 0xfee00000-0xfee00fff overlaps the 32-bit PCI window")
        );
    }
}
