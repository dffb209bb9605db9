//! From what was written to a VM: which keys there are, what their values mean, and how a file and flags are
//! put together.

mod boot;
mod controllers;
mod disk;
mod read;
mod table;
mod tpm;

use std::collections::{HashMap, HashSet};

use crate::finding::{Finding, Findings, Place, Problem};
use crate::keys::{AssignKey, DiskKey, Key, Keyed, Kind};
use crate::model::{
    Assign, Backing, Disk, DiskSource, Distinct, Dma, Draft, HostDomain, HugePages, Identified, ModelName, Vm,
};
use crate::source::{self, Entry, Node, Table, Value};
use crate::values::Invalid;
use crate::values::size::{ByteSize, MemorySize};

use boot::{BootKeys, LinuxDraft};
use disk::disk;
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
    let parsed = file.map(|file| source::toml::parse(file.name, file.bytes)).unwrap_or_default();
    let (mut table, mut wrong, broken) = (parsed.table, parsed.errors, parsed.broken_lines);
    let mut meant = Vec::new();
    table.entries.extend(flags.iter().map(|(key, text)| entry(*key, text, &mut meant)));
    let draft = draft(&table, broken.is_empty(), &mut meant);
    meant.retain(|finding| broken.is_empty() || !may_follow_from(finding, &broken));
    wrong.append(&mut meant);
    wrong.sort_by_key(|finding| finding.place.in_order());
    Description { draft, wrong }
}

/// The disk that `value` describes, as that of `--disk` does, or everything that is wrong with it. Where it says nothing
/// of a model, the guest is to see `model`. `flag` is what messages call the place where it was written.
pub fn describe_disk(flag: &str, value: &str, model: ModelName) -> Result<Disk, Findings> {
    let mut findings = Vec::new();
    let mut table = source::flags::table(flag, value, DiskKey::ROWS, &mut findings);
    let key = DiskKey::Model.name();
    if !table.entries.iter().any(|entry| entry.key == key) {
        let place = table.place.clone();
        let node = Node { place: place.clone(), value: Value::Word(model.to_string()) };
        table.entries.push(Entry { key: key.into(), place, node });
    }
    let disk = disk(&table, &mut findings);
    Findings::none_or(findings, disk)
}

/// Whether a finding about the file may be there only because some of its lines are not TOML.
fn may_follow_from(finding: &Finding, broken: &HashSet<usize>) -> bool {
    let Place::File { line, .. } = finding.place else { return false };
    broken.contains(&line) || matches!(finding.problem, Problem::Missing { .. })
}

/// A flag as the entry that a file would have for it.
fn entry(key: Key, text: &str, findings: &mut Vec<Finding>) -> Entry {
    let flag = format_args!("--{}", key.name());
    let node = match key.row().kind {
        Kind::Tables(_, rows) => {
            let table = source::flags::table(flag, text, rows, findings);
            let item = Node { place: table.place.clone(), value: Value::Table(table) };
            Node { place: item.place.clone(), value: Value::List(vec![item]) }
        }
        Kind::SwitchOrTable(rows) => source::flags::switch_or_table(flag, text, rows, findings),
        _ => source::flags::word(flag, text),
    };
    Entry { key: key.name().into(), place: node.place.clone(), node }
}

/// What is right of it all. `whole` says whether all of the file could be read.
fn draft(table: &Table, whole: bool, findings: &mut Vec<Finding>) -> Draft {
    let mut keys: Keys<'_, Key> = Keys::of(table, findings);
    let name = keys.get(Key::Name).or_default();
    let cpus = keys.get(Key::Cpus).value().unwrap_or_default();
    let nested = keys.get(Key::Nested).value().unwrap_or_default();
    let memory = keys.get(Key::Memory).or_default();
    let hugepages = keys.get(Key::Hugepages);
    let node = keys.get(Key::Node).value();
    let wire = keys.get(Key::Wire).value().unwrap_or_default();
    let boot = BootKeys::read(&mut keys);
    let console = keys.get(Key::Console).or_default();
    let back_end = keys.get(Key::Dma).value().unwrap_or_default();
    let host_domain = keys.get(Key::HostDomain);
    let i_know = keys.get(Key::IKnow);
    let on_fault = keys.get(Key::OnFault).value().unwrap_or_default();
    let p2p = keys.get(Key::P2p).value().unwrap_or_default();
    let tpm = tpm::tpm(&mut keys).value().flatten();
    // Where devices and disks are written of which something is wrong.
    let mut doubtful = Vec::new();
    let expected = "a list of PCI addresses, [\"0000:01:00.0\"]";
    let assigned = keys.several(Key::Assign, expected, assign, &mut doubtful);
    let files = keys.several(Key::FwCfg, "tables that begin with [[fw-cfg]]", boot::file, &mut doubtful);
    let disks = keys.several(Key::Disk, "tables that begin with [[disk]]", disk, &mut doubtful);
    // What is wrong with a flag's list was found when it was taken apart.
    doubtful.extend(findings.iter().map(|finding| finding.place.clone()));
    boot::order(&boot, &disks, &assigned, whole && doubtful.is_empty(), findings);
    boot::files(&boot, &files, whole, findings);
    let files = distinct(files, &doubtful, findings);
    let (firmware, LinuxDraft { kernel, initrd, cmdline }) = boot.assemble(files, whole, findings);
    assigned_and_disk(&assigned, &disks, findings);
    controllers::check(&disks, findings);
    let hugepages = pages(hugepages, memory, findings);
    let host_domain = host_domain_meant(host_domain, i_know, findings);
    let assigned = distinct(assigned, &doubtful, findings);
    let disks = distinct(disks, &doubtful, findings);
    let backing = Backing { hugepages, node, wire };
    let dma = Dma { back_end, host_domain, on_fault, p2p };
    Draft {
        name,
        cpus,
        nested,
        memory,
        backing,
        firmware,
        kernel,
        initrd,
        cmdline,
        disks,
        assigned,
        dma,
        tpm,
        console,
    }
}

/// The huge pages, if the memory is a whole number of them.
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
        // The host would only say the same.
        return None;
    }
    Some(pages)
}

/// The host domain, of which the dangerous kind must be meant.
fn host_domain_meant(
    given: Given<HostDomain>,
    i_know: Given<bool>,
    findings: &mut Vec<Finding>,
) -> HostDomain {
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
    let mut keys = Keys::of(table, findings);
    let hint = keys.place().choose("Write --assign 0000:01:00.0.", "Write address = \"0000:01:00.0\".");
    let address = keys.required(AssignKey::Address, "this assigned device", hint);
    let domain = keys.get(AssignKey::Domain).value();
    let on_fault = keys.get(AssignKey::OnFault).value();
    let on_request = keys.get(AssignKey::OnRequest).value().unwrap_or_default();
    let boot_index = keys.get(AssignKey::BootIndex).value();
    let rom = keys.get(AssignKey::Rom).value().unwrap_or_default();
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
