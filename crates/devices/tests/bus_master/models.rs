//! The three models behind one face: a driver that begins reads and looks for their ends.

use std::sync::Arc;

use disk::Disk;
use memory::{Gpa, GpaRange, Ram};
use pci::fake::FakeServices;

/// Bytes of the guest's memory.
pub const RAM: u64 = 8 << 20;
/// Where block 0 is read to; the others follow.
pub const DATA: u64 = 0x40_0000;
/// Bytes of a read.
pub const BLOCK: u64 = 4096;

/// A guest with one disk. Its interrupts are messages.
pub trait Model {
    /// Its driver is ready, and bus mastering is on.
    fn new(disk: Arc<Disk>) -> Self;
    /// Begins to read a block (0 to 15) to its place.
    fn read(&mut self, block: u64);
    /// How many reads have been answered since last asked.
    fn answered(&mut self) -> usize;
    fn set_bus_master(&self, allowed: bool);
    /// Resets the function, as a reset of the machine does.
    fn reset(&self);
    fn ram(&self) -> &Arc<Ram>;
    fn services(&self) -> &Arc<FakeServices>;
    fn reports(&self) -> Vec<String>;

    /// How often vectors were raised since last asked.
    fn raised(&self) -> u64 {
        let services = self.services();
        (0..services.messages().len()).map(|vector| services.raised(vector)).sum()
    }
}

fn ram() -> Arc<Ram> {
    Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).unwrap()]).unwrap())
}

/// The command register's value: memory decodes, and bus mastering.
fn command(allowed: bool) -> [u8; 2] {
    if allowed { [6, 0] } else { [2, 0] }
}

pub mod virtio_blk {
    use devices::{VirtioBlk, VirtioBlkOptions};
    use pci::capability;
    use virtio::driver::{Driver, Guest, Layout};
    use virtio::{Features, Piece};

    use super::*;

    const RING: Gpa = Gpa(0x10000);
    const HEADERS: u64 = 0x20000;

    pub struct Machine {
        guest: Guest,
        ring: Driver,
    }

    impl Model for Machine {
        fn new(disk: Arc<Disk>) -> Machine {
            let device = VirtioBlk::new(disk, VirtioBlkOptions::new("disk0")).unwrap();
            let guest = Guest::new(Box::new(device), ram());
            let features = Features::VERSION_1 | Features::EVENT_IDX;
            let msix = capability::walk(|offset| guest.config_read::<1>(offset)[0]);
            let (_, msix) = *msix.iter().find(|(id, _)| *id == capability::MSIX).unwrap();
            guest.config_write(msix + 2, &0x8000u16.to_le_bytes());
            for vector in 0..2u64 {
                guest.write(Guest::MSIX + 16 * vector, 0xfee0_0000u64.to_le_bytes());
                guest.write(Guest::MSIX + 16 * vector + 12, 0u32.to_le_bytes());
            }
            guest.negotiate(features);
            guest.write(Guest::COMMON + 22, 0u16.to_le_bytes());
            guest.write(Guest::COMMON + 26, 1u16.to_le_bytes());
            let mut ring = guest.add_queue(0, RING, 64, features);
            guest.go();
            ring.want_interrupt(0);
            Machine { guest, ring }
        }

        fn read(&mut self, block: u64) {
            let header = HEADERS + 32 * block;
            self.guest.ram.write_obj(Gpa(header), &[0u64, 8 * block]).unwrap();
            self.guest.ram.write_obj(Gpa(header + 16), &0xaau8).unwrap();
            let piece = |gpa, len| Piece { gpa: Gpa(gpa), len };
            let room = [piece(DATA + BLOCK * block, BLOCK as u32), piece(header + 16, 1)];
            self.ring.add(&[piece(header, 16)], &room, Layout::Direct).unwrap();
            self.guest.kick(0);
        }

        fn answered(&mut self) -> usize {
            std::iter::from_fn(|| self.ring.take_used()).inspect(|used| assert_eq!(used.1, 4097)).count()
        }

        fn set_bus_master(&self, allowed: bool) {
            self.guest.config_write(4, &command(allowed));
        }

        fn reset(&self) {
            assert!(self.guest.bus.reset_function(self.guest.address).is_empty());
        }

        fn ram(&self) -> &Arc<Ram> {
            &self.guest.ram
        }

        fn services(&self) -> &Arc<FakeServices> {
            &self.guest.services
        }

        fn reports(&self) -> Vec<String> {
            self.guest.reports()
        }
    }
}

pub mod nvme {
    use devices::nvme::driver::{Guest, Queue, io};
    use devices::nvme::spec;
    use devices::{Namespace, NvmeOptions};

    use super::*;

    pub struct Machine {
        guest: Guest,
        queue: Queue,
    }

    impl Model for Machine {
        fn new(disk: Arc<Disk>) -> Machine {
            let guest = Guest::new(vec![Namespace::new(disk)], &NvmeOptions::new("disk0"), ram());
            guest.enable_msix(2);
            let mut admin = guest.enable();
            let queue = guest.create_pair(&mut admin, 1, 64, Some(1)).unwrap();
            Machine { guest, queue }
        }

        fn read(&mut self, block: u64) {
            let command = io(spec::io::READ, 1, 8 * block, 8, [DATA + BLOCK * block, 0]);
            self.guest.submit(&mut self.queue, command);
        }

        fn answered(&mut self) -> usize {
            let taken = std::iter::from_fn(|| self.guest.take(&mut self.queue));
            taken.inspect(|completion| assert_eq!(completion.status.get() >> 1, 0)).count()
        }

        fn set_bus_master(&self, allowed: bool) {
            self.guest.config_write(4, &command(allowed));
        }

        fn reset(&self) {
            assert!(self.guest.bus.reset_function(self.guest.address).is_empty());
        }

        fn ram(&self) -> &Arc<Ram> {
            &self.guest.ram
        }

        fn services(&self) -> &Arc<FakeServices> {
            &self.guest.services
        }

        fn reports(&self) -> Vec<String> {
            self.guest.reports()
        }
    }
}

pub mod ahci {
    use devices::ahci::driver::{Ata, Guest, Port, reg};
    use devices::ahci::{AhciDisk, AhciPort};

    use super::*;

    const LISTS: Gpa = Gpa(0x10_0000);
    const READ_QUEUED: u8 = 0x60;

    pub struct Machine {
        guest: Guest,
        /// Slots of reads that were not seen to end.
        open: u32,
    }

    impl Machine {
        fn port(&self) -> Port<'_> {
            Port::at_work(&self.guest, 0, LISTS)
        }
    }

    impl Model for Machine {
        fn new(disk: Arc<Disk>) -> Machine {
            let guest = Guest::new(vec![AhciPort::Disk(AhciDisk::new("disk0", disk))], ram());
            guest.use_msi();
            guest.port(0, LISTS).start();
            Machine { guest, open: 0 }
        }

        fn read(&mut self, block: u64) {
            let slot = block as u8;
            let command = Ata::queued(READ_QUEUED, 8 * block, 8, slot);
            self.port().issue_queued(slot, command, &[(DATA + BLOCK * block, BLOCK as u32)]);
            self.open |= 1 << slot;
        }

        fn answered(&mut self) -> usize {
            let port = self.port();
            let ended = self.open & !(port.read(reg::CI) | port.read(reg::SACT));
            assert_eq!(port.read(reg::TFD) & 1, 0);
            port.write(reg::IS, u32::MAX);
            self.guest.write(8, 1);
            self.open &= !ended;
            ended.count_ones() as usize
        }

        fn set_bus_master(&self, allowed: bool) {
            self.guest.config_write(4, &command(allowed));
        }

        fn reset(&self) {
            assert!(self.guest.bus.reset_function(self.guest.address).is_empty());
        }

        fn ram(&self) -> &Arc<Ram> {
            &self.guest.ram
        }

        fn services(&self) -> &Arc<FakeServices> {
            &self.guest.services
        }

        fn reports(&self) -> Vec<String> {
            self.guest.reports()
        }
    }
}
