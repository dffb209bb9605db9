//! Commands as the driver puts them into memory (AHCI 1.3.1, 4.2.2 and 4.2.3), read once.

use memory::{Buffers, Gpa, OutsideRam, Ram};
use zerocopy::{FromBytes, IntoBytes, little_endian as le};

use super::fis::CommandFis;

/// Bytes of a command header.
pub(super) const HEADER_SIZE: u64 = 32;
/// Where a header says how many bytes were transferred.
const TRANSFERRED: u64 = 4;
/// Where the scatter list begins in a command table.
const LIST: u64 = 0x80;
/// Scatter list entries of a command that are looked at, which is one for each page of the longest transfer (65536
/// blocks of 512 bytes). A list that is longer ends there.
const MOST_ENTRIES: u16 = 8193;
/// Scatter list entries that are read at once.
const CHUNK: usize = 64;

/// A command header.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Header {
    flags: le::U16,
    entries: le::U16,
    transferred: le::U32,
    table: le::U64,
    reserved: [le::U32; 4],
}

/// The beginning of a command table.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Table {
    fis: [u8; 64],
    packet: [u8; 16],
}

/// An entry of the scatter list.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
struct Entry {
    address: le::U64,
    reserved: le::U32,
    count: le::U32,
}

/// Why a command cannot be carried out as it lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unreadable {
    /// It points outside RAM.
    HostBus,
    /// It holds no frame that a device would take.
    Interface,
}

impl From<OutsideRam> for Unreadable {
    fn from(_: OutsideRam) -> Unreadable {
        Unreadable::HostBus
    }
}

/// A command, read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    /// Where its header lies.
    header: Gpa,
    table: Gpa,
    entries: u16,
    /// What goes to the device.
    pub fis: CommandFis,
    /// For PACKET.
    pub packet: [u8; 16],
    /// The device is not busy once it has the frame.
    pub clear_busy: bool,
}

impl Command {
    pub fn read(ram: &Ram, at: Gpa) -> Result<Command, Unreadable> {
        let header: Header = ram.read_obj(at)?;
        let flags = header.flags.get();
        // A frame has 2 to 16 words of 32 bits; that of a command has 5.
        if !(2..=16).contains(&(flags & 0x1f)) {
            return Err(Unreadable::Interface);
        }
        let table = Gpa(header.table.get() & !0x7f);
        let content: Table = ram.read_obj(table)?;
        Ok(Command {
            header: at,
            table,
            entries: header.entries.get(),
            fis: CommandFis::read(&content.fis).ok_or(Unreadable::Interface)?,
            packet: content.packet,
            clear_busy: flags & 1 << 10 != 0,
        })
    }

    /// Puts the first `bytes` bytes of the scatter list into `buffers`, or fewer where the list ends before.
    pub fn gather(&self, ram: &Ram, bytes: u64, buffers: &mut Buffers) -> Result<(), Unreadable> {
        let mut at = self.table.checked_add(LIST).ok_or(Unreadable::HostBus)?;
        let mut entries = usize::from(self.entries.min(MOST_ENTRIES));
        let mut chunk = [Entry { address: 0.into(), reserved: 0.into(), count: 0.into() }; CHUNK];
        while entries > 0 && buffers.bytes() < bytes {
            let count = entries.min(CHUNK);
            ram.read(at, chunk[..count].as_mut_bytes())?;
            for entry in &chunk[..count] {
                let len = u64::from(entry.count.get() & 0x3f_ffff) + 1;
                push(ram, buffers, Gpa(entry.address.get()), len.min(bytes - buffers.bytes()))?;
                if buffers.bytes() == bytes {
                    return Ok(());
                }
            }
            entries -= count;
            at = at.checked_add(size_of_val(&chunk[..count]) as u64).ok_or(Unreadable::HostBus)?;
        }
        Ok(())
    }

    /// Says in the header how many bytes were transferred.
    pub fn set_transferred(&self, ram: &Ram, bytes: u64) -> Result<(), OutsideRam> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        ram.write_obj(Gpa(self.header.0 + TRANSFERRED), &bytes.to_le())
    }
}

/// RAM may consist of segments that touch.
fn push(ram: &Ram, buffers: &mut Buffers, mut at: Gpa, mut len: u64) -> Result<(), OutsideRam> {
    while len > 0 {
        let here = ram.contiguous(at).min(len);
        let step = if here == 0 { len } else { here };
        buffers.push(at, step)?;
        at = Gpa(at.0 + step);
        len -= step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::GpaRange;
    use std::sync::Arc;

    fn entry(address: u64, count: u32) -> [u8; 16] {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[12..].copy_from_slice(&(count - 1).to_le_bytes());
        raw
    }

    fn command(entries: &[[u8; 16]], fis: u8) -> (Arc<Ram>, Result<Command, Unreadable>) {
        let range = |start, len| GpaRange::new(Gpa(start), len).unwrap();
        // Two segments that touch.
        let ram = Arc::new(Ram::new(&[range(0, 0x4000), range(0x4000, 0x4000)]).unwrap());
        let mut header = [0; 32];
        header[0] = 5;
        header[2..4].copy_from_slice(&(entries.len() as u16).to_le_bytes());
        header[8..16].copy_from_slice(&0x1000u64.to_le_bytes());
        ram.write(Gpa(0x400), &header).unwrap();
        ram.write_obj(Gpa(0x1000), &[fis, 0x80, 0xec, 0]).unwrap();
        ram.write(Gpa(0x1080), &entries.concat()).unwrap();
        let command = Command::read(&ram, Gpa(0x400));
        (ram, command)
    }

    #[test]
    fn a_scatter_list_is_gathered_as_far_as_there_is_need() {
        let entries = [entry(0x2000, 0x100), entry(0x3f00, 0x200), entry(0x1_0000, 0x100)];
        let (ram, command) = command(&entries, 0x27);
        let command = command.unwrap();
        let gather = |bytes| {
            let mut buffers = Buffers::new(ram.clone());
            command.gather(&ram, bytes, &mut buffers).map(|()| (buffers.iovecs().len(), buffers.bytes()))
        };
        assert_eq!(gather(0x80), Ok((1, 0x80)));
        // The second piece runs over the border between two segments.
        assert!(matches!(gather(0x300), Ok((2 | 3, 0x300))));
        assert_eq!(gather(0x301), Err(Unreadable::HostBus), "the third piece is no RAM");
        command.set_transferred(&ram, 0x300).unwrap();
        assert_eq!(ram.read_obj::<u32>(Gpa(0x404)).unwrap(), 0x300);
    }

    #[test]
    fn a_long_list_is_gathered_in_chunks_and_a_short_one_is_short() {
        let entries: Vec<_> = (0..100).map(|i| entry(0x2000 + 0x20 * i, 0x10)).collect();
        let (ram, command) = command(&entries, 0x27);
        let mut buffers = Buffers::new(ram.clone());
        command.unwrap().gather(&ram, 0x1000, &mut buffers).unwrap();
        assert_eq!((buffers.iovecs().len(), buffers.bytes()), (100, 0x640));
    }

    #[test]
    fn what_is_no_command_is_refused() {
        assert_eq!(command(&[], 0x34).1.err(), Some(Unreadable::Interface));
        let (ram, _) = command(&[], 0x27);
        assert_eq!(Command::read(&ram, Gpa(0x7ff0)).err(), Some(Unreadable::HostBus));
        ram.write_obj(Gpa(0x408), &u64::MAX).unwrap();
        assert_eq!(Command::read(&ram, Gpa(0x400)).err(), Some(Unreadable::HostBus));
        ram.write_obj(Gpa(0x400), &1u16).unwrap();
        assert_eq!(Command::read(&ram, Gpa(0x400)).err(), Some(Unreadable::Interface));
    }
}
