//! What is typed at the console: most of it is for the guest, and some of it is for skep.

use std::io::{self, ErrorKind, Read};

/// The keys for skep, as the help says them.
pub const HELP: &str = "  \
  Ctrl-A x       press the VM's power button; again: stop the VM now
  Ctrl-A Ctrl-A  send Ctrl-A to the VM
  Ctrl-A ?       show these keys
";

const CTRL_A: u8 = 0x01;

/// What a typed byte means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// It is for the guest.
    Guest(u8),
    /// The VM shall end: the first time by its power button, then at once.
    Quit,
    /// Show [`HELP`].
    Help,
}

/// Finds what is for skep among what is typed.
#[derive(Debug)]
pub enum Escape {
    /// Everything is for the guest: it comes from a pipe or file, not from a person.
    Off,
    /// The next byte is for the guest, unless it is Ctrl-A.
    Plain,
    /// Ctrl-A was typed, and the next byte is for skep.
    Armed,
}

impl Escape {
    /// What the next byte means; `None` if that depends on the byte behind it.
    pub fn next(&mut self, byte: u8) -> Option<Input> {
        match (&self, byte) {
            (Escape::Plain, CTRL_A) => {
                *self = Escape::Armed;
                return None;
            }
            (Escape::Off | Escape::Plain, byte) => return Some(Input::Guest(byte)),
            (Escape::Armed, _) => *self = Escape::Plain,
        }
        Some(match byte {
            CTRL_A => Input::Guest(CTRL_A),
            b'x' | b'X' => Input::Quit,
            _ => Input::Help,
        })
    }
}

/// Reads `input` to its end and hands on what it means. The end is no wish to quit: a VM whose input is
/// /dev/null goes on.
pub fn read(mut input: impl Read, mut escape: Escape, mut give: impl FnMut(Input)) -> io::Result<()> {
    let mut bytes = [0; 256];
    loop {
        match input.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(n) => bytes[..n].iter().filter_map(|byte| escape.next(*byte)).for_each(&mut give),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8], escape: Escape) -> Vec<Input> {
        let mut given = Vec::new();
        read(bytes, escape, |input| given.push(input)).unwrap();
        given
    }

    fn guest(bytes: &[u8]) -> Vec<Input> {
        bytes.iter().map(|byte| Input::Guest(*byte)).collect()
    }

    #[test]
    fn what_is_typed_is_for_the_guest() {
        let all: Vec<u8> = (0..=255).filter(|byte| *byte != CTRL_A).collect();
        assert_eq!(typed(&all, Escape::Plain), guest(&all));
    }

    #[test]
    fn ctrl_a_x_quits() {
        assert_eq!(
            typed(b"a\x01xb\x01X", Escape::Plain),
            [Input::Guest(b'a'), Input::Quit, Input::Guest(b'b'), Input::Quit]
        );
    }

    #[test]
    fn ctrl_a_twice_is_ctrl_a_once() {
        assert_eq!(typed(b"\x01\x01\x01\x01x", Escape::Plain), guest(b"\x01\x01x"));
    }

    #[test]
    fn another_key_behind_ctrl_a_helps_and_never_reaches_the_guest() {
        for byte in (0..=255).filter(|byte| !matches!(*byte, CTRL_A | b'x' | b'X')) {
            assert_eq!(typed(&[CTRL_A, byte, b'x'], Escape::Plain), [Input::Help, Input::Guest(b'x')]);
        }
    }

    #[test]
    fn a_lone_ctrl_a_waits_for_the_next_read() {
        let mut escape = Escape::Plain;
        assert_eq!(escape.next(CTRL_A), None);
        assert_eq!(escape.next(b'x'), Some(Input::Quit));
        assert_eq!(escape.next(b'x'), Some(Input::Guest(b'x')));
    }

    #[test]
    fn a_pipe_says_everything_to_the_guest() {
        assert_eq!(typed(b"a\x01x\x01\x01?", Escape::Off), guest(b"a\x01x\x01\x01?"));
    }
}
