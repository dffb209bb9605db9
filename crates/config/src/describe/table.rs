//! The keys of a table, each looked at once.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::marker::PhantomData;

use super::read::Read;
use crate::finding::{Finding, Place, Problem, Syntax};
use crate::keys::{Keyed, Kind};
use crate::nearest::{nearest, of_others};
use crate::source::{Entry, Node, Table, Value};

/// What a description says for a key.
#[derive(Default)]
pub(super) enum Given<T> {
    #[default]
    No,
    /// It was given, and was wrong: there is a finding about it.
    Wrong,
    Yes(Place, T),
}

impl<T> Given<T> {
    /// Where the value is written, if it is there and right.
    pub(super) fn place(&self) -> Option<Place> {
        if let Given::Yes(place, _) = self { Some(place.clone()) } else { None }
    }

    /// Whether it was given, right or wrong.
    pub(super) fn is_given(&self) -> bool {
        !matches!(self, Given::No)
    }

    /// The value, or the default where none was given; `None` where one was, and is wrong.
    pub(super) fn or_default(self) -> Option<T>
    where
        T: Default,
    {
        match self {
            Given::No => Some(T::default()),
            Given::Wrong => None,
            Given::Yes(_, value) => Some(value),
        }
    }

    /// The value, if it is there and right.
    pub(super) fn value(self) -> Option<T> {
        if let Given::Yes(_, value) = self { Some(value) } else { None }
    }
}

/// A table with the keys `K`.
///
/// What a file says may be in it together with what flags say. Flags win, and what the file says is judged all the same.
pub(super) struct Keys<'a, K> {
    table: &'a Table,
    pub(super) findings: &'a mut Vec<Finding>,
    keys: PhantomData<K>,
}

impl<'a, K: Keyed> Keys<'a, K> {
    /// Reports the keys that do not exist and those that a source has twice.
    pub(super) fn of(table: &'a Table, findings: &'a mut Vec<Finding>) -> Keys<'a, K> {
        let mut first: HashMap<(&str, Syntax), &Place> = HashMap::new();
        for Entry { key, place, .. } in &table.entries {
            let problem = match K::named(key) {
                None => {
                    let names: Vec<&str> = K::ROWS.iter().map(|row| row.name).collect();
                    let nearest = of_others(key, &names).or_else(|| nearest(key, names.iter().copied()));
                    Problem::UnknownKey { key: key.clone(), nearest, valid: K::ROWS }
                }
                Some(known) if known.row().kind.is_several() => continue,
                Some(known) => match first.entry((known.name(), place.syntax())) {
                    Occupied(first) => {
                        Problem::Repeated { what: format!("`{key}`"), first: (*first.get()).clone() }
                    }
                    Vacant(entry) => {
                        entry.insert(place);
                        continue;
                    }
                },
            };
            findings.push(Finding { place: place.clone(), problem });
        }
        Keys { table, findings, keys: PhantomData }
    }

    pub(super) fn found(&mut self, place: &Place, problem: Problem) {
        self.findings.push(Finding { place: place.clone(), problem });
    }

    pub(super) fn get<T: Read>(&mut self, key: K) -> Given<T> {
        self.last(key, |node, findings| one(key.name(), node, findings))
    }

    /// What a flag says for a key, or else what the file says. Both are read.
    pub(super) fn last<T>(
        &mut self,
        key: K,
        read: impl Fn(&'a Node, &mut Vec<Finding>) -> Given<T>,
    ) -> Given<T> {
        let mut last = Given::No;
        for syntax in [Syntax::File, Syntax::Flag] {
            // A second one was reported.
            if let Some(node) = self.nodes(key).find(|node| node.place.syntax() == syntax) {
                last = read(node, self.findings);
            }
        }
        last
    }

    /// All values of a key that may have several: given several times, or as a list. `No` if there are none.
    pub(super) fn all<T: Read>(&mut self, key: K) -> Given<Vec<T>> {
        let (mut first, mut values, mut wrong) = (None, Vec::new(), false);
        for node in self.nodes(key) {
            let items = match &node.value {
                Value::List(items) => &items[..],
                _ => std::slice::from_ref(node),
            };
            for item in items {
                match one(key.name(), item, self.findings) {
                    Given::Yes(place, value) => {
                        first.get_or_insert(place);
                        values.push(value);
                    }
                    _ => wrong = true,
                }
            }
        }
        match first {
            _ if wrong => Given::Wrong,
            Some(place) => Given::Yes(place, values),
            None => Given::No,
        }
    }

    pub(super) fn required<T: Read>(
        &mut self,
        key: K,
        within: &'static str,
        hint: &'static str,
    ) -> Option<T> {
        let given = self.get(key);
        if let Given::No = given {
            self.found(&self.place(), Problem::Missing { within, key: key.name(), hint });
        }
        given.value()
    }

    /// The tables of a list. Lone text in it stands for a table with the first of their keys. Those of which something is
    /// wrong, though they could be read, are `doubtful`.
    pub(super) fn several<T>(
        &mut self,
        key: K,
        expected: &str,
        read: fn(&Table, &mut Vec<Finding>) -> Option<T>,
        doubtful: &mut Vec<Place>,
    ) -> Vec<(Place, T)> {
        let wrong = |node: &Node| {
            let (key, expected, found) = (key.name(), expected.to_owned(), node.value.in_words());
            Finding { place: node.place.clone(), problem: Problem::WrongType { key, expected, found } }
        };
        let mut found = Vec::new();
        for list in self.nodes(key) {
            let Value::List(items) = &list.value else {
                self.findings.push(wrong(list));
                continue;
            };
            for item in items {
                let one;
                let table = match (&item.value, key.row().kind) {
                    (Value::Table(table), _) => table,
                    (Value::Text(_) | Value::Word(_), Kind::Tables(_, [implied, ..])) => {
                        let (key, place) = (implied.name.into(), item.place.clone());
                        let entry = Entry { key, place: place.clone(), node: item.clone() };
                        one = Table { place, entries: vec![entry] };
                        &one
                    }
                    _ => {
                        self.findings.push(wrong(item));
                        continue;
                    }
                };
                let before = self.findings.len();
                found.extend(read(table, self.findings).map(|value| (item.place.clone(), value)));
                if self.findings.len() > before {
                    doubtful.push(item.place.clone());
                }
            }
        }
        found
    }

    /// This key, written here, means nothing beside another one.
    pub(super) fn not_with(&mut self, place: &Place, key: &str, with: &str) {
        let problem = Problem::NotWith { key: place.written(key), with: place.written(with) };
        self.found(place, problem);
    }

    /// The same for a key of this table, said with its value where that matters.
    pub(super) fn contradicts(&mut self, key: K, said: &str, with: &str) {
        self.not_with(&self.at(key), said, with);
    }

    /// Where a key's value is written, or the table, if it is not there.
    pub(super) fn at(&self, key: K) -> Place {
        self.place_of(key).unwrap_or_else(|| self.place())
    }

    /// Where a key's value is written.
    pub(super) fn place_of(&self, key: K) -> Option<Place> {
        self.nodes(key).next().map(|node| node.place.clone())
    }

    /// Where the table is written.
    pub(super) fn place(&self) -> Place {
        self.table.place.clone()
    }

    /// All that is said for a key.
    fn nodes(&self, key: K) -> impl Iterator<Item = &'a Node> + use<'a, K> {
        self.table.entries.iter().filter(move |entry| entry.key == key.name()).map(|entry| &entry.node)
    }
}

/// A single value.
fn one<T: Read>(key: &'static str, node: &Node, findings: &mut Vec<Finding>) -> Given<T> {
    let problem = match T::read(&node.value) {
        Some(Ok(value)) => return Given::Yes(node.place.clone(), value),
        Some(Err(invalid)) => invalid.into(),
        None => Problem::WrongType { key, expected: T::expected(), found: node.value.in_words() },
    };
    findings.push(Finding { place: node.place.clone(), problem });
    Given::Wrong
}
