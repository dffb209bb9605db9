//! Bytes of RAM, as they are or as xxd shows them.

use std::fmt::Write as _;
use std::io::Write;

use super::image::Image;
use crate::ask::Failure;

/// Read and printed in one go; a multiple of a line.
const CHUNK: usize = 64 << 10;
/// Bytes in a line.
const LINE: usize = 16;

/// Prints `length` bytes from `address` on. Nothing is printed unless all of it is RAM.
pub fn read(
    image: &Image,
    address: u64,
    length: u64,
    raw: bool,
    output: &mut impl Write,
) -> Result<(), Failure> {
    let mut dump = HexDump { at: address, line: Vec::with_capacity(LINE) };
    let mut buffer = vec![0; CHUNK];
    for (segment, piece) in image.pieces(address, length)? {
        let mut done = 0;
        while done < piece.len {
            let bytes = &mut buffer[..(piece.len - done).min(CHUNK as u64) as usize];
            segment.read(piece.from + done, bytes)?;
            done += bytes.len() as u64;
            if raw { output.write_all(bytes)? } else { output.write_all(dump.add(bytes).as_bytes())? }
        }
    }
    output.write_all(dump.end().as_bytes())?;
    Ok(output.flush()?)
}

/// Lines of an address, 16 bytes in pairs, and what of them is printable.
struct HexDump {
    at: u64,
    line: Vec<u8>,
}

impl HexDump {
    /// Adds bytes; the lines that are full now.
    fn add(&mut self, bytes: &[u8]) -> String {
        let mut text = String::new();
        for byte in bytes {
            self.line.push(*byte);
            if self.line.len() == LINE {
                text += &self.end();
            }
        }
        text
    }

    /// The line that is not full, if there is one.
    fn end(&mut self) -> String {
        if self.line.is_empty() {
            return String::new();
        }
        let mut hex = String::new();
        for (number, byte) in self.line.iter().enumerate() {
            let gap = if number % 2 == 0 && number > 0 { " " } else { "" };
            write!(hex, "{gap}{byte:02x}").expect("a String takes all text");
        }
        let printable =
            |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' };
        let text: String = self.line.iter().map(printable).collect();
        let line = format!("{:08x}: {hex:<39}  {text}\n", self.at);
        self.at = self.at.saturating_add(self.line.len() as u64);
        self.line.clear();
        line
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::tests::image;
    use super::*;

    fn printed(address: u64, length: u64, raw: bool) -> Result<Vec<u8>, Failure> {
        let image = image();
        image.segments()[0].write(0x1ff0, b"the end of one  ");
        image.segments()[1].write(0, b"and\x00the next");
        let mut output = Vec::new();
        read(&image, address, length, raw, &mut output).map(|()| output)
    }

    #[test]
    fn bytes_are_shown_as_xxd_shows_them() {
        let text = String::from_utf8(printed(0x1ff4, 24, false).unwrap()).unwrap();
        let wanted = "\
00001ff4: 656e 6420 6f66 206f 6e65 2020 616e 6400  end of one  and.
00002004: 7468 6520 6e65 7874                      the next
";
        assert_eq!(text, wanted);
    }

    #[test]
    fn raw_bytes_are_just_those() {
        assert_eq!(printed(0x1ffc, 8, true).unwrap(), b"ne  and\0");
    }

    #[test]
    fn nothing_is_printed_of_a_range_that_is_not_all_ram() {
        let image = image();
        let mut output = Vec::new();
        assert!(read(&image, 0x3000, 0x2000, true, &mut output).is_err());
        assert!(output.is_empty());
    }
}
