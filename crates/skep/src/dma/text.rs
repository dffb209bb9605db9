//! Domains as plain text.

use std::fmt::Write;

use control::api::{Audit, Count, Dma, Domain, DomainKind, Mapping, Target};

use crate::table::{Side, Table, bytes, plain};

/// All domains, a paragraph and a table each.
pub fn tables(dma: &Dma) -> String {
    let mut text = String::new();
    for domain in &dma.domains {
        text += &paragraph(domain);
        text += "\n";
    }
    if dma.domains.is_empty() {
        text += "This VM has no DMA domain: no device is assigned to it, and none is driven for it.\n";
    }
    if dma.domains.len() > 1 {
        text += &format!("Pinned for all of them: {}, shared RAM counted once\n", exact(dma.pinned));
    }
    if dma.other_faults != Count::default() {
        text += &format!("Faults not known to be of a domain above: {}\n", dma.other_faults);
    }
    format!("{}\n", text.trim_end())
}

fn paragraph(domain: &Domain) -> String {
    let mut text = format!("{}: {}\n", plain(&domain.name), sort(domain));
    let mut line = |what: &str, value: &str| {
        writeln!(text, "  {what:<8} {}", plain(value)).expect("a String takes all text");
    };
    line("devices", &listed(&domain.devices));
    line("groups", &listed(&domain.groups.iter().map(u32::to_string).collect::<Vec<_>>()));
    line("P2P", &domain.p2p.to_string());
    let (maps, unmaps) = (domain.map_calls, domain.unmap_calls);
    line("pinned", &format!("{}, by {}", exact(domain.pinned), counted(maps, "map call")));
    if unmaps > 0 {
        line("unmapped", &format!("by {}", counted(unmaps, "call")));
    }
    line("audit", &audit(&domain.audit));
    line("faults", &domain.faults.to_string());
    let mut table = Table::new([
        ("  IOVA", Side::Left),
        ("GPA", Side::Left),
        ("MEMORY", Side::Left),
        ("LENGTH", Side::Right),
        ("PAGES", Side::Right),
        ("DEVICES MAY", Side::Left),
    ]);
    for mapping in &domain.mappings {
        table.row([
            format!("  {}", mapping.iova),
            gpa(mapping),
            memory(mapping),
            bytes(mapping.iova.bytes()),
            mapping.page_size.map_or("-".to_owned(), bytes),
            mapping.permission.to_string(),
        ]);
    }
    if domain.mappings.is_empty() { text + "  nothing is mapped\n" } else { text + &table.to_string() }
}

/// What kind of domain it is, in words.
pub fn sort(domain: &Domain) -> String {
    let whose = match domain.kind {
        DomainKind::Guest => "devices assigned to the guest",
        DomainKind::Host => "devices that skep drives",
        DomainKind::Unknown => "devices of a kind that this skep does not know",
    };
    format!("{whose}, by {}", domain.back_end)
}

/// How an audit came out, in words.
pub fn audit(audit: &Audit) -> String {
    match audit {
        Audit::Same => "holds what the memory map says".to_owned(),
        Audit::Differs { how } => format!("DIFFERS from the memory map: {how}"),
    }
}

/// What a mapping leads to, without guest addresses.
pub fn memory(mapping: &Mapping) -> String {
    match &mapping.target {
        Target::Ram { segment: Some(number), .. } => format!("RAM segment {number} + {}", mapping.offset),
        Target::Ram { segment: None, .. } => "RAM that the memory map does not have".to_owned(),
        Target::Device { owner, .. } => owner.clone(),
        Target::Own { what } => format!("skep's own: {what}"),
    }
}

/// The guest addresses that the mapping leads to.
fn gpa(mapping: &Mapping) -> String {
    match &mapping.target {
        Target::Ram { gpa, .. } | Target::Device { gpa, .. } => {
            let first = gpa.first.0.saturating_add(mapping.offset.0);
            let last = first.saturating_add(mapping.iova.bytes() - 1);
            format!("{first:#x}-{last:#x}")
        }
        Target::Own { .. } => "-".to_owned(),
    }
}

/// A number of bytes, exact, and what that is for people where it differs.
fn exact(number: u64) -> String {
    if number < 1024 { bytes(number) } else { format!("{} ({number} bytes)", bytes(number)) }
}

fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn listed(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::sample;

    #[test]
    fn the_tables_look_as_they_did() {
        sample::compare("dma.txt", &tables(&sample::dma()));
    }

    #[test]
    fn trouble_is_in_the_tables() {
        let mut dma = sample::dma();
        dma.domains[0].audit = Audit::Differs { how: "RAM 0x0-0xfff is missing\nat 0x0".into() };
        dma.other_faults = Count { known: 0, unattributed: 23, complete: false };
        let text = tables(&dma);
        assert!(
            text.contains("  audit    DIFFERS from the memory map: RAM 0x0-0xfff is missing?at 0x0\n"),
            "{text}"
        );
        let end = "counted once\nFaults not known to be of a domain above: at least 23, in this host, of unknown devices\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn a_vm_without_domains_is_said_to_have_none() {
        assert!(tables(&Dma::default()).starts_with("This VM has no DMA domain"));
    }
}
