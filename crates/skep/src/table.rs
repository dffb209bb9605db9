//! Tables in plain text.

use std::fmt;

/// Which side of its column a cell keeps to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a head, each column as wide as its widest cell.
pub struct Table<const N: usize> {
    sides: [Side; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with this head.
    pub fn new(head: [(&str, Side); N]) -> Table<N> {
        Table { sides: head.map(|(_, side)| side), rows: vec![head.map(|(title, _)| title.to_owned())] }
    }

    /// Adds a row. What does not belong on a terminal (line feeds, escapes) is shown as a question mark.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| plain(&cell)));
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), side) in row.iter().zip(widths).zip(self.sides) {
                let gap = if line.is_empty() { "" } else { "  " };
                line += gap;
                line += &match side {
                    Side::Left => format!("{cell:<width$}"),
                    Side::Right => format!("{cell:>width$}"),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The text without characters that do something to a terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '?' } else { char }).collect()
}

/// A number of bytes for people: `1.5 GiB`, `512 KiB`, `100 B`; exact when it has no point.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = bytes.ilog2() / 10;
    let (unit, size) = (UNITS[power as usize - 1], 1u64 << (power * 10));
    match (bytes / size, bytes % size) {
        (whole, 0) => format!("{whole} {unit}"),
        // One digit behind the point, cut off rather than rounded up to the next unit.
        (whole, rest) => format!("{whole}.{} {unit}", rest / (size / 1024) * 10 / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_nothing_trails() {
        let mut table = Table::new([("NAME", Side::Left), ("N", Side::Right), ("X", Side::Left)]);
        table.row(["a".into(), "100".into(), String::new()]);
        table.row(["longer".into(), "7".into(), "b\x1b[31m\n".into()]);
        assert_eq!(table.to_string(), "NAME      N  X\na       100\nlonger    7  b?[31m?\n");
    }

    #[test]
    fn bytes_have_a_unit_and_at_most_one_digit_behind_the_point() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (3 << 29, "1.5 GiB")];
        let more = [((1 << 20) - 1, "1023.9 KiB"), (u64::MAX, "15.9 EiB"), (1 << 60, "1 EiB")];
        for (number, text) in cases.into_iter().chain(more) {
            assert_eq!(bytes(number), text);
        }
    }
}
