//! Flash memory at the end of the first 4 GiB: the firmware's code, which nobody can write, and its variables, by the
//! commands of Intel's flash (28F640J3 data sheet, table 7, "Command Set"), byte by byte, as far as firmware uses them.
//!
//! While the guest reads what is stored ("read array"), it does so as memory, without leaving the guest. All else is trapped.
//!
//! Firmware erases a block and then writes it anew, byte by byte. Between the two even the header of its variables can be gone,
//! and then it has lost them all. So a block that was erased goes to where it lasts as a whole, at the end of the step.

use std::io;
use std::sync::Arc;

use memory::{GpaRange, RegisterPages};
use parking_lot::{Mutex, MutexGuard};

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
    /// What people call it, as in "the firmware's variables /var/lib/skep/vm/firmware-vars.fd".
    fn name(&self) -> String;
    /// Writes bytes at an offset. Whatever was written and synced before is there before these.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns when all that was written lasts.
    fn sync(&mut self) -> io::Result<()>;
    /// What is to be written, where and in this order, before what uses the flash starts with these contents: what it was interrupted
    /// in, and would finish too late for itself.
    fn unfinished(&self, contents: &[u8]) -> Vec<(u64, Vec<u8>)>;
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
    /// Blocks by their numbers of which the store has what they held before, in the order in which they were changed.
    unwritten: Vec<u64>,
    /// Blocks that were written since the last sync.
    unsynced: Vec<u64>,
    /// Blocks that the last sync failed for: the host may have lost what was written of them.
    lost: Vec<u64>,
    /// Why the last step does not last, if it does not.
    failed: Option<String>,
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
    /// with true when the guest may read it as memory, from now on, and with false when it may not any more. Fails when it cannot be
    /// shown at first: no CPU starts in flash that is trapped.
    pub fn new(
        range: GpaRange,
        pages: Arc<RegisterPages>,
        store: Option<Box<dyn Store>>,
        show: Show,
        report: Report,
    ) -> io::Result<Flash> {
        let registers = Registers::default();
        let flash = Flash {
            range,
            pages,
            state: Mutex::new(State {
                registers,
                store,
                unwritten: Vec::new(),
                unsynced: Vec::new(),
                lost: Vec::new(),
                failed: None,
            }),
            show,
            report,
        };
        (flash.show)(true)?;
        Ok(flash)
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
            Mode::Program => {
                self.program(&mut state, offset, data);
            }
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

    /// Returns to power-on. What is stored stays, and what was interrupted is finished.
    pub fn reset(&self) {
        let mut state = self.state();
        // Blocks that are erased wait for what they lack: without it they could cost all that the store holds.
        let lasts = self.sync_written(&mut state);
        self.reported(&mut state, &lasts);
        self.finish(&mut state);
        self.sync(&mut state);
        let before = std::mem::take(&mut state.registers);
        if before.mode != Mode::Array {
            self.shown(true);
        }
    }

    /// The VM ends: makes what still waits last, unless the guest is in the middle of a step, which the next start takes back or
    /// finishes. The error says what is lost.
    pub fn end(&self) -> Result<(), String> {
        let mut state = self.state();
        let name = state.name();
        if state.registers.mode != Mode::Array {
            let failed = state.failed.take();
            return failed
                .map_or(Ok(()), |error| Err(format!("the last changes of {name} are lost: {error}.")));
        }
        let lost = |error| {
            format!("the last changes of {name} are lost, and what is stored may be damaged: {error}.")
        };
        state.failed = None;
        self.try_sync(&mut state).map_err(lost)
    }

    /// Does what was interrupted, as far as it can: no step without those before it.
    fn finish(&self, state: &mut State) {
        let Some(store) = &state.store else { return };
        let contents: Vec<u8> = (0..self.range.len()).map(|at| self.pages.byte(at as usize)).collect();
        for (at, bytes) in store.unfinished(&contents) {
            if !self.program(state, at, &bytes) || !self.sync(state) {
                break;
            }
        }
    }

    /// Writes bytes; at once, unless something before them waits for the end of the step. Returns whether that can be.
    ///
    /// Bits can go from 0 to 1 as well, as in QEMU's model, for which the firmware was made. It does not ask for the status, so what
    /// cannot be stored now is read all the same, and stored at the end of a step once it can be.
    fn program(&self, state: &mut State, offset: u64, bytes: &[u8]) -> bool {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.range.len());
        let done = end.is_some_and(|end| {
            let waits = !state.unwritten.is_empty();
            let written = if waits { Ok(()) } else { self.write_now(state, offset, bytes) };
            let noted = if waits || written.is_err() { &mut state.unwritten } else { &mut state.unsynced };
            (offset / BLOCK..end.div_ceil(BLOCK)).for_each(|block| note(noted, block));
            self.pages.store_bytes(offset as usize, bytes);
            written.inspect_err(|error| self.not_written(state, error)).is_ok()
        });
        state.registers.finish(done, PROGRAM_FAILED);
        done
    }

    fn write_now(&self, state: &mut State, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_lost(state)?;
        state.write(offset, bytes)
    }

    fn erase(&self, state: &mut State, offset: u64) {
        let block = offset / BLOCK;
        let fits = (block + 1) * BLOCK <= self.range.len();
        if fits {
            // With what the block held before.
            if state.unwritten.is_empty()
                && let Err(error) = self.write_lost(state)
            {
                self.not_written(state, &error);
            }
            note(&mut state.unwritten, block);
            self.pages.store_bytes((block * BLOCK) as usize, &[0xff; BLOCK as usize]);
        }
        state.registers.finish(fits, ERASE_FAILED);
    }

    fn not_written(&self, state: &State, error: &io::Error) {
        (self.report)(format!(
            "{} cannot be written: {error}. It is tried again at the end of the guest's step.",
            state.name()
        ));
    }

    /// The firmware ends each of its steps by reading the array again, and relies on that a step lasts before the next.
    fn sync(&self, state: &mut State) -> bool {
        let synced = self.try_sync(state);
        self.reported(state, &synced)
    }

    fn reported(&self, state: &mut State, synced: &io::Result<()>) -> bool {
        state.failed = synced.as_ref().err().map(ToString::to_string);
        if let Err(error) = synced {
            state.registers.status |= PROGRAM_FAILED;
            (self.report)(format!(
                "{} may be lost when this host fails: {error}. It is tried again when the guest writes the next one, is reset, or ends.",
                state.name()
            ));
        }
        synced.is_ok()
    }

    /// What fails is done again by the next step, before its own writes: whole blocks, for the host says only once that it lost some.
    fn try_sync(&self, state: &mut State) -> io::Result<()> {
        self.write_lost(state)?;
        while let Some(block) = state.unwritten.first().copied() {
            self.write_block(state, block)?;
            note(&mut state.unsynced, block);
            state.unwritten.remove(0);
        }
        self.sync_written(state)
    }

    /// Makes what was written last, and nothing that waits.
    fn sync_written(&self, state: &mut State) -> io::Result<()> {
        self.write_lost(state)?;
        if state.unsynced.is_empty() {
            return Ok(());
        }
        let blocks = std::mem::take(&mut state.unsynced);
        let synced = state.sync();
        if synced.is_err() {
            state.lost = blocks;
        }
        synced
    }

    /// Makes what is lost last, so that nothing that comes later lasts before it; but for blocks that were erased since, which go as a
    /// whole at the end of the step.
    fn write_lost(&self, state: &mut State) -> io::Result<()> {
        if state.lost.is_empty() {
            return Ok(());
        }
        let erased = |block: &u64| state.unwritten.contains(block);
        for block in state.lost.iter().copied().filter(|block| !erased(block)).collect::<Vec<_>>() {
            self.write_block(state, block)?;
        }
        state.sync()?;
        state.lost.clear();
        Ok(())
    }

    fn write_block(&self, state: &mut State, block: u64) -> io::Result<()> {
        let at = block * BLOCK;
        let bytes: Vec<u8> = (at..at + BLOCK).map(|at| self.pages.byte(at as usize)).collect();
        state.write(at, &bytes)
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
        self.state.lock()
    }
}

impl State {
    fn name(&self) -> String {
        self.store.as_ref().map_or_else(|| "flash memory".to_owned(), |store| store.name())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.store.as_mut().map_or(Ok(()), |store| store.write(offset, bytes))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.store.as_mut().map_or(Ok(()), |store| store.sync())
    }
}

fn note(blocks: &mut Vec<u64>, block: u64) {
    if !blocks.contains(&block) {
        blocks.push(block);
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

    /// The bytes, the number of syncs, whether writes and syncs fail, and the second byte of each block that was written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>, Arc<AtomicUsize>, Arc<AtomicBool>, Arc<AtomicBool>, Arc<Mutex<Vec<u8>>>);

    impl Store for Kept {
        fn name(&self) -> String {
            "the variables".to_owned()
        }

        fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            if self.2.load(Ordering::SeqCst) {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            self.0.lock()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            if bytes.len() as u64 == BLOCK {
                self.4.lock().push(bytes[1]);
            }
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            self.1.fetch_add(1, Ordering::SeqCst);
            if self.3.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
        }

        /// An exclamation mark in the second block asks for the copy of a byte, and then goes.
        fn unfinished(&self, contents: &[u8]) -> Vec<(u64, Vec<u8>)> {
            let copy = || vec![(1, contents[5000..5001].to_vec()), (MARK, vec![0])];
            (contents[MARK as usize] == b'!').then(copy).unwrap_or_default()
        }
    }

    /// Where it is.
    const MARK: u64 = 4100;

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
        *kept.0.lock() = vec![0; 8192];
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
            Box::new(move |what| report.lock().push(what)),
        )
        .unwrap();
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
        assert_eq!(bench.kept.0.lock()[7..9], *b"ab");
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
    fn what_cannot_be_stored_is_an_error_in_the_status_and_is_stored_once_it_can_be() {
        let bench = flash(true);
        bench.kept.2.store(true, Ordering::SeqCst);
        bench.write(&[(0, 0x10), (0, b'x')]);
        assert_eq!(bench.byte(0), READY | PROGRAM_FAILED);
        bench.write(&[(0, 0xff)]);
        assert_eq!(
            (bench.byte(0), bench.kept.0.lock()[0]),
            (b'x', 0),
            "the firmware does not ask for the status"
        );
        assert!(bench.reports.lock()[0].contains("No space left"), "{:?}", bench.reports);
        bench.kept.2.store(false, Ordering::SeqCst);
        bench.write(&[(0, 0x50)]);
        assert_eq!(bench.kept.0.lock()[0], b'x');
    }

    #[test]
    fn a_block_that_is_erased_and_written_anew_is_stored_as_a_whole_at_the_end_of_the_step() {
        let bench = flash(true);
        *bench.kept.0.lock() = vec![7; 8192];
        bench.write(&[(0, 0x20), (0, 0xd0), (0, 0x10), (0, b'n'), (5000, 0x40), (5000, b'x')]);
        assert_eq!(*bench.kept.0.lock(), vec![7; 8192], "nothing of it yet, nor what came after it");
        bench.write(&[(0, 0xff)]);
        let kept = bench.kept.0.lock();
        assert_eq!((kept[0], kept[1], kept[4095], kept[5000]), (b'n', 0xff, 0xff, b'x'));
    }

    #[test]
    fn what_could_not_be_synced_is_written_again_by_the_next_step_before_anything_else() {
        let bench = flash(true);
        bench.write(&[(7, 0x10), (7, b'a')]);
        bench.kept.3.store(true, Ordering::SeqCst);
        bench.write(&[(0, 0xff)]);
        assert!(bench.reports.lock()[0].contains("may be lost"), "{:?}", bench.reports);
        // What the host lost.
        bench.kept.0.lock()[7] = 0;
        bench.kept.3.store(false, Ordering::SeqCst);
        bench.write(&[(0, 0x50)]);
        assert_eq!(bench.kept.0.lock()[7], b'a');
        assert_eq!(bench.kept.1.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn nothing_is_written_while_what_came_before_it_does_not_last_and_nothing_is_dropped() {
        let bench = flash(true);
        bench.write(&[(7, 0x10), (7, b'a')]);
        bench.kept.3.store(true, Ordering::SeqCst);
        bench.write(&[(0, 0xff), (5000, 0x10), (5000, b'b'), (5001, 0x10), (5001, b'c')]);
        assert_eq!(bench.kept.0.lock()[5000..5002], [0, 0]);
        let syncs = bench.kept.1.load(Ordering::SeqCst);
        assert_eq!(syncs, 2, "it is tried once in a step, not for each byte");
        bench.write(&[(0, 0xff)]);
        assert_eq!([5000, 5001].map(|at| bench.byte(at)), *b"bc", "the firmware reads what it wrote");
        bench.kept.0.lock()[7] = 0;
        bench.kept.3.store(false, Ordering::SeqCst);
        let syncs = bench.kept.1.load(Ordering::SeqCst);
        bench.write(&[(0, 0x50)]);
        let kept = bench.kept.0.lock().clone();
        assert_eq!((kept[7], &kept[5000..5002]), (b'a', &b"bc"[..]));
        assert_eq!(bench.kept.1.load(Ordering::SeqCst), syncs + 2, "the older one lasts first");
    }

    #[test]
    fn what_still_waits_when_the_vm_ends_is_stored_or_said_to_be_lost_and_half_a_step_is_not_stored() {
        let bench = flash(true);
        bench.kept.2.store(true, Ordering::SeqCst);
        bench.write(&[(0, 0x10), (0, b'x'), (0, 0xff)]);
        let lost = bench.flash.end().unwrap_err();
        assert!(
            lost.contains("the last changes of the variables are lost") && lost.contains("No space left"),
            "{lost}"
        );
        bench.kept.2.store(false, Ordering::SeqCst);
        assert_eq!(bench.flash.end(), Ok(()));
        assert_eq!(bench.kept.0.lock()[0], b'x');
        bench.write(&[(0, 0x20), (0, 0xd0)]);
        assert_eq!(bench.flash.end(), Ok(()));
        assert_eq!(bench.kept.0.lock()[0], b'x');
        bench.kept.2.store(true, Ordering::SeqCst);
        bench.write(&[(0, 0xff), (1, 0x10), (1, b'y')]);
        assert!(bench.flash.end().unwrap_err().contains("No space left"), "in the middle of the next step");
    }

    #[test]
    fn a_block_that_a_sync_lost_and_that_was_erased_since_is_not_stored_before_what_finishes_it() {
        let bench = flash(true);
        bench.write(&[
            (5000, 0x10),
            (5000, b'c'),
            (MARK, 0x10),
            (MARK, b'!'),
            (0, 0xff),
            (0, 0x10),
            (0, b'x'),
        ]);
        bench.kept.3.store(true, Ordering::SeqCst);
        bench.write(&[(0, 0xff), (0, 0x20), (0, 0xd0)]);
        bench.kept.3.store(false, Ordering::SeqCst);
        bench.kept.4.lock().clear();
        bench.flash.reset();
        assert_eq!(*bench.kept.4.lock(), [b'c']);
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

    #[test]
    fn what_was_interrupted_is_finished_at_a_reset_step_by_step() {
        let bench = flash(true);
        bench.write(&[(5000, 0x10), (5000, b'c'), (MARK, 0x10), (MARK, b'!')]);
        bench.flash.reset();
        assert_eq!((bench.byte(MARK), bench.byte(1), bench.shown()), (0, b'c', true));
        assert_eq!([1, MARK as usize].map(|at| bench.kept.0.lock()[at]), [b'c', 0]);
        assert_eq!(bench.kept.1.load(Ordering::SeqCst), 3, "each lasts before the next");
        bench.flash.reset();
        assert_eq!(bench.kept.1.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn what_was_interrupted_is_not_called_finished_where_its_copy_cannot_be_stored() {
        let bench = flash(true);
        bench.write(&[(5000, 0x10), (5000, b'c'), (MARK, 0x10), (MARK, b'!'), (0, 0xff)]);
        for fails in [&bench.kept.2, &bench.kept.3] {
            fails.store(true, Ordering::SeqCst);
            bench.flash.reset();
            fails.store(false, Ordering::SeqCst);
            assert_eq!(bench.kept.0.lock()[MARK as usize], b'!', "the mark that it is to be done");
        }
        bench.flash.reset();
        assert_eq!([1, MARK as usize].map(|at| bench.kept.0.lock()[at]), [b'c', 0]);
    }

    #[test]
    fn a_block_that_a_reset_finds_erased_is_stored_with_what_finishes_it_and_never_empty() {
        let bench = flash(true);
        bench.write(&[(5000, 0x10), (5000, b'c'), (MARK, 0x10), (MARK, b'!'), (0, 0xff)]);
        bench.write(&[(0, 0x20), (0, 0xd0)]);
        bench.flash.reset();
        assert_eq!(*bench.kept.4.lock(), [b'c']);
        assert_eq!((bench.byte(1), bench.byte(MARK)), (b'c', 0));
    }

    proptest! {
        #[test]
        fn what_the_guest_reads_as_memory_is_what_is_stored_whatever_it_writes(
            writes in prop::collection::vec(
                (0u64..8192, prop::sample::select(vec![0x10u8, 0x40, 0x20, 0xd0, 0x50, 0x70, 0x90, 0xff, 0x12]), 1usize..9), 0..64)
        ) {
            let bench = flash(true);
            bench.kept.0.lock()[..6].copy_from_slice(b"stored");
            for (offset, byte, len) in writes {
                let len = len.min((8192 - offset) as usize);
                bench.flash.write(offset, &vec![byte; len]);
                let mut data = vec![0; len];
                bench.flash.read(offset, &mut data);
            }
            bench.flash.reset();
            let read: Vec<u8> = (0..8192).map(|at| bench.byte(at)).collect();
            prop_assert!(bench.shown());
            prop_assert_eq!(&read, &*bench.kept.0.lock());
        }
    }
}
