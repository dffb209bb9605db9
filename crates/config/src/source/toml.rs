//! A file in TOML.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::{Entry, Node, Table, Value};
use crate::finding::{Finding, Place, Problem};

/// What a file says. Where it is not TOML it is read as far as it can be. Without a file, it is nothing.
#[derive(Default)]
pub(crate) struct Parsed {
    pub(crate) table: Table,
    pub(crate) errors: Vec<Finding>,
    /// The lines that are not TOML: what else seems wrong there is most likely a consequence.
    pub(crate) broken_lines: HashSet<usize>,
}

/// Lines that are not TOML, of which each is told. Of a file that is something else all are.
const TOLD: usize = 10;

/// Reads a file's bytes.
pub(crate) fn parse(name: &str, bytes: &[u8]) -> Parsed {
    let mut errors = Vec::new();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let (good, _) = bytes.split_at(error.valid_up_to());
            let text = std::str::from_utf8(good).unwrap_or_default();
            let place = Lines::new(name, text).place(text.len());
            errors.push(Finding { place, problem: Problem::NotUtf8 });
            // What is before is not read: it ends anywhere, and its end would be reported as an error.
            ""
        }
    };
    let lines = Lines::new(name, text);
    let (table, syntax) = DeTable::parse_recoverable(text);
    errors.extend(syntax.iter().map(|error| {
        let place = lines.place(error.span().map_or(text.len(), |span| span.start));
        let message = format!("this is not TOML: {}.", error.message());
        Finding { place, problem: Problem::Syntax { message } }
    }));
    errors.sort_by_key(|error| error.place.in_order());
    let mut broken_lines = HashSet::new();
    // What else is wrong in a line mostly follows from the first.
    errors.retain(|error| broken_lines.insert(error.place.in_order().0));
    if errors.len() > TOLD + 2 {
        let untold = errors.split_off(TOLD);
        let message =
            format!("this line and {} more below are not TOML. Is it the right file?", untold.len() - 1);
        errors.push(Finding { place: untold[0].place.clone(), problem: Problem::Syntax { message } });
    }
    Parsed { table: lines.table(lines.place(0), table.get_ref()), errors, broken_lines }
}

/// Finds the line of an offset.
struct Lines<'a> {
    name: Arc<str>,
    text: &'a str,
    /// Where each line begins.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(name: &str, text: &'a str) -> Lines<'a> {
        let behind = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Lines { name: name.into(), text, starts: std::iter::once(0).chain(behind).collect() }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Place::File { name: Arc::clone(&self.name), line, column }
    }

    fn table(&self, place: Place, table: &DeTable<'_>) -> Table {
        let mut entries: Vec<(Range<usize>, Entry)> = table
            .iter()
            .map(|(key, value)| {
                let place = self.place(key.span().start);
                let node = self.node(value.span(), value.get_ref());
                (key.span(), Entry { key: key.get_ref().to_string(), place, node })
            })
            .collect();
        // The map is ordered by key.
        entries.sort_by_key(|(span, _)| span.start);
        Table { place, entries: entries.into_iter().map(|(_, entry)| entry).collect() }
    }

    /// Its depth is bounded: the parser refuses what is nested more than 80 deep.
    fn node(&self, span: Range<usize>, value: &DeValue<'_>) -> Node {
        let place = self.place(span.start);
        let value = match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::Other("a number beyond 64 bits"),
            },
            DeValue::Float(_) => Value::Other("a number with a fraction"),
            DeValue::Boolean(value) => Value::Boolean(*value),
            DeValue::Datetime(_) => Value::Other("a date or time"),
            DeValue::Array(items) => {
                Value::List(items.iter().map(|item| self.node(item.span(), item.get_ref())).collect())
            }
            DeValue::Table(table) => Value::Table(self.table(place.clone(), table)),
        };
        Node { place, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_line_and_a_column_in_characters() {
        let lines = Lines::new("f", "ä = 1\nbé = 2\n");
        let at = |line, column| Place::File { name: "f".into(), line, column };
        assert_eq!(lines.place(0), at(1, 1));
        assert_eq!(lines.place(3), at(1, 3));
        assert_eq!(lines.place(7), at(2, 1));
        assert_eq!(lines.place(11), at(2, 4));
        assert_eq!(lines.place(15), at(3, 1));
        assert_eq!(lines.place(10_000), at(3, 1));
    }

    #[test]
    fn a_file_that_is_no_toml_at_all_is_told_in_few_lines_and_all_its_lines_are_known() {
        let text = "root:x:0:0:root:/root:/bin/bash\n".repeat(50);
        let parsed = parse("f", text.as_bytes());
        assert_eq!((parsed.errors.len(), parsed.broken_lines.len()), (TOLD + 1, 50));
        let last = parsed.errors[TOLD].to_string();
        assert!(last.starts_with("f:11:") && last.contains("this line and 39 more below"), "{last}");
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_stack_overflow() {
        let text = "a = ".to_string() + &"[".repeat(100_000);
        assert!(!parse("f", text.as_bytes()).errors.is_empty());
    }
}
