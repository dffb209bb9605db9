//! Lines out of pieces.

use super::{Line, Stream};

/// Cuts a stream into lines, and keeps the whole.
pub struct Lines {
    stream: Stream,
    whole: Vec<u8>,
    line_start: usize,
}

impl Lines {
    pub fn new(stream: Stream) -> Self {
        Lines { stream, whole: Vec::new(), line_start: 0 }
    }

    pub fn take(&mut self, bytes: &[u8], on_line: &mut impl FnMut(&Line)) {
        self.whole.extend_from_slice(bytes);
        while let Some(length) = self.whole[self.line_start..].iter().position(|byte| *byte == b'\n') {
            self.give(length, on_line);
            self.line_start += length + 1;
        }
    }

    pub fn finish(mut self, on_line: &mut impl FnMut(&Line)) -> String {
        let rest = self.whole.len() - self.line_start;
        if rest > 0 {
            self.give(rest, on_line);
        }
        String::from_utf8_lossy(&std::mem::take(&mut self.whole)).into_owned()
    }

    fn give(&self, length: usize, on_line: &mut impl FnMut(&Line)) {
        let bytes = &self.whole[self.line_start..self.line_start + length];
        let text = String::from_utf8_lossy(bytes).trim_end_matches('\r').to_owned();
        on_line(&Line { stream: self.stream, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines() {
        let mut seen = Vec::new();
        let mut lines = Lines::new(Stream::Stdout);
        let mut on_line = |line: &Line| seen.push(line.text.clone());
        for piece in ["a\nb", "c", "\r\n\nd"] {
            lines.take(piece.as_bytes(), &mut on_line);
        }
        assert_eq!(lines.finish(&mut on_line), "a\nbc\r\n\nd");
        assert_eq!(seen, ["a", "bc", "", "d"]);
    }
}
