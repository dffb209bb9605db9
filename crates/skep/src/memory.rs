//! `skep memory`: a VM's RAM, read from outside.

mod dump;
mod image;
mod read;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::ask::{Failure, Whom};
use image::Image;

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    #[command(flatten)]
    whom: Whom,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print LENGTH bytes of RAM, starting at guest address ADDRESS, as xxd does
    Read {
        /// A guest address: 0x1000, 4096, 1M
        #[arg(value_parser = number)]
        address: u64,
        /// How many bytes: 256, 0x100, 4K, 2M
        #[arg(value_parser = number)]
        length: u64,
        /// Write the bytes as they are, not as text
        #[arg(long)]
        raw: bool,
    },
    /// Write all RAM to a new FILE, each byte at its guest address. Zeros and gaps take no space on disk
    Dump {
        /// The file, which must not exist yet. Only its owner will be able to read it
        file: PathBuf,
    },
}

const HELP: &str = "\
The guest keeps running meanwhile. Pause it (skep pause VM) to see its RAM at one moment.

Exit status:
  0  done
  1  there is no such VM, or it could not be reached
  2  the command line is wrong
  4  the addresses are not RAM, or the file could not be written";

/// Runs the command.
pub fn run(arguments: &Arguments, output: &mut impl Write) -> Result<(), Failure> {
    let image = Image::of(&mut arguments.whom.connect()?)?;
    match &arguments.command {
        Command::Read { address, length, raw } => read::read(&image, *address, *length, *raw, output),
        Command::Dump { file } => dump::dump(&image, file),
    }
}

/// A number as people write addresses and lengths: decimal or 0x and hexadecimal digits, with K, M, G or T behind.
fn number(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number. Write 4096, 0x1000 or 4K");
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        Some((at, 't' | 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let (digits, base) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (digits, 10),
    };
    if !digits.chars().all(|char| char.is_digit(base)) {
        return Err(wrong());
    }
    let number = u64::from_str_radix(digits, base).map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more than 64 bits hold"))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_decimal_or_hexadecimal_and_may_have_a_unit() {
        for (text, value) in [("0", 0), ("4096", 4096), ("0x1000", 4096), ("4K", 4096), ("0x1m", 1 << 20)] {
            assert_eq!(number(text), Ok(value));
        }
        assert_eq!(number("0xffffffffffffffff"), Ok(u64::MAX));
        for bad in
            ["", "K", "0x", "-1", "+1", "1KB", "0x+1", "0xg", "1.5G", "99999999999999999999", "16777217T"]
        {
            assert!(number(bad).is_err(), "{bad}");
        }
    }
}
