//! From what was written to a VM: which keys there are, what their values mean, and how a file and flags are
//! put together.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use crate::finding::{Finding, Findings, Place, Problem};
use crate::nearest::nearest;
use crate::source::{self, Entry, Node, Table, Value};
use crate::values::Invalid;
use crate::values::address::PciAddress;
use crate::values::count::{Cpus, Queues};
use crate::values::name::VmName;
use crate::values::path::HostPath;
use crate::values::size::{ByteSize, MemorySize};
use crate::values::text::{Cmdline, Serial};
use crate::vm::{Assign, Boot, Console, Disk, DiskModel, Distinct, Identified, Vm};

/// A file that describes a VM.
#[derive(Debug, Clone, Copy)]
pub struct File<'a> {
    /// Its name, as messages shall say it.
    pub name: &'a str,
    /// What is in it.
    pub bytes: &'a [u8],
}

/// What can be said about a VM: a key of the file, and a flag of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// `name`, `--name`: see [`VmName`].
    Name,
    /// `cpus`, `--cpus`: see [`Cpus`].
    Cpus,
    /// `memory`, `--memory`: see [`MemorySize`].
    Memory,
    /// `kernel`, `--kernel`: see [`Boot`].
    Kernel,
    /// `initrd`, `--initrd`: see [`Boot`].
    Initrd,
    /// `cmdline`, `--cmdline`: see [`Cmdline`].
    Cmdline,
    /// `console`, `--console`: see [`Console`].
    Console,
    /// `assign`, `--assign`: see [`Assign`]. There may be several.
    Assign,
    /// `disk`, `--disk`: see [`Disk`]. There may be several.
    Disk,
}

impl Key {
    /// All keys.
    pub const ALL: [Key; 9] = [
        Key::Name,
        Key::Cpus,
        Key::Memory,
        Key::Kernel,
        Key::Initrd,
        Key::Cmdline,
        Key::Console,
        Key::Assign,
        Key::Disk,
    ];

    /// The flag, with its dashes.
    pub fn flag(self) -> &'static str {
        match self {
            Key::Name => "--name",
            Key::Cpus => "--cpus",
            Key::Memory => "--memory",
            Key::Kernel => "--kernel",
            Key::Initrd => "--initrd",
            Key::Cmdline => "--cmdline",
            Key::Console => "--console",
            Key::Assign => "--assign",
            Key::Disk => "--disk",
        }
    }

    /// The key in a file.
    pub fn name(self) -> &'static str {
        self.flag().trim_start_matches('-')
    }
}

const VM: &[&str] = &["name", "cpus", "memory", "kernel", "initrd", "cmdline", "console", "assign", "disk"];
const DISK: &[&str] = &["path", "model", "readonly", "queues", "serial"];
const ASSIGN: &[&str] = &["address"];

/// Puts a VM together from a file and from flags with their values, or says everything that is wrong with them.
///
/// Flags win over the file for what a VM has once, and add to the file for disks and assigned devices.
pub fn describe(file: Option<File<'_>>, flags: &[(Key, String)]) -> Result<Vm, Findings> {
    let mut findings = Vec::new();
    let mut parts = Parts::default();
    let mut whole = true;
    if let Some(file) = file {
        let parsed = source::toml::parse(file.name, file.bytes);
        let mut meant = Vec::new();
        parts = Parts::read(&parsed.table, &mut meant);
        let broken = parsed.broken_lines();
        whole = broken.is_empty();
        meant.retain(|finding| whole || !may_follow_from(finding, &broken));
        findings = parsed.errors;
        findings.append(&mut meant);
    }
    let flags = as_table(flags, &mut findings);
    parts = parts.overlaid(Parts::read(&flags, &mut findings));
    let vm = parts.assemble(whole, &mut findings);
    findings.sort_by_key(|finding| match finding.place {
        Place::File { line, column, .. } => (line, column),
        Place::Flag(_) | Place::Nowhere => (usize::MAX, 0),
    });
    Findings::none_or(findings, vm)
}

/// Whether a finding may be there only because some lines are not TOML.
fn may_follow_from(finding: &Finding, broken: &HashSet<usize>) -> bool {
    let there = matches!(finding.place, Place::File { line, .. } if broken.contains(&line));
    there || matches!(finding.problem, Problem::Missing { .. })
}

/// Flags as the table that a file would give.
fn as_table(flags: &[(Key, String)], findings: &mut Vec<Finding>) -> Table {
    let mut table = Table { place: Place::Nowhere, entries: Vec::new() };
    for key in Key::ALL {
        let given = flags.iter().filter(|(given, _)| *given == key).map(|(_, value)| value.as_str());
        let mut add = |node: Node| {
            table.entries.push(Entry { key: key.name().into(), place: node.place.clone(), node });
        };
        match key {
            Key::Assign | Key::Disk => {
                let (implied, valid) = if key == Key::Disk { ("path", DISK) } else { ("address", ASSIGN) };
                let items = given.map(|text| source::flags::list(key.flag(), text, implied, valid, findings));
                add(Node { place: Place::Nowhere, value: Value::List(items.collect()) });
            }
            _ => given.for_each(|text| add(source::flags::word(key.flag(), text))),
        }
    }
    table
}

/// What one source says about a VM.
#[derive(Default)]
struct Parts {
    name: Given<VmName>,
    cpus: Given<Cpus>,
    memory: Given<MemorySize>,
    kernel: Given<HostPath>,
    initrd: Given<HostPath>,
    cmdline: Given<Cmdline>,
    console: Given<Console>,
    assigned: Vec<(Place, Assign)>,
    disks: Vec<(Place, Disk)>,
}

/// One value of a source.
#[derive(Default)]
enum Given<T> {
    #[default]
    No,
    /// It was given, and was wrong: there is a finding about it.
    Wrong,
    Yes(T),
}

impl<T> Given<T> {
    fn or(self, other: Given<T>) -> Given<T> {
        if let Given::No = self { other } else { self }
    }

    /// The value, if it is there and right.
    fn value(self) -> Option<T> {
        if let Given::Yes(value) = self { Some(value) } else { None }
    }
}

impl Parts {
    fn read(table: &Table, findings: &mut Vec<Finding>) -> Parts {
        let mut keys = Keys::of(table, VM, findings);
        Parts {
            name: keys.get("name"),
            cpus: keys.get("cpus"),
            memory: keys.get("memory"),
            kernel: keys.get("kernel"),
            initrd: keys.get("initrd"),
            cmdline: keys.get("cmdline"),
            console: keys.get("console"),
            assigned: keys.several(
                "assign",
                "a list of PCI addresses, [\"0000:01:00.0\"]",
                "address",
                assign,
            ),
            disks: keys.several("disk", "tables that begin with [[disk]]", "path", disk),
        }
    }

    fn overlaid(mut self, over: Parts) -> Parts {
        self.assigned.extend(over.assigned);
        self.disks.extend(over.disks);
        Parts {
            name: over.name.or(self.name),
            cpus: over.cpus.or(self.cpus),
            memory: over.memory.or(self.memory),
            kernel: over.kernel.or(self.kernel),
            initrd: over.initrd.or(self.initrd),
            cmdline: over.cmdline.or(self.cmdline),
            console: over.console.or(self.console),
            ..self
        }
    }

    /// The VM, if nothing is missing. `whole` says whether all of the file could be read.
    fn assemble(self, whole: bool, findings: &mut Vec<Finding>) -> Option<Vm> {
        if let Given::No = self.kernel
            && whole
        {
            let hint = "Say what it boots: --kernel PATH, or kernel = \"PATH\" in the file.";
            let problem = Problem::Missing { within: "the VM", key: "kernel", hint };
            findings.push(Finding { place: Place::Nowhere, problem });
        }
        let assigned = distinct(self.assigned, findings);
        let disks = distinct(self.disks, findings);
        let boot = Boot {
            kernel: self.kernel.value()?,
            initrd: self.initrd.value(),
            cmdline: self.cmdline.value().unwrap_or_default(),
        };
        Some(Vm {
            name: self.name.value().unwrap_or_default(),
            cpus: self.cpus.value().unwrap_or_default(),
            memory: self.memory.value().unwrap_or_default(),
            boot,
            disks: disks?,
            assigned: assigned?,
            console: self.console.value().unwrap_or_default(),
        })
    }
}

fn assign(table: &Table, findings: &mut Vec<Finding>) -> Option<Assign> {
    let mut keys = Keys::of(table, ASSIGN, findings);
    Some(Assign {
        address: keys.required("address", "this assigned device", "Write --assign 0000:01:00.0.")?,
    })
}

fn disk(table: &Table, findings: &mut Vec<Finding>) -> Option<Disk> {
    let mut keys = Keys::of(table, DISK, findings);
    let path = keys.required("path", "this disk", "Say what holds its data, as in path=/dev/sda.");
    let model = keys.get("model").value();
    let readonly = keys.get("readonly").value();
    let queues = keys.get("queues").value();
    let serial = keys.get("serial").value();
    Some(Disk {
        path: path?,
        model: model.unwrap_or_default(),
        readonly: readonly.unwrap_or_default(),
        queues,
        serial,
    })
}

/// The items as a list without repetition; each repeated one is a finding.
fn distinct<T: Identified>(items: Vec<(Place, T)>, findings: &mut Vec<Finding>) -> Option<Distinct<T>> {
    let mut first: HashMap<String, Place> = HashMap::new();
    for (place, item) in &items {
        let what = item.identity();
        match first.get(&what).cloned() {
            Some(first) => {
                findings.push(Finding { place: place.clone(), problem: Problem::Repeated { what, first } });
            }
            None => {
                first.insert(what, place.clone());
            }
        }
    }
    Distinct::try_from(items.into_iter().map(|(_, item)| item).collect::<Vec<T>>()).ok()
}

/// The known keys of a table.
struct Keys<'a> {
    table: &'a Table,
    findings: &'a mut Vec<Finding>,
}

impl<'a> Keys<'a> {
    /// Reports the keys that do not exist and those that are there twice.
    fn of(table: &'a Table, valid: &'static [&'static str], findings: &'a mut Vec<Finding>) -> Keys<'a> {
        let mut first: HashMap<&str, &Place> = HashMap::new();
        for Entry { key, place, .. } in &table.entries {
            let problem = if !valid.contains(&key.as_str()) {
                Problem::UnknownKey { key: key.clone(), nearest: nearest(key, valid), valid }
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

    fn found(&mut self, place: &Place, problem: Problem) {
        self.findings.push(Finding { place: place.clone(), problem });
    }

    fn get<T: Read>(&mut self, key: &'static str) -> Given<T> {
        let Some(node) = self.node(key) else { return Given::No };
        let problem = match T::read(&node.value) {
            Some(Ok(value)) => return Given::Yes(value),
            Some(Err(invalid)) => invalid.into(),
            None => Problem::WrongType { key, expected: T::EXPECTED, found: node.value.in_words() },
        };
        self.found(&node.place, problem);
        Given::Wrong
    }

    fn required<T: Read>(
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

    /// The tables of a list. Lone text in it stands for a table of one key, `implied`.
    fn several<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        implied: &'static str,
        read: fn(&Table, &mut Vec<Finding>) -> Option<T>,
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
            found.extend(read(table, self.findings).map(|value| (item.place.clone(), value)));
        }
        found
    }
}

/// What a single value can mean.
trait Read: Sized {
    /// Its type, in words.
    const EXPECTED: &'static str;

    /// The value's meaning; `None` if it is of another type.
    fn read(value: &Value) -> Option<Result<Self, Invalid>>;
}

/// Types that are text in a file as well as in a flag.
macro_rules! read_text {
    ($($type:ty: $expected:literal,)*) => {
        $(impl Read for $type {
            const EXPECTED: &'static str = $expected;

            fn read(value: &Value) -> Option<Result<Self, Invalid>> {
                text(value)
            }
        })*
    };
}

read_text! {
    VmName: "text in quotes",
    HostPath: "a path in quotes",
    Cmdline: "text in quotes",
    Console: "text in quotes: stdio, file:PATH or socket:PATH",
    PciAddress: "a PCI address in quotes, \"0000:01:00.0\"",
    DiskModel: "text in quotes",
    Serial: "text in quotes",
}

fn text<T: FromStr<Err = Invalid>>(value: &Value) -> Option<Result<T, Invalid>> {
    match value {
        Value::Word(text) | Value::Text(text) => Some(text.parse()),
        _ => None,
    }
}

impl Read for Cpus {
    const EXPECTED: &'static str = "a whole number";

    fn read(value: &Value) -> Option<Result<Self, Invalid>> {
        integer(value).map(Cpus::try_from)
    }
}

impl Read for Queues {
    const EXPECTED: &'static str = "a whole number";

    fn read(value: &Value) -> Option<Result<Self, Invalid>> {
        integer(value).map(Queues::try_from)
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        Value::Word(text) => text.parse().ok(),
        _ => None,
    }
}

impl Read for MemorySize {
    const EXPECTED: &'static str = "a size in quotes as in \"512M\", or a number of MiB";

    fn read(value: &Value) -> Option<Result<Self, Invalid>> {
        let Value::Integer(mib) = value else { return text(value) };
        let size = u64::try_from(*mib).map_err(|_| Invalid::Size { text: mib.to_string() });
        let size = size.and_then(|mib| {
            ByteSize::from_mib(mib).ok_or_else(|| Invalid::SizeTooLarge { text: mib.to_string() })
        });
        Some(size.and_then(MemorySize::try_from))
    }
}

impl Read for bool {
    const EXPECTED: &'static str = "true or false (in a flag also on or off)";

    fn read(value: &Value) -> Option<Result<Self, Invalid>> {
        match value {
            Value::Boolean(value) => Some(Ok(*value)),
            Value::Word(text) if text == "on" || text == "true" => Some(Ok(true)),
            Value::Word(text) if text == "off" || text == "false" => Some(Ok(false)),
            _ => None,
        }
    }
}
