//! What was written, before it means anything: the same tree from a file and from flags, and the place of each
//! part of it.

pub(crate) mod flags;
pub(crate) mod toml;

use crate::finding::Place;

/// A value as written.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What can be written.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// Text in a flag, where numbers and booleans are text too.
    Word(String),
    /// Text in a file.
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Node>),
    Table(Table),
    /// Something that no key has, in words.
    Other(&'static str),
}

impl Value {
    /// What it is, for a message.
    pub(crate) fn in_words(&self) -> String {
        match self {
            Value::Word(text) | Value::Text(text) => format!("the text {text:?}"),
            Value::Integer(number) => format!("the number {number}"),
            Value::Boolean(value) => value.to_string(),
            Value::List(_) => "a list".into(),
            Value::Table(_) => "a table".into(),
            Value::Other(words) => (*words).into(),
        }
    }
}

/// Keys with values, in the order of the source. The same key may be there several times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) place: Place,
    pub(crate) entries: Vec<Entry>,
}

/// One key with its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Where the key is written.
    pub(crate) place: Place,
    pub(crate) node: Node,
}
