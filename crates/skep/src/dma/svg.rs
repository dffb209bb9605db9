//! The picture as SVG: devices on the left, domains in the middle, memory on the right.

use std::fmt::Write;

use super::graph::{Edge, Graph, Look, Node};

/// Where a column begins, and how wide its boxes are.
#[derive(Clone, Copy)]
struct Column {
    left: u32,
    width: u32,
    title: &'static str,
}

const DEVICES: Column = Column { left: 24, width: 170, title: "Devices" };
const DOMAINS: Column = Column { left: 264, width: 320, title: "DMA domains" };
const MEMORY: Column = Column { left: 694, width: 290, title: "Memory" };
const WIDTH: u32 = MEMORY.left + MEMORY.width + 24;

/// Where the columns begin, below their titles.
const TOP: u32 = 76;
/// Between two boxes of a column.
const GAP: u32 = 18;
/// Around the text of a box, and from one line to the next.
const PADDING: u32 = 12;
const LINE: u32 = 17;
/// How wide a character of each size is, more or less; text that would not fit is cut.
const TITLE_CHAR: u32 = 8;
const LINE_CHAR: u32 = 7;

/// Draws a VM's graph.
pub fn draw(name: &str, graph: &Graph) -> String {
    let columns = [(DEVICES, &graph.devices), (DOMAINS, &graph.domains), (MEMORY, &graph.memory)];
    let tallest = columns.iter().map(|(_, nodes)| height_of_all(nodes)).max().unwrap_or(0);
    let height = TOP + tallest + 24;
    let mut svg = Svg::begin(height, name);
    let tops = columns.map(|(column, nodes)| {
        svg.text(column.left, TOP - 20, "head", column.title);
        tops(nodes, tallest)
    });
    for (between, edges) in [(0, &graph.members), (1, &graph.mappings)] {
        let ((left, nodes), (right, targets)) = (columns[between], columns[between + 1]);
        for edge in edges {
            let from = (left.left + left.width, middle(&tops[between], nodes, edge.from));
            let to = (right.left, middle(&tops[between + 1], targets, edge.to));
            svg.edge(from, to, edge);
        }
    }
    for ((column, nodes), tops) in columns.into_iter().zip(&tops) {
        for (node, top) in nodes.iter().zip(tops) {
            svg.node(column, *top, node);
        }
    }
    svg.end()
}

fn height(node: &Node) -> u32 {
    2 * PADDING + LINE * (1 + node.lines.len() as u32) - 4
}

fn height_of_all(nodes: &[Node]) -> u32 {
    nodes.iter().map(|node| height(node) + GAP).sum::<u32>().saturating_sub(GAP)
}

/// The tops of a column's boxes: one under the other, the whole in the middle.
fn tops(nodes: &[Node], tallest: u32) -> Vec<u32> {
    let mut top = TOP + (tallest - height_of_all(nodes)) / 2;
    nodes
        .iter()
        .map(|node| {
            let this = top;
            top += height(node) + GAP;
            this
        })
        .collect()
}

fn middle(tops: &[u32], nodes: &[Node], number: usize) -> u32 {
    tops[number] + height(&nodes[number]) / 2
}

struct Svg(String);

impl Svg {
    fn begin(height: u32, name: &str) -> Svg {
        let name = escaped(name);
        let mut svg = Svg(String::new());
        svg.add(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>DMA domains of the VM {name}</title>\n{STYLE}\
             <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
             <text class=\"name\" x=\"24\" y=\"32\">VM {name}</text>\n"
        ));
        svg
    }

    fn node(&mut self, column: Column, top: u32, node: &Node) {
        let class = match node.look {
            Look::Device => "device",
            Look::Domain => "domain",
            Look::Alarm => "alarm",
            Look::Ram => "ram",
            Look::Bar => "bar",
            Look::Own => "own",
        };
        let (left, width, height) = (column.left, column.width, height(node));
        let all: Vec<&str> = std::iter::once(&node.title).chain(&node.lines).map(String::as_str).collect();
        self.add(format_args!(
            "<g><title>{}</title>\n<rect class=\"{class}\" x=\"{left}\" y=\"{top}\" width=\"{width}\" \
             height=\"{height}\" rx=\"4\"/>\n",
            escaped(&all.join("; "))
        ));
        let room = column.width - 2 * PADDING;
        let mut y = top + PADDING + 11;
        self.text(left + PADDING, y, "title", &cut(&node.title, room / TITLE_CHAR));
        for line in &node.lines {
            y += LINE;
            self.text(left + PADDING, y, "line", &cut(line, room / LINE_CHAR));
        }
        self.add(format_args!("</g>\n"));
    }

    fn edge(&mut self, from: (u32, u32), to: (u32, u32), edge: &Edge) {
        let ((x, y), (end, to_y)) = (from, to);
        let half = u32::midpoint(x, end);
        self.add(format_args!(
            "<g><title>{}</title><path class=\"edge\" d=\"M{x} {y} C{half} {y} {half} {to_y} {end} {to_y}\"/></g>\n",
            escaped(&edge.detail)
        ));
        if !edge.label.is_empty() {
            let place = u32::midpoint(y, to_y).saturating_sub(4);
            self.add(format_args!(
                "<text class=\"label\" x=\"{half}\" y=\"{place}\" text-anchor=\"middle\">{}</text>\n",
                escaped(&edge.label)
            ));
        }
    }

    fn text(&mut self, x: u32, y: u32, class: &str, text: &str) {
        self.add(format_args!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>\n", escaped(text)));
    }

    fn add(&mut self, what: std::fmt::Arguments<'_>) {
        self.0.write_fmt(what).expect("a String takes all text");
    }

    fn end(self) -> String {
        self.0 + "</svg>\n"
    }
}

const STYLE: &str = "<style>
text { font-family: sans-serif; fill: #222 }
.name { font-size: 18px; font-weight: bold }
.head { font-size: 13px; fill: #666 }
.title { font-size: 13px; font-weight: bold }
.line { font-size: 12px }
.label { font-size: 11px; fill: #555 }
.paper { fill: #fff }
.device { fill: #eef; stroke: #668 }
.domain { fill: #efe; stroke: #484; stroke-width: 2 }
.alarm { fill: #fee; stroke: #c22; stroke-width: 2 }
.ram { fill: #fff8e0; stroke: #a84 }
.bar { fill: #eef; stroke: #668; stroke-dasharray: 5 3 }
.own { fill: #f4f4f4; stroke: #888; stroke-dasharray: 5 3 }
.edge { fill: none; stroke: #888; stroke-width: 1.5 }
</style>
";

/// At most so many characters, the last a sign that there were more.
fn cut(text: &str, room: u32) -> String {
    let room = room as usize;
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

/// The text as XML takes it. What XML has no way to write is a replacement character.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            char if char.is_control() || matches!(char, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::sample;
    use control::api::{Count, Dma};

    #[test]
    fn the_picture_looks_as_it_did() {
        sample::compare("dma.svg", &draw("web", &Graph::of(&sample::dma())));
    }

    #[test]
    fn names_cannot_become_markup() {
        let mut dma = sample::dma();
        dma.domains[0].name = "</text><script>\"'\x1b".into();
        let svg = draw("a<b>", &Graph::of(&dma));
        assert!(!svg.contains("<script") && !svg.contains("a<b>") && !svg.contains('\x1b'), "{svg}");
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn a_domain_with_faults_is_drawn_as_an_alarm_and_no_domain_at_all_is_an_empty_picture() {
        let mut dma = sample::dma();
        dma.domains[0].faults = Count::default();
        assert!(!draw("web", &Graph::of(&dma)).contains("class=\"alarm\""));
        dma.domains[1].faults.known = 1;
        assert!(draw("web", &Graph::of(&dma)).contains("class=\"alarm\""));
        assert!(draw("web", &Graph::of(&Dma::default())).ends_with("</svg>\n"));
    }

    #[test]
    fn boxes_of_a_column_do_not_overlap_and_text_is_cut_to_its_box() {
        let graph = Graph::of(&sample::dma());
        let tops = tops(&graph.memory, 2000);
        for (pair, node) in tops.windows(2).zip(&graph.memory) {
            assert!(pair[0] + height(node) < pair[1]);
        }
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("äöüß", 4), "äöüß");
    }
}
