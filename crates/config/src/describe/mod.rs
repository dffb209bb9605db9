//! From what was written to a VM: which keys there are, what their values mean, and how a file and flags are
//! put together.

mod boot;
mod controllers;
mod disk;
mod key;
mod read;
mod table;
mod tpm;

use std::collections::{HashMap, HashSet};

use crate::finding::{Finding, Findings, Place, Problem};
use crate::model::{
    Assign, Backing, Console, Disk, DiskSource, Distinct, Dma, DmaBackEnd, Draft, FwCfgFile, HostDomain,
    HugePages, Identified, ModelName, OnFault, P2p, Tpm, Vm, Wire,
};
use crate::source::{self, Entry, Node, Table, Value};
use crate::values::Invalid;
use crate::values::count::{Cpus, NodeId};
use crate::values::name::VmName;
use crate::values::size::{ByteSize, MemorySize};

use boot::BootKeys;
use disk::disk;
pub use key::Key;
pub(crate) use key::SWITCHES;
use key::{ASSIGN, DISK, FW_CFG, VM};
use table::{Given, Keys};

/// A file that describes a VM.
#[derive(Debug, Clone, Copy)]
pub struct File<'a> {
    /// Its name, as messages shall say it.
    pub name: &'a str,
    /// What is in it.
    pub bytes: &'a [u8],
}

/// What a file and flags say of a VM together.
#[derive(Debug)]
pub struct Description {
    /// What is right in it.
    pub draft: Draft,
    wrong: Vec<Finding>,
}

impl Description {
    /// Puts a description together from a file and from flags with their values.
    ///
    /// Flags win over the file for what a VM has once, and add to the file for disks and assigned devices.
    pub fn read(file: Option<File<'_>>, flags: &[(Key, String)]) -> Description {
        read_all(file, flags)
    }

    /// The same where there should be a file that could not be read. What such a file may say is not missing.
    pub fn read_without_file(flags: &[(Key, String)]) -> Description {
        let mut read = read_all(None, flags);
        read.wrong.retain(|finding| !matches!(finding.problem, Problem::Missing { .. }));
        read
    }

    /// Everything that is wrong with it, in the order of its sources.
    pub fn wrong(&self) -> &[Finding] {
        &self.wrong
    }

    /// The VM, or everything that is wrong with it.
    pub fn vm(self) -> Result<Vm, Findings> {
        let vm = self.draft.finished();
        Findings::none_or(self.wrong, vm)
    }
}

/// The VM that [`Description::read`] finds in a file and in flags.
pub fn describe(file: Option<File<'_>>, flags: &[(Key, String)]) -> Result<Vm, Findings> {
    read_all(file, flags).vm()
}

fn read_all(file: Option<File<'_>>, flags: &[(Key, String)]) -> Description {
    let mut findings = Vec::new();
    let mut parts = Parts::default();
    let mut whole = true;
    if let Some(file) = file {
        let parsed = source::toml::parse(file.name, file.bytes);
        let mut meant = Vec::new();
        parts = Parts::read(&parsed.table, &mut meant);
        let broken = parsed.broken_lines;
        whole = broken.is_empty();
        meant.retain(|finding| whole || !may_follow_from(finding, &broken));
        findings = parsed.errors;
        findings.append(&mut meant);
    }
    let flags = as_table(flags, &mut findings);
    parts = parts.overlaid(Parts::read(&flags, &mut findings));
    let draft = parts.assemble(whole, &mut findings);
    findings.sort_by_key(|finding| finding.place.in_order());
    Description { draft, wrong: findings }
}

/// The disk that `value` describes, as that of `--disk` does, or everything that is wrong with it. Where it says nothing
/// of a model, the guest is to see `model`. `flag` is what messages call the place where it was written.
pub fn describe_disk(flag: &str, value: &str, model: ModelName) -> Result<Disk, Findings> {
    let mut findings = Vec::new();
    let mut table = source::flags::table(flag, value, "path", DISK, &mut findings);
    if !table.entries.iter().any(|entry| entry.key == "model") {
        let place = table.place.clone();
        let node = Node { place: place.clone(), value: Value::Word(model.to_string()) };
        table.entries.push(Entry { key: "model".into(), place, node });
    }
    let disk = disk(&table, &mut findings);
    Findings::none_or(findings, disk)
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
            Key::Assign | Key::Disk | Key::FwCfg => {
                let (implied, valid) = match key {
                    Key::Disk => ("path", DISK),
                    Key::Assign => ("address", ASSIGN),
                    _ => ("name", FW_CFG),
                };
                let items = given.map(|text| source::flags::list(key.flag(), text, implied, valid, findings));
                add(Node { place: Place::Nowhere, value: Value::List(items.collect()) });
            }
            Key::Tpm => given.for_each(|text| add(tpm::flag(key.flag(), text, findings))),
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
    nested: Given<bool>,
    memory: Given<MemorySize>,
    hugepages: Given<HugePages>,
    node: Given<NodeId>,
    wire: Given<Wire>,
    boot: BootKeys,
    console: Given<Console>,
    dma: Given<DmaBackEnd>,
    host_domain: Given<HostDomain>,
    i_know: Given<bool>,
    on_fault: Given<OnFault>,
    p2p: Given<P2p>,
    tpm: Given<Option<Tpm>>,
    assigned: Vec<(Place, Assign)>,
    disks: Vec<(Place, Disk)>,
    files: Vec<(Place, FwCfgFile)>,
    /// Where devices and disks are written of which something is wrong.
    doubtful: Vec<Place>,
}

impl Parts {
    fn read(table: &Table, findings: &mut Vec<Finding>) -> Parts {
        let mut keys = Keys::of(table, VM, findings);
        let mut doubtful = Vec::new();
        Parts {
            name: keys.get("name"),
            cpus: keys.get("cpus"),
            nested: keys.get("nested"),
            memory: keys.get("memory"),
            hugepages: keys.get("hugepages"),
            node: keys.get("node"),
            wire: keys.get("wire"),
            boot: BootKeys::read(&mut keys),
            console: keys.get("console"),
            dma: keys.get("dma"),
            host_domain: keys.get("host-domain"),
            i_know: keys.get("i-know"),
            on_fault: keys.get("on-fault"),
            p2p: keys.get("p2p"),
            tpm: keys.tpm(),
            assigned: keys.several(
                "assign",
                "a list of PCI addresses, [\"0000:01:00.0\"]",
                "address",
                assign,
                &mut doubtful,
            ),
            files: keys.several(
                "fw-cfg",
                "tables that begin with [[fw-cfg]]",
                "name",
                boot::file,
                &mut doubtful,
            ),
            disks: keys.several("disk", "tables that begin with [[disk]]", "path", disk, &mut doubtful),
            doubtful,
        }
    }

    fn overlaid(mut self, over: Parts) -> Parts {
        self.assigned.extend(over.assigned);
        self.disks.extend(over.disks);
        self.files.extend(over.files);
        self.doubtful.extend(over.doubtful);
        Parts {
            name: over.name.or(self.name),
            cpus: over.cpus.or(self.cpus),
            nested: over.nested.or(self.nested),
            memory: over.memory.or(self.memory),
            hugepages: over.hugepages.or(self.hugepages),
            node: over.node.or(self.node),
            wire: over.wire.or(self.wire),
            boot: over.boot.or(self.boot),
            console: over.console.or(self.console),
            dma: over.dma.or(self.dma),
            host_domain: over.host_domain.or(self.host_domain),
            i_know: over.i_know.or(self.i_know),
            on_fault: over.on_fault.or(self.on_fault),
            p2p: over.p2p.or(self.p2p),
            tpm: over.tpm.or(self.tpm),
            ..self
        }
    }

    /// What is right of it all. `whole` says whether all of the file could be read.
    fn assemble(self, whole: bool, findings: &mut Vec<Finding>) -> Draft {
        // What is wrong with a flag's list was found when it was taken apart.
        let mut doubtful = self.doubtful;
        doubtful.extend(findings.iter().map(|finding| finding.place.clone()));
        boot::order(&self.boot, &self.disks, &self.assigned, whole && doubtful.is_empty(), findings);
        boot::files(&self.boot, &self.files, whole, findings);
        let files = distinct(self.files, &doubtful, findings);
        let (firmware, linux) = self.boot.assemble(files, whole, findings);
        assigned_and_disk(&self.assigned, &self.disks, findings);
        controllers::check(&self.disks, findings);
        let memory = self.memory.or_default();
        let hugepages = pages(self.hugepages, memory, findings);
        let host_domain = host_domain(self.host_domain, self.i_know, findings);
        let assigned = distinct(self.assigned, &doubtful, findings);
        let disks = distinct(self.disks, &doubtful, findings);
        Draft {
            name: self.name.or_default(),
            cpus: self.cpus.value().unwrap_or_default(),
            nested: self.nested.value().unwrap_or_default(),
            memory,
            backing: Backing {
                hugepages,
                node: self.node.value(),
                wire: self.wire.value().unwrap_or_default(),
            },
            firmware,
            kernel: linux.kernel,
            initrd: linux.initrd,
            cmdline: linux.cmdline,
            disks,
            assigned,
            dma: Dma {
                back_end: self.dma.value().unwrap_or_default(),
                host_domain,
                on_fault: self.on_fault.value().unwrap_or_default(),
                p2p: self.p2p.value().unwrap_or_default(),
            },
            tpm: self.tpm.value().flatten(),
            console: self.console.or_default(),
        }
    }
}

/// The huge pages, of which the memory must be a whole number.
fn pages(
    given: Given<HugePages>,
    memory: Option<MemorySize>,
    findings: &mut Vec<Finding>,
) -> Option<HugePages> {
    let Given::Yes(place, pages) = given else { return None };
    if let Some(memory) = memory
        && !memory.bytes().is_multiple_of(pages.bytes())
    {
        let [size, page] = [memory.bytes(), pages.bytes()].map(ByteSize::from_bytes);
        findings.push(Finding { place, problem: Invalid::MemoryNotInPages { size, page }.into() });
    }
    Some(pages)
}

/// The host domain, of which the dangerous kind must be meant.
fn host_domain(given: Given<HostDomain>, i_know: Given<bool>, findings: &mut Vec<Finding>) -> HostDomain {
    let Given::Yes(place, host_domain) = given else { return HostDomain::default() };
    if host_domain == HostDomain::Exclusive && i_know.value() != Some(true) {
        let word = place.choose("--i-know", "i-know = true");
        findings.push(Finding { place, problem: Problem::Exclusive { word } });
    }
    host_domain
}

/// A controller goes to the guest, or skep drives it; each that does both is a finding.
fn assigned_and_disk(assigned: &[(Place, Assign)], disks: &[(Place, Disk)], findings: &mut Vec<Finding>) {
    for (place, disk) in disks {
        let DiskSource::Nvme { address, .. } = disk.source else { continue };
        if let Some((given, _)) = assigned.iter().find(|(_, assign)| assign.address == address) {
            let problem = Problem::AssignedAndDisk { address, assigned: given.clone() };
            findings.push(Finding { place: place.clone(), problem });
        }
    }
}

fn assign(table: &Table, findings: &mut Vec<Finding>) -> Option<Assign> {
    let mut keys = Keys::of(table, ASSIGN, findings);
    let hint = keys.place().choose("Write --assign 0000:01:00.0.", "Write address = \"0000:01:00.0\".");
    let address = keys.required("address", "this assigned device", hint);
    let domain = keys.get("domain").value();
    let on_fault = keys.get("on-fault").value();
    let on_request = keys.get("on-request").value().unwrap_or_default();
    let boot_index = keys.get("bootindex").value();
    let rom = keys.get("rom").value().unwrap_or_default();
    Some(Assign {
        address: address?,
        domain: domain.unwrap_or_default(),
        on_fault,
        on_request,
        boot_index,
        rom,
    })
}

/// The items as a list without repetition; each repeated one is a finding. It is not in the list, and neither is what is
/// doubtful.
fn distinct<T: Identified>(
    items: Vec<(Place, T)>,
    doubtful: &[Place],
    findings: &mut Vec<Finding>,
) -> Distinct<T> {
    let mut first: HashMap<String, Place> = HashMap::new();
    for (place, item) in &items {
        let Some(what) = item.identity() else { continue };
        match first.get(&what).cloned() {
            Some(first) => {
                findings.push(Finding { place: place.clone(), problem: Problem::Repeated { what, first } });
            }
            None => {
                first.insert(what, place.clone());
            }
        }
    }
    let right = items.into_iter().filter(|(place, _)| !doubtful.contains(place));
    Distinct::first_of_each(right.map(|(_, item)| item))
}
