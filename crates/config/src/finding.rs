//! What is wrong with a description, and where.

use std::fmt;
use std::sync::Arc;

use crate::keys::{Kind, Row};
use crate::model::ModelName;
use crate::nearest::nearest;
use crate::values::Invalid;
use crate::values::address::PciAddress;
use crate::values::name::ControllerName;

/// Everything that is wrong with a description, in the order of its sources. Never empty.
///
/// It prints as one line per finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// These findings, or `value` if there are none.
    pub(crate) fn none_or<T>(findings: Vec<Finding>, value: Option<T>) -> Result<T, Findings> {
        match value {
            Some(value) if findings.is_empty() => Ok(value),
            _ => Err(Findings(findings)),
        }
    }

    /// The findings, one after another.
    pub fn iter(&self) -> std::slice::Iter<'_, Finding> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Findings {
    type Item = &'a Finding;
    type IntoIter = std::slice::Iter<'a, Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, finding) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Findings {}

/// One thing that is wrong: `vm.toml:3:1: …` or `--memory 17M: …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}{problem}")]
pub struct Finding {
    /// Where it is written.
    pub place: Place,
    /// What is wrong there.
    pub problem: Problem,
}

/// Where a part of a description is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Place {
    /// In the file.
    File {
        /// The file's name as given.
        name: Arc<str>,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
    },
    /// In a flag; this is the flag with its value.
    Flag(Arc<str>),
    /// Nowhere: it is missing.
    #[default]
    Nowhere,
}

/// How a description is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Syntax {
    /// In flags: `--disk path=/dev/sda,readonly=on`.
    #[default]
    Flag,
    /// In a file: `readonly = true`.
    File,
}

impl Syntax {
    /// A key with its value, as in a flag, as it is written here: `format=raw` in a flag, `format = "raw"` in a file. A key
    /// alone is the same in both.
    pub fn written(self, setting: &str) -> String {
        match (self, setting.split_once('=')) {
            (Syntax::File, Some((key, "on"))) => format!("{key} = true"),
            (Syntax::File, Some((key, "off"))) => format!("{key} = false"),
            (Syntax::File, Some((key, value))) => format!("{key} = {value:?}"),
            // Within a flag's list, a comma is written twice.
            (Syntax::Flag, _) => setting.replace(',', ",,"),
            (Syntax::File, None) => setting.to_owned(),
        }
    }
}

/// As it stands before a message: `vm.toml:3:1: `.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { name, line, column } => write!(f, "{name}:{line}:{column}: "),
            Place::Flag(text) => write!(f, "{text}: "),
            Place::Nowhere => Ok(()),
        }
    }
}

/// As it stands within a message: `line 3 of vm.toml`.
impl Place {
    /// A key with its value as it is written here: `format=raw` in a flag, `format = "raw"` in a file. A key alone is
    /// the same in both.
    pub(crate) fn written(&self, setting: &str) -> String {
        self.syntax().written(setting)
    }

    /// How things are written here.
    pub(crate) fn syntax(&self) -> Syntax {
        match self {
            Place::File { .. } => Syntax::File,
            Place::Flag(_) | Place::Nowhere => Syntax::Flag,
        }
    }

    /// The one or the other: what is written in a flag, or in a file.
    pub(crate) fn choose<'a>(&self, flag: &'a str, file: &'a str) -> &'a str {
        match self.syntax() {
            Syntax::File => file,
            Syntax::Flag => flag,
        }
    }

    /// Line and column, by which messages are sorted: what is in no file is behind it.
    pub(crate) fn in_order(&self) -> (usize, usize) {
        match self {
            Place::File { line, column, .. } => (*line, *column),
            Place::Flag(_) | Place::Nowhere => (usize::MAX, 0),
        }
    }

    fn in_words(&self) -> String {
        match self {
            Place::File { name, line, .. } => format!("in line {line} of {name}"),
            Place::Flag(text) => format!("by {text}"),
            Place::Nowhere => "nowhere".into(),
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file is not UTF-8.
    #[error("the file is not UTF-8 text from here on. Save it as UTF-8.")]
    NotUtf8,
    /// The file is not TOML.
    #[error("{message}")]
    Syntax {
        /// What the TOML parser says.
        message: String,
    },
    /// A list of a flag has an item that is nothing.
    #[error("there is an empty item between two commas. Remove a comma; within a value write it twice (,,).")]
    EmptyItem,
    /// An item of a flag's list has no `=`.
    #[error("`{item}` has no value. {}", without_value(item, valid))]
    NoValue {
        /// The item.
        item: String,
        /// The keys that exist here.
        valid: &'static [Row],
    },
    /// There is no such key.
    #[error("unknown key `{key}`. {}", match nearest {
        Some(nearest) => format!("Did you mean `{nearest}`?"),
        None => format!("The keys here are: {}.", keys(valid)),
    })]
    UnknownKey {
        /// The key.
        key: String,
        /// The valid key that looks most like it, if one does.
        nearest: Option<&'static str>,
        /// The keys that exist here.
        valid: &'static [Row],
    },
    /// A value of another type than its key has.
    #[error("`{key}` is {found}; it must be {expected}.")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What its value must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A value of the right type that cannot be.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A key that must be there is not.
    #[error("{within} has no `{key}`. {hint}")]
    Missing {
        /// What lacks it: "the VM", "this disk".
        within: &'static str,
        /// The key.
        key: &'static str,
        /// How to write it.
        hint: &'static str,
    },
    /// A key that is for nothing without another one.
    #[error("`{key}` is for nothing without `{other}`. Give that as well, or remove this.")]
    Without {
        /// The key.
        key: &'static str,
        /// The one that is missing.
        other: &'static str,
    },
    /// Two keys that exclude each other.
    #[error("`{one}` and `{other}` exclude each other. Remove one of them.")]
    NotTogether {
        /// The one.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A key that means nothing without another one.
    #[error("`{key}` means something only with `{with}`. Remove it, or give `{with}` too.")]
    OnlyWith {
        /// The key.
        key: &'static str,
        /// The one that is not there.
        with: &'static str,
    },
    /// A key that means nothing beside another one.
    #[error("`{key}` means nothing with `{with}`. Remove one of them.")]
    NotWith {
        /// The key, with its value where that matters, as it is written there.
        key: String,
        /// What it does not go with, as it is written there.
        with: String,
    },
    /// A disk that the guest could not write to, and nobody said so.
    #[error(
        "vmdk images can only be read. Say {readonly}, or {snapshot} to throw the guest's changes away, or convert the \
         image to qcow2."
    )]
    VmdkIsOnlyRead {
        /// How it is written there that the guest only reads.
        readonly: String,
        /// How it is written there that changes are thrown away.
        snapshot: String,
    },
    /// A controller that the guest and skep would both drive.
    #[error(
        "NVMe controller {address} cannot hold a disk and be assigned to the guest, as it is {}. Give the guest \
         either the controller (assign) or the disk (nvme).",
        assigned.in_words()
    )]
    AssignedAndDisk {
        /// The controller.
        address: PciAddress,
        /// Where it is assigned.
        assigned: Place,
    },
    /// Disks of different models that are to share a controller.
    #[error(
        "controller {controller} is of model {other}, as the first of its disks says, given {}; this disk is of \
         model {model}. Give them the same model, or this one another controller.",
        first.in_words()
    )]
    OtherModel {
        /// The controller.
        controller: ControllerName,
        /// The model of this disk.
        model: ModelName,
        /// The model of the controller's first disk.
        other: ModelName,
        /// Where that one is given.
        first: Place,
    },
    /// More disks than a controller has room for.
    #[error(
        "controller {controller} has {most} disks already, and no room for more. Give this one another controller."
    )]
    ControllerFull {
        /// The controller.
        controller: ControllerName,
        /// So many disks it may have.
        most: usize,
    },
    /// Something that an NVMe controller has once, and of which its disks say different things.
    #[error(
        "NVMe controller {controller} has one `{key}` for all its disks: this one says {value:?}, and the disk given {} \
         says {other:?}. Say it for one of them, or the same for all.",
        first.in_words()
    )]
    OneForAll {
        /// The controller.
        controller: ControllerName,
        /// What it is.
        key: &'static str,
        /// What this disk says.
        value: String,
        /// What another one says.
        other: String,
        /// Where that one is given.
        first: Place,
    },
    /// The host domain that loses the guest's RAM, without a word that this is meant.
    #[error(
        "an exclusive host domain is for study: when a device is assigned, the guest's RAM leaves the host domain, \
         as it did in bhyve until 2022, and what skep's own drivers then read or write for the guest fails with I/O \
         errors. Use shared, or say that you want this: {word}."
    )]
    Exclusive {
        /// How that is written there.
        word: &'static str,
    },
    /// A disc is to be booted, and no drive is there.
    #[error("there is no CD drive to boot from. Give the VM a disk with {drive}.")]
    NoDrive {
        /// How a drive is written there.
        drive: String,
    },
    /// The same key or the same thing, a second time.
    #[error("{what} was given before, {}. Remove one of them.", first.in_words())]
    Repeated {
        /// The key or thing.
        what: String,
        /// Where it was given first.
        first: Place,
    },
}

/// What to write in the place of an item without a value: the key that it is, or looks like, with one.
fn without_value(item: &str, valid: &'static [Row]) -> String {
    let key = names(valid).find(|name| *name == item).or_else(|| nearest(item, names(valid)));
    match valid.iter().find(|row| Some(row.name) == key) {
        Some(Row { name, kind: Kind::Switch, .. }) => format!("Write {name}=on or {name}=off."),
        Some(Row { name, .. }) => format!("Write {name}=VALUE."),
        None => format!(
            "Write KEY=VALUE, and a comma within a value twice (,,); the keys here are: {}.",
            keys(valid)
        ),
    }
}

fn keys(valid: &'static [Row]) -> String {
    names(valid).collect::<Vec<&str>>().join(", ")
}

fn names(valid: &'static [Row]) -> impl Iterator<Item = &'static str> {
    valid.iter().map(|row| row.name)
}
