//! The keys of a description. Each is one row of a table: its name, what its value is, and what people read about it.
//!
//! From these tables come the flags of `skep run` with their help, what a file may hold, what `--check-config` prints,
//! `docs/vm.toml` (by a test, `tests/documented`) and what shells complete. A new key is one row, and its use: a field of the model,
//! which `describe` reads and `print` prints.
//!
//! The tables are static data. Text is put together only for those who ask for help.

mod disk;
mod help;
mod parts;
mod vm;

use crate::model::ModelName;

pub(crate) use disk::DiskKey;
pub(crate) use parts::{AssignKey, FwCfgKey, TpmKey};
pub use vm::Key;

/// All about a key.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name in a file, and behind two dashes its flag.
    pub name: &'static str,
    /// The version of skep that has it first.
    pub since: &'static str,
    /// What it means: the beginning of what people read about it, everywhere.
    pub help: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What holds without it, for people; empty where the text says it.
    pub default: &'static str,
    /// What the help of the flag says besides.
    pub in_flag: &'static str,
    /// What `docs/vm.toml` says besides.
    pub more: &'static str,
    /// How `docs/vm.toml` shows it.
    pub example: Example,
    /// What it goes with.
    pub of: Of,
}

impl Row {
    /// What most keys have: nothing besides.
    const PLAIN: Row = Row {
        name: "",
        since: "",
        help: "",
        kind: Kind::Switch,
        default: "",
        in_flag: "",
        more: "",
        example: Example::None,
        of: Of::All,
    };
}

/// What a key's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// On or off; in a file true or false. A flag without a value is on.
    Switch,
    /// A whole number. In the help this stands for it.
    Number(&'static str),
    /// A size in bytes.
    Size,
    /// Text. In the help this stands for it: `PATH`, or the words that it can be, `auto|on|off`.
    Text(&'static str),
    /// Text of which there may be several: as a list in a file, and one by one in a flag.
    Texts(&'static str),
    /// Text that may begin with a dash.
    Line(&'static str),
    /// Any number of tables of these keys; in the help this stands for one in a flag. Lone text is the first key's value.
    Tables(&'static str, &'static [Row]),
    /// On, off, or a table of these keys. A flag without a value is on.
    SwitchOrTable(&'static [Row]),
}

impl Kind {
    /// What stands for the value in the help.
    pub fn takes(self) -> &'static str {
        match self {
            Kind::Switch => "on|off",
            Kind::Size => "SIZE",
            Kind::Number(takes)
            | Kind::Text(takes)
            | Kind::Texts(takes)
            | Kind::Line(takes)
            | Kind::Tables(takes, _) => takes,
            Kind::SwitchOrTable(_) => "on|off|SPEC",
        }
    }

    /// The words that the value can be, besides what is in capitals and stands for something else.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        let stands_for =
            |part: &str| part.ends_with(char::is_uppercase) && !part.starts_with(char::is_numeric);
        self.takes().split('|').filter(move |part| !stands_for(part))
    }

    /// Whether the value can be a path.
    pub fn is_path(self) -> bool {
        match self {
            Kind::Tables(_, rows) => rows.first().is_some_and(|row| row.kind.is_path()),
            _ => self.takes().split('|').any(|part| part == "PATH"),
        }
    }

    /// Whether a source may give it several times.
    pub(crate) fn is_several(self) -> bool {
        matches!(self, Kind::Texts(_) | Kind::Tables(..))
    }
}

/// How `docs/vm.toml` shows a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Example {
    /// Within the text about the key that it belongs to.
    None,
    /// As these lines.
    Lines(&'static str),
    /// In these of its disks, each time as this line.
    Disks(&'static [(usize, &'static str)]),
}

/// What a key goes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// All there is.
    All,
    /// None of the others of this kind: a table has one of them.
    Either,
    /// Disks whose data one of these keys says where it is.
    Source(&'static [DiskKey]),
    /// Disks of these models.
    Model(&'static [ModelName]),
}

/// The keys of a table.
pub(crate) trait Keyed: Copy + PartialEq + 'static {
    /// All keys.
    const ALL: &'static [Self];
    /// All there is to know about them, in the same order.
    const ROWS: &'static [Row];

    /// All about this one.
    fn row(self) -> &'static Row;

    /// What it is called.
    fn name(self) -> &'static str {
        self.row().name
    }

    /// The key of this name.
    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|key| key.name() == name)
    }
}

/// A table of keys: an enum whose values are the keys, and their rows.
macro_rules! keys {
    (
        $(#[$doc:meta])*
        $vis:vis enum $keys:ident {
            $($key:ident {
                name: $name:literal, since: $since:literal, help: $help:literal,
                $($field:ident: $value:expr),* $(,)?
            })+
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $keys {
            $(#[doc = concat!("`", $name, "`: ", $help, ".")] $key,)+
        }

        impl crate::keys::Keyed for $keys {
            const ALL: &'static [$keys] = &[$($keys::$key),+];
            const ROWS: &'static [Row] = &[$(Row {
                name: $name, since: $since, help: $help, $($field: $value,)* ..Row::PLAIN
            }),+];

            fn row(self) -> &'static Row {
                static ROWS: &[Row] = <$keys as crate::keys::Keyed>::ROWS;
                &ROWS[self as usize]
            }
        }
    };
}

use keys;
