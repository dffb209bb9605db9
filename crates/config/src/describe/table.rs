//! The keys of a table, each looked at once.

use std::collections::HashMap;

use super::key::SEVERAL;
use super::read::Read;
use super::tpm;
use crate::finding::{Finding, Place, Problem};
use crate::model::Tpm;
use crate::nearest::nearest;
use crate::source::{Entry, Node, Table, Value};

/// One value of a source.
#[derive(Default)]
pub(super) enum Given<T> {
    #[default]
    No,
    /// It was given, and was wrong: there is a finding about it.
    Wrong,
    Yes(Place, T),
}

impl<T> Given<T> {
    pub(super) fn or(self, other: Given<T>) -> Given<T> {
        if let Given::No = self { other } else { self }
    }

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

/// The known keys of a table.
pub(super) struct Keys<'a> {
    table: &'a Table,
    findings: &'a mut Vec<Finding>,
}

impl<'a> Keys<'a> {
    /// Reports the keys that do not exist and those that are there twice.
    pub(super) fn of(
        table: &'a Table,
        valid: &'static [&'static str],
        findings: &'a mut Vec<Finding>,
    ) -> Keys<'a> {
        let mut first: HashMap<&str, &Place> = HashMap::new();
        for Entry { key, place, .. } in &table.entries {
            let problem = if !valid.contains(&key.as_str()) {
                Problem::UnknownKey { key: key.clone(), nearest: nearest(key, valid), valid }
            } else if SEVERAL.contains(&key.as_str()) {
                continue;
            } else if let Some(first) = first.get(key.as_str()) {
                Problem::Repeated { what: format!("`{key}`"), first: (*first).clone() }
            } else {
                first.insert(key, place);
                continue;
            };
            findings.push(Finding { place: place.clone(), problem });
        }
        Keys { table, findings }
    }

    fn node(&self, key: &str) -> Option<&'a Node> {
        self.table.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    pub(super) fn found(&mut self, place: &Place, problem: Problem) {
        self.findings.push(Finding { place: place.clone(), problem });
    }

    pub(super) fn get<T: Read>(&mut self, key: &'static str) -> Given<T> {
        match self.node(key) {
            Some(node) => self.one(key, node),
            None => Given::No,
        }
    }

    /// The TPM.
    pub(super) fn tpm(&mut self) -> Given<Option<Tpm>> {
        tpm::tpm(self.node("tpm"), self.findings)
    }

    fn one<T: Read>(&mut self, key: &'static str, node: &Node) -> Given<T> {
        let problem = match T::read(&node.value) {
            Some(Ok(value)) => return Given::Yes(node.place.clone(), value),
            Some(Err(invalid)) => invalid.into(),
            None => Problem::WrongType { key, expected: T::EXPECTED, found: node.value.in_words() },
        };
        self.found(&node.place, problem);
        Given::Wrong
    }

    /// All values of a key that may have several: given several times, or as a list. `No` if there are none.
    pub(super) fn all<T: Read>(&mut self, key: &'static str) -> Given<Vec<T>> {
        let table = self.table;
        let given = table.entries.iter().filter(|entry| entry.key == key);
        let (mut first, mut values, mut wrong) = (None, Vec::new(), false);
        for entry in given {
            let items = match &entry.node.value {
                Value::List(items) => &items[..],
                _ => std::slice::from_ref(&entry.node),
            };
            for item in items {
                match self.one(key, item) {
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
        key: &'static str,
        within: &'static str,
        hint: &'static str,
    ) -> Option<T> {
        let given = self.get(key);
        if let Given::No = given {
            self.found(&self.table.place.clone(), Problem::Missing { within, key, hint });
        }
        given.value()
    }

    /// The tables of a list. Lone text in it stands for a table of one key, `implied`. Those of which something is
    /// wrong, though they could be read, are `doubtful`.
    pub(super) fn several<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        implied: &'static str,
        read: fn(&Table, &mut Vec<Finding>) -> Option<T>,
        doubtful: &mut Vec<Place>,
    ) -> Vec<(Place, T)> {
        let Some(list) = self.node(key) else { return Vec::new() };
        let wrong = |node: &Node| Problem::WrongType { key, expected, found: node.value.in_words() };
        let Value::List(items) = &list.value else {
            self.found(&list.place, wrong(list));
            return Vec::new();
        };
        let mut found = Vec::new();
        for item in items {
            let one;
            let table = match &item.value {
                Value::Table(table) => table,
                Value::Text(_) | Value::Word(_) => {
                    let entry = Entry { key: implied.into(), place: item.place.clone(), node: item.clone() };
                    one = Table { place: item.place.clone(), entries: vec![entry] };
                    &one
                }
                _ => {
                    self.found(&item.place, wrong(item));
                    continue;
                }
            };
            let before = self.findings.len();
            found.extend(read(table, self.findings).map(|value| (item.place.clone(), value)));
            if self.findings.len() > before {
                doubtful.push(item.place.clone());
            }
        }
        found
    }

    /// These keys, where they are given, mean something only with another one that is not.
    pub(super) fn only_with<const N: usize>(
        &mut self,
        with: &'static str,
        given: [(&'static str, Option<Place>); N],
    ) {
        for (key, place) in given {
            if let Some(place) = place {
                self.found(&place, Problem::OnlyWith { key, with });
            }
        }
    }

    /// This key, written here, means nothing beside another one.
    pub(super) fn not_with(&mut self, place: &Place, key: &str, with: &str) {
        let problem = Problem::NotWith { key: place.written(key), with: place.written(with) };
        self.found(place, problem);
    }

    /// The same for a key of this table, said with its value where that matters.
    pub(super) fn contradicts(&mut self, said: &str, with: &str) {
        let key = said.split('=').next().unwrap_or(said);
        self.not_with(&self.at(key), said, with);
    }

    /// Where a key's value is written, or the table, if it is not there.
    pub(super) fn at(&self, key: &str) -> Place {
        self.place_of(key).unwrap_or_else(|| self.place())
    }

    /// Where a key's value is written.
    pub(super) fn place_of(&self, key: &str) -> Option<Place> {
        self.node(key).map(|node| node.place.clone())
    }

    /// Where the table is written.
    pub(super) fn place(&self) -> Place {
        self.table.place.clone()
    }
}
