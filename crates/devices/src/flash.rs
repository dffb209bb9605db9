//! Flash memory at the end of the first 4 GiB: the firmware's code, which nobody can write, and its variables, by the
//! commands of Intel's flash (28F640J3 data sheet, table 7, "Command Set"), byte by byte, as far as firmware uses them.
//!
//! While the guest reads what is stored ("read array"), it does so as memory, without leaving the guest. All else is trapped.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use memory::{GpaRange, RegisterPages};

/// What is erased at once, in bytes, as OVMF expects it.
const BLOCK: u64 = 4096;
/// Manufacturer (Intel) and device, which "read identifier" gives.
const IDENTIFIERS: [u8; 2] = [0x89, 0x18];

/// Status: the last command is done.
const READY: u8 = 1 << 7;
/// Status: a block could not be erased.
const ERASE_FAILED: u8 = 1 << 5;
/// Status: a byte could not be written.
const PROGRAM_FAILED: u8 = 1 << 4;

/// Commands.
mod command {
    pub const PROGRAM: [u8; 2] = [0x10, 0x40];
    pub const ERASE: u8 = 0x20;
    pub const CONFIRM: u8 = 0xd0;
    pub const CLEAR_STATUS: u8 = 0x50;
    pub const READ_STATUS: u8 = 0x70;
    pub const READ_IDENTIFIERS: u8 = 0x90;
}

/// Where what is written lasts.
pub trait Store: Send {
    /// Writes bytes at an offset. Whatever was written and synced before is there before these.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns when all that was written lasts.
    fn sync(&mut self) -> io::Result<()>;
}

/// Lets the guest read the flash as memory, or not.
type Show = Box<dyn Fn(bool) -> io::Result<()> + Send + Sync>;
/// Told of what failed.
type Report = Box<dyn Fn(String) + Send + Sync>;

/// Flash memory.
pub struct Flash {
    range: GpaRange,
    pages: Arc<RegisterPages>,
    state: Mutex<State>,
    show: Show,
    report: Report,
}

struct State {
    registers: Registers,
    /// `None`: what the guest writes is ignored.
    store: Option<Box<dyn Store>>,
    /// Something was written since the last sync.
    unsynced: bool,
}

/// What the guest has commanded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Registers {
    mode: Mode,
    status: u8,
}

/// What a read gives, or what the next write means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    /// Reads give what is stored.
    #[default]
    Array,
    /// Reads give the status.
    Status,
    /// Reads give what flash this is.
    Identifiers,
    /// The next write is the data.
    Program,
    /// The next write confirms that a block is to be erased.
    Erase,
}

impl Flash {
    /// Flash that holds `pages` at `range`, of the same length. With a `store`, the guest can write it. `show` is called
    /// with true when the guest may read it as memory, from now on, and with false when it may not any more.
    pub fn new(
        range: GpaRange,
        pages: Arc<RegisterPages>,
        store: Option<Box<dyn Store>>,
        show: Show,
        report: Report,
    ) -> Flash {
        let registers = Registers::default();
        let flash = Flash {
            range,
            pages,
            state: Mutex::new(State { registers, store, unsynced: false }),
            show,
            report,
        };
        flash.shown(true);
        flash
    }

    /// Its addresses.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// Reads from an offset on.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.state().registers;
        for (at, byte) in (offset..).zip(data) {
            *byte = match registers.mode {
                // Either it was shown between the guest's read and this, or it cannot be shown.
                Mode::Array => self.pages.byte(at as usize),
                Mode::Identifiers => IDENTIFIERS[at as usize % 2],
                Mode::Status | Mode::Program | Mode::Erase => registers.status,
            };
        }
    }

    /// Writes a command or data.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        if state.store.is_none() {
            return;
        }
        let before = state.registers.mode;
        match before {
            Mode::Program => self.program(&mut state, offset, data),
            Mode::Erase if data.first() == Some(&command::CONFIRM) => self.erase(&mut state, offset),
            // Anything else is no confirmation, and a wrong sequence fails both (table 7, note).
            Mode::Erase => state.registers.fail(PROGRAM_FAILED | ERASE_FAILED),
            Mode::Array | Mode::Status | Mode::Identifiers => {
                state.registers.begin(data.first().copied().unwrap_or_default());
            }
        }
        let after = state.registers.mode;
        if after == Mode::Array {
            self.sync(&mut state);
        }
        if (before == Mode::Array) != (after == Mode::Array) {
            self.shown(after == Mode::Array);
        }
    }

    /// Returns to power-on. What is stored stays.
    pub fn reset(&self) {
        let mut state = self.state();
        self.sync(&mut state);
        let before = std::mem::take(&mut state.registers);
        if before.mode != Mode::Array {
            self.shown(true);
        }
    }

    fn program(&self, state: &mut State, offset: u64, data: &[u8]) {
        let done = self.change(state, offset, data);
        state.registers.finish(done, PROGRAM_FAILED);
    }

    fn erase(&self, state: &mut State, offset: u64) {
        let done = self.change(state, offset - offset % BLOCK, &[0xff; BLOCK as usize]);
        state.registers.finish(done, ERASE_FAILED);
    }

    /// Stores bytes, and then lets the guest read them. Whether both was done.
    ///
    /// Bits can go from 0 to 1 as well, as in QEMU's model, for which the firmware was made.
    fn change(&self, state: &mut State, offset: u64, bytes: &[u8]) -> bool {
        let fits = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.range.len());
        let Some(store) = state.store.as_mut().filter(|_| fits) else { return false };
        if let Err(error) = store.write(offset, bytes) {
            (self.report)(format!("the firmware's variables cannot be written: {error}"));
            return false;
        }
        state.unsynced = true;
        self.pages.store_bytes(offset as usize, bytes);
        true
    }

    /// The firmware ends each of its steps by reading the array again, and relies on that a step lasts before the next.
    fn sync(&self, state: &mut State) {
        if !std::mem::take(&mut state.unsynced) {
            return;
        }
        let synced = state.store.as_mut().map_or(Ok(()), |store| store.sync());
        if let Err(error) = synced {
            state.registers.status |= PROGRAM_FAILED;
            (self.report)(format!("the firmware's variables may be lost when this host fails: {error}"));
        }
    }

    fn shown(&self, shown: bool) {
        if let Err(error) = (self.show)(shown) {
            // Reads are served here where it cannot be shown.
            let what = if shown {
                "cannot be shown to the guest as memory"
            } else {
                "cannot be hidden from the guest"
            };
            (self.report)(format!("flash memory at {} {what}: {error}", self.range));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

impl Registers {
    /// A command's first write.
    fn begin(&mut self, code: u8) {
        self.mode = match code {
            code if command::PROGRAM.contains(&code) => Mode::Program,
            command::ERASE => Mode::Erase,
            command::READ_STATUS => Mode::Status,
            command::READ_IDENTIFIERS => Mode::Identifiers,
            command::CLEAR_STATUS => {
                self.status = 0;
                Mode::Array
            }
            // 0xff, "read array", and what is no command.
            _ => Mode::Array,
        };
    }

    fn finish(&mut self, done: bool, failure: u8) {
        if done {
            (self.mode, self.status) = (Mode::Status, self.status | READY);
        } else {
            self.fail(failure);
        }
    }

    fn fail(&mut self, failure: u8) {
        (self.mode, self.status) = (Mode::Status, self.status | READY | failure);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use memory::Gpa;
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>, Arc<AtomicUsize>, Arc<AtomicBool>);

    impl Store for Kept {
        fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            if self.2.load(Ordering::SeqCst) {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            self.0.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    struct Bench {
        flash: Flash,
        kept: Kept,
        shown: Arc<AtomicBool>,
        reports: Arc<Mutex<Vec<String>>>,
    }

    fn flash(writable: bool) -> Bench {
        let pages = Arc::new(RegisterPages::new(8192).unwrap());
        pages.store_bytes(0, b"stored");
        let kept = Kept::default();
        *kept.0.lock().unwrap() = vec![0; 8192];
        let (shown, reports) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<String>>>::default());
        let (show, report) = (shown.clone(), reports.clone());
        let flash = Flash::new(
            GpaRange::new(Gpa(0xffc0_0000), 8192).unwrap(),
            pages,
            writable.then(|| Box::new(kept.clone()) as Box<dyn Store>),
            Box::new(move |on| {
                show.store(on, Ordering::SeqCst);
                Ok(())
            }),
            Box::new(move |what| report.lock().unwrap().push(what)),
        );
        Bench { flash, kept, shown, reports }
    }

    impl Bench {
        fn byte(&self, offset: u64) -> u8 {
            let mut byte = [0];
            self.flash.read(offset, &mut byte);
            byte[0]
        }

        fn write(&self, writes: &[(u64, u8)]) {
            writes.iter().for_each(|(offset, byte)| self.flash.write(*offset, &[*byte]));
        }

        fn shown(&self) -> bool {
            self.shown.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn firmware_tells_flash_from_ram_and_rom_as_ovmf_does() {
        // OvmfPkg/QemuFlashFvbServicesRuntimeDxe/QemuFlash.c, QemuFlashDetected.
        let bench = flash(true);
        assert!(bench.shown());
        bench.write(&[(1, 0x50)]);
        assert_eq!(bench.byte(1), b't', "no RAM");
        bench.write(&[(1, 0x70)]);
        assert!(!bench.shown());
        assert_eq!(bench.byte(1), 0);
        bench.write(&[(1, 0xff)]);
        assert!(bench.shown());
        assert_eq!(bench.byte(1), b't');
        let rom = flash(false);
        rom.write(&[(1, 0x70)]);
        assert!(rom.shown());
        assert_eq!(rom.byte(1), b't');
    }

    #[test]
    fn bytes_are_written_one_by_one_and_last_once_the_array_is_read_again() {
        let bench = flash(true);
        bench.write(&[(7, 0x10), (7, b'a'), (8, 0x40)]);
        assert_eq!(bench.byte(0), READY, "status while a command goes on");
        bench.write(&[(8, b'b')]);
        assert_eq!((bench.kept.1.load(Ordering::SeqCst), bench.shown()), (0, false));
        bench.write(&[(0, 0xff)]);
        assert_eq!((bench.kept.1.load(Ordering::SeqCst), bench.shown()), (1, true));
        assert_eq!([7, 8].map(|at| bench.byte(at)), *b"ab");
        assert_eq!(bench.kept.0.lock().unwrap()[7..9], *b"ab");
        bench.write(&[(0, 0xff), (0, 0x50)]);
        assert_eq!(bench.kept.1.load(Ordering::SeqCst), 1, "nothing new to sync");
    }

    #[test]
    fn a_block_is_erased_when_that_is_confirmed_and_only_then() {
        let bench = flash(true);
        bench.write(&[(3, 0x20), (3, 0xd0), (0, 0xff)]);
        assert_eq!([0, 4095, 4096].map(|at| bench.byte(at)), [0xff, 0xff, 0]);
        bench.write(&[(5000, 0x20), (5000, 0x70)]);
        assert_eq!(bench.byte(0), READY | PROGRAM_FAILED | ERASE_FAILED);
        bench.write(&[(0, 0x50)]);
        assert_eq!(bench.byte(4096), 0);
    }

    #[test]
    fn what_cannot_be_stored_is_an_error_in_the_status_and_is_not_to_be_read() {
        let bench = flash(true);
        bench.kept.2.store(true, Ordering::SeqCst);
        bench.write(&[(0, 0x10), (0, b'x')]);
        assert_eq!(bench.byte(0), READY | PROGRAM_FAILED);
        bench.write(&[(0, 0xff)]);
        assert_eq!(bench.byte(0), b's');
        assert!(bench.reports.lock().unwrap()[0].contains("No space left"), "{:?}", bench.reports);
    }

    #[test]
    fn a_reset_ends_a_command_and_keeps_what_is_stored() {
        let bench = flash(true);
        bench.write(&[(0, 0x10), (0, b'S'), (1, 0x10)]);
        bench.flash.reset();
        assert!(bench.shown());
        assert_eq!((bench.byte(0), bench.byte(1)), (b'S', b't'));
        assert_eq!(bench.kept.1.load(Ordering::SeqCst), 1);
    }

    proptest! {
        #[test]
        fn what_the_guest_reads_as_memory_is_what_is_stored_whatever_it_writes(
            writes in prop::collection::vec(
                (0u64..8192, prop::sample::select(vec![0x10u8, 0x40, 0x20, 0xd0, 0x50, 0x70, 0x90, 0xff, 0x12]), 1usize..9), 0..64)
        ) {
            let bench = flash(true);
            bench.kept.0.lock().unwrap()[..6].copy_from_slice(b"stored");
            for (offset, byte, len) in writes {
                let len = len.min((8192 - offset) as usize);
                bench.flash.write(offset, &vec![byte; len]);
                let mut data = vec![0; len];
                bench.flash.read(offset, &mut data);
            }
            bench.flash.reset();
            let read: Vec<u8> = (0..8192).map(|at| bench.byte(at)).collect();
            prop_assert!(bench.shown());
            prop_assert_eq!(&read, &*bench.kept.0.lock().unwrap());
        }
    }
}
