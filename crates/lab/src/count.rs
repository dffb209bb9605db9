//! Instructions of the emulated host counted one by one, by whose they are: a plugin for QEMU's TCG, and the marks
//! between which it counts.

use std::path::{Path, PathBuf};

use crate::LabError;
use crate::compile::Library;

pub(crate) const PLUGIN: Library = Library {
    name: "count",
    source: include_bytes!("../count/count.c"),
    purpose: "it compiles the plugin that counts instructions",
};

/// The mark of the moment in which a program is about to be started.
pub const PROGRAM_STARTS: u8 = 0x01;
/// The mark of a guest's first instruction, or its init's.
pub const GUEST_LIVES: u8 = 0x02;
/// The mark before a load.
pub const LOAD_BEGINS: u8 = 0x10;
/// The mark after a load.
pub const LOAD_ENDS: u8 = 0x11;

/// A NOP of eight bytes that no compiler makes: `nopl 0x05ce00NN(%rax,%rax,1)`, where NN is the mark. It is the same
/// instruction in 32-bit code.
pub const fn nop(mark: u8) -> [u8; 8] {
    [0x0f, 0x1f, 0x84, 0x00, mark, 0x00, 0xce, 0x05]
}

/// Sets a mark. To a CPU without the plugin it is nothing.
#[inline(always)]
pub fn mark<const MARK: u8>() {
    // SAFETY: the bytes are those of `nop`, which does nothing and reads no memory.
    unsafe {
        std::arch::asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, {mark}, 0x00, 0xce, 0x05",
            mark = const MARK,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// What the emulated host's clock goes by while its instructions are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// By instructions: one is a nanosecond. What happens does not depend on this machine's load. CPUs take turns, and
    /// disks under load stall.
    Instructions,
    /// By this machine's clock, as always. CPUs run side by side.
    Machine,
}

/// Counting: a plugin, compiled, and the file that it writes.
#[derive(Debug, Clone)]
pub struct Count {
    plugin: PathBuf,
    record: PathBuf,
    clock: Clock,
}

impl Count {
    /// Compiles the plugin, unless that was done, and has it write to `record`. The lines there are explained in
    /// `crates/lab/count/count.c`.
    ///
    /// # Errors
    /// When there is no C compiler, or it fails, or the cache cannot be written.
    pub fn new(record: impl AsRef<Path>, clock: Clock) -> Result<Count, LabError> {
        let plugin = PLUGIN.ready()?;
        Ok(Count { plugin, record: record.as_ref().to_owned(), clock })
    }

    /// What the emulated host's clock goes by.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// QEMU's arguments for it.
    pub(crate) fn arguments(&self) -> [String; 2] {
        let text = |path: &Path| path.display().to_string().replace(',', ",,");
        ["-plugin".into(), format!("file={},out={}", text(&self.plugin), text(&self.record))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_in_a_program_has_the_bytes_of_the_nop() {
        #[inline(never)]
        fn marked() {
            mark::<0x5a>();
        }
        let start: *const u8 = marked as fn() as *const u8;
        // SAFETY: code is readable, and a function of an unoptimised or optimised build with its epilogue, and
        // what the linker puts behind it, is no shorter than this.
        let code = unsafe { std::slice::from_raw_parts(start, 24) };
        assert!(code.windows(8).any(|bytes| bytes == nop(0x5a)), "{code:x?}");
    }

    #[test]
    fn commas_in_paths_are_no_options() {
        let count = Count { plugin: "/a,b/c.so".into(), record: "/r".into(), clock: Clock::Machine };
        assert_eq!(count.arguments(), ["-plugin", "file=/a,,b/c.so,out=/r"]);
    }

    #[test]
    fn only_a_clock_of_instructions_makes_cpus_take_turns() {
        let arguments = |clock: Option<Clock>| {
            let count = clock.map(|clock| Count { plugin: "/p".into(), record: "/r".into(), clock });
            let lab = count.into_iter().fold(crate::Lab::builder(), crate::Builder::count).build();
            crate::machine::Machine::new(&lab).finish().0.join(" ")
        };
        let plugin = "-plugin file=/p,out=/r";
        let by_instructions = arguments(Some(Clock::Instructions));
        assert!(
            by_instructions.contains(&format!("thread=single -icount shift=0 {plugin}")),
            "{by_instructions}"
        );
        let by_machine = arguments(Some(Clock::Machine));
        assert!(by_machine.contains(&format!("thread=multi {plugin}")), "{by_machine}");
        let uncounted = arguments(None);
        assert!(!uncounted.contains("icount") && !uncounted.contains("plugin"), "{uncounted}");
    }
}
