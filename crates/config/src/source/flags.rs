//! Flags, and the lists `key=value,key=value` in them.

use std::fmt::Display;
use std::sync::Arc;

use super::{Entry, Node, Table, Value};
use crate::finding::{Finding, Place, Problem};
use crate::keys::Row;

/// A flag's value as one word.
pub(crate) fn word(flag: impl Display, value: &str) -> Node {
    Node { place: place(flag, value), value: Value::Word(value.into()) }
}

/// A flag's value as a list of `key=value`. The first item may leave out its key, which is then the first of the valid ones.
pub(crate) fn table(
    flag: impl Display,
    value: &str,
    valid: &'static [Row],
    findings: &mut Vec<Finding>,
) -> Table {
    // Nothing at all lacks what must be there, which is found later.
    let items = if value.is_empty() { Vec::new() } else { items(value) };
    entries(place(flag, value), items, valid.first(), valid, findings)
}

/// A flag's value as such a list, which may have `on` in the place of its first item, or as a word.
pub(crate) fn switch_or_table(
    flag: impl Display,
    value: &str,
    valid: &'static [Row],
    findings: &mut Vec<Finding>,
) -> Node {
    let place = place(flag, value);
    let mut items = items(value);
    let first = items.remove(0);
    let value = match (first.as_str(), items.first()) {
        ("on" | "true", Some(_)) => Value::Table(entries(place.clone(), items, None, valid, findings)),
        (word, more) if !word.contains(['=', '/']) && !valid.iter().any(|row| row.name == word) => {
            if let ("off" | "false", Some(more)) = (word, more) {
                let problem = Problem::NotWith { key: first.clone(), with: more.clone() };
                findings.push(Finding { place: place.clone(), problem });
            }
            Value::Word(first)
        }
        _ => {
            items.insert(0, first);
            Value::Table(entries(place.clone(), items, valid.first(), valid, findings))
        }
    };
    Node { place, value }
}

/// A table of these items, the first of which may leave out the `implied` key.
fn entries(
    place: Place,
    items: Vec<String>,
    mut implied: Option<&'static Row>,
    valid: &'static [Row],
    findings: &mut Vec<Finding>,
) -> Table {
    let mut entries = Vec::new();
    for item in items {
        let of_first = implied.take().filter(|_| !valid.iter().any(|row| row.name == item));
        let (key, value) = match (item.split_once('='), of_first) {
            (Some(both), _) => both,
            (None, _) if item.is_empty() => {
                findings.push(Finding { place: place.clone(), problem: Problem::EmptyItem });
                continue;
            }
            (None, Some(implied)) => (implied.name, item.as_str()),
            (None, None) => {
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

fn place(flag: impl Display, value: &str) -> Place {
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
