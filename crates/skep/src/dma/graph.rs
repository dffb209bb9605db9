//! Devices, domains and memory as boxes and lines, for whoever draws them.

use control::api::{Audit, Count, Dma, Domain, Mapping, Permission, Target};

use super::text;
use crate::table::bytes;

/// Three columns of boxes, and lines from each column to the next.
pub struct Graph {
    /// Devices.
    pub devices: Vec<Node>,
    /// The domains they are in.
    pub domains: Vec<Node>,
    /// What the domains reach.
    pub memory: Vec<Node>,
    /// From devices (by number) to domains.
    pub members: Vec<Edge>,
    /// From domains to memory.
    pub mappings: Vec<Edge>,
}

/// A box.
#[derive(PartialEq, Eq)]
pub struct Node {
    /// Its first line.
    pub title: String,
    /// Its other lines.
    pub lines: Vec<String>,
    /// What sort of box it is.
    pub look: Look,
}

/// How a box looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// A device of the host.
    Device,
    /// A domain in which all is well.
    Domain,
    /// A domain that differs from the memory map or had faults.
    Alarm,
    /// Guest RAM.
    Ram,
    /// Memory of a device.
    Bar,
    /// Memory of skep's own.
    Own,
}

/// A line between two boxes.
pub struct Edge {
    /// The box it begins at, in its column.
    pub from: usize,
    /// The box it ends at, in the next column.
    pub to: usize,
    /// What is written on it; nothing for what goes without saying.
    pub label: String,
    /// All there is to say.
    pub detail: String,
}

impl Graph {
    /// What the domains look like.
    pub fn of(dma: &Dma) -> Graph {
        let mut graph = Graph {
            devices: Vec::new(),
            domains: Vec::new(),
            memory: memory(dma),
            members: Vec::new(),
            mappings: Vec::new(),
        };
        for (to, domain) in dma.domains.iter().enumerate() {
            for device in &domain.devices {
                let (from, detail) = (graph.devices.len(), format!("{device} is in domain {}", domain.name));
                graph.devices.push(Node { title: device.clone(), lines: Vec::new(), look: Look::Device });
                graph.members.push(Edge { from, to, label: String::new(), detail });
            }
            graph.domains.push(domain_node(domain));
            for mapping in &domain.mappings {
                let node = memory_node(mapping);
                let target = graph.memory.iter().position(|other| *other == node);
                graph.mappings.extend(target.map(|target| edge(to, target, mapping)));
            }
        }
        graph
    }
}

/// The memory that any domain reaches, each piece once, by rising address.
fn memory(dma: &Dma) -> Vec<Node> {
    let mut mappings: Vec<&Mapping> = dma.domains.iter().flat_map(|domain| &domain.mappings).collect();
    mappings.sort_by_key(|mapping| match &mapping.target {
        Target::Ram { gpa, .. } | Target::Device { gpa, .. } => *gpa,
        Target::Own { .. } => mapping.iova,
    });
    let mut nodes: Vec<Node> = Vec::new();
    for mapping in mappings {
        let node = memory_node(mapping);
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    nodes
}

fn memory_node(mapping: &Mapping) -> Node {
    let size = |range: control::api::Range| bytes(range.bytes());
    match &mapping.target {
        Target::Ram { gpa, segment } => {
            let title = segment
                .map_or("RAM not in the memory map".to_owned(), |number| format!("RAM segment {number}"));
            let pages =
                mapping.page_size.map(|pages| format!(", pages of {}", bytes(pages))).unwrap_or_default();
            let lines = vec![format!("GPA {gpa}"), format!("{}{pages}", size(*gpa))];
            Node { title, lines, look: Look::Ram }
        }
        Target::Device { owner, gpa } => {
            let lines = vec![format!("GPA {gpa}"), size(*gpa)];
            Node { title: owner.clone(), lines, look: Look::Bar }
        }
        Target::Own { what } => {
            let lines = vec![format!("IOVA {}", mapping.iova), format!("{}, skep's own", size(mapping.iova))];
            Node { title: what.clone(), lines, look: Look::Own }
        }
    }
}

fn domain_node(domain: &Domain) -> Node {
    let same = domain.audit == Audit::Same;
    let audit = if same { "audit: holds the memory map" } else { "audit: DIFFERS from the memory map" };
    let lines = vec![
        text::sort(domain),
        format!("pinned: {}", bytes(domain.pinned)),
        format!("P2P: {}", domain.p2p),
        audit.to_owned(),
        format!("faults: {}", domain.faults),
    ];
    let well = same && domain.faults == Count::default();
    let look = if well { Look::Domain } else { Look::Alarm };
    Node { title: format!("domain {}", domain.name), lines, look }
}

/// A line to memory; it says its addresses where the box at its end does not.
fn edge(from: usize, to: usize, mapping: &Mapping) -> Edge {
    let whole = match &mapping.target {
        Target::Ram { gpa, .. } | Target::Device { gpa, .. } => *gpa == mapping.iova,
        Target::Own { .. } => true,
    };
    let mut said = Vec::new();
    if !whole {
        said.push(format!("IOVA {}", mapping.iova));
    }
    if mapping.permission == Permission::Read {
        said.push(format!("{} only", mapping.permission));
    }
    let detail = format!("IOVA {} to {} ({})", mapping.iova, text::memory(mapping), mapping.permission);
    Edge { from, to, label: said.join(", "), detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::sample;
    use control::api::{Address, Range};

    #[test]
    fn memory_that_two_domains_reach_is_one_box_with_two_lines() {
        let graph = Graph::of(&sample::dma());
        let titles: Vec<&str> = graph.memory.iter().map(|node| node.title.as_str()).collect();
        assert_eq!(titles, ["RAM segment 0", "0000:01:00.0 BAR 0", "RAM segment 1", "NVMe <queues> & lists"]);
        assert_eq!(graph.mappings.iter().filter(|edge| edge.to == 0).count(), 2);
        assert_eq!((graph.members.len(), graph.mappings.len()), (3, 6));
        assert!(graph.mappings.iter().all(|edge| edge.label.is_empty()));
    }

    #[test]
    fn a_line_says_what_is_unusual() {
        let mut dma = sample::dma();
        let row = &mut dma.domains[0].mappings[0];
        row.iova = Range { first: Address(0), last: Address(0xfff) };
        row.permission = Permission::Read;
        assert_eq!(Graph::of(&dma).mappings[0].label, "IOVA 0x0-0xfff, read only");
    }
}
