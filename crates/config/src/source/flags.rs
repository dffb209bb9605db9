//! Flags, and the lists `key=value,key=value` in them.

use std::sync::Arc;

use super::{Entry, Node, Table, Value};
use crate::finding::{Finding, Place, Problem};

/// A flag's value as one word.
pub(crate) fn word(flag: &str, value: &str) -> Node {
    Node { place: place(flag, value), value: Value::Word(value.into()) }
}

/// A flag's value as a list of `key=value`. The first item may leave out its key, which is then `implied`.
pub(crate) fn list(
    flag: &str,
    value: &str,
    implied: &str,
    valid: &'static [&'static str],
    findings: &mut Vec<Finding>,
) -> Node {
    let table = table(flag, value, implied, valid, findings);
    Node { place: table.place.clone(), value: Value::Table(table) }
}

/// The same, as the table that it is.
pub(crate) fn table(
    flag: &str,
    value: &str,
    implied: &str,
    valid: &'static [&'static str],
    findings: &mut Vec<Finding>,
) -> Table {
    let place = place(flag, value);
    let mut entries = Vec::new();
    for (n, item) in items(value).into_iter().enumerate() {
        let (key, value) = match item.split_once('=') {
            Some((key, value)) => (key, value),
            // Nothing at all lacks what must be there, which is found later.
            None if value.is_empty() => continue,
            None if item.is_empty() => {
                findings.push(Finding { place: place.clone(), problem: Problem::EmptyItem });
                continue;
            }
            None if n == 0 && !valid.contains(&item.as_str()) => (implied, item.as_str()),
            None => {
                findings.push(Finding { place: place.clone(), problem: Problem::NoValue { item, valid } });
                continue;
            }
        };
        let node = Node { place: place.clone(), value: Value::Word(value.into()) };
        entries.push(Entry { key: key.into(), place: place.clone(), node });
    }
    Table { place, entries }
}

/// Characters of a flag's value that a message repeats at most.
const LONGEST_SHOWN: usize = 200;

fn place(flag: &str, value: &str) -> Place {
    // As a shell has it, so that nothing can be seen.
    let value = if value.is_empty() { "\"\"" } else { value };
    // Whoever wrote more than this needs its beginning to find it.
    let (shown, rest) = match value.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => (&value[..end], "…"),
        None => (value, ""),
    };
    Place::Flag(Arc::from(format!("{flag} {shown}{rest}")))
}

/// Splits at commas; two commas are one comma within an item, as with QEMU.
fn items(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match items.last_mut() {
            Some(item) if c != ',' || rest.next_if_eq(&',').is_some() => item.push(c),
            _ => items.push(String::new()),
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_end_at_a_comma_and_keep_a_doubled_one() {
        assert_eq!(items("a=b,c=d"), ["a=b", "c=d"]);
        assert_eq!(items("a=b,,c,d"), ["a=b,c", "d"]);
        assert_eq!(items("a,,,b"), ["a,", "b"]);
        assert_eq!(items("a,"), ["a", ""]);
        assert_eq!(items(""), [""]);
        assert_eq!(items(",,"), [","]);
    }
}
