//! The picture in Graphviz's language: `dot -Tpng FILE.dot`.

use std::fmt::Write;

use super::graph::{Edge, Graph, Look, Node};

/// Draws a VM's graph.
pub fn draw(name: &str, graph: &Graph) -> String {
    let mut text = format!("digraph {} {{\n", quoted(name));
    text +=
        "  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\", fontsize=11];\n  edge [fontsize=9];\n";
    for (column, nodes) in [("device", &graph.devices), ("domain", &graph.domains), ("memory", &graph.memory)]
    {
        for (number, node) in nodes.iter().enumerate() {
            write(
                &mut text,
                format_args!("  {column}{number} [label={}{}];\n", label(node), colour(node.look)),
            );
        }
    }
    for (from, to, edges) in [("device", "domain", &graph.members), ("domain", "memory", &graph.mappings)] {
        for Edge { from: begin, to: end, label, detail } in edges {
            let (label, detail) = (quoted(label), quoted(detail));
            write(
                &mut text,
                format_args!("  {from}{begin} -> {to}{end} [label={label}, tooltip={detail}];\n"),
            );
        }
    }
    text + "}\n"
}

fn write(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a String takes all text");
}

fn colour(look: Look) -> &'static str {
    match look {
        Look::Alarm => ", color=red, penwidth=2",
        Look::Domain => ", style=bold",
        Look::Own => ", style=dashed",
        Look::Device | Look::Ram | Look::Bar => "",
    }
}

fn label(node: &Node) -> String {
    let lines: Vec<&str> = std::iter::once(&node.title).chain(&node.lines).map(String::as_str).collect();
    quoted(&lines.join("\n"))
}

/// A quoted string of the language. A backslash would begin an escape there, so it is doubled.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' => quoted += "\\\"",
            '\\' => quoted += "\\\\",
            '\n' => quoted += "\\n",
            char if char.is_control() => quoted.push('?'),
            char => quoted.push(char),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::sample;

    #[test]
    fn the_picture_looks_as_it_did() {
        sample::compare("dma.dot", &draw("web", &Graph::of(&sample::dma())));
    }

    #[test]
    fn no_text_leaves_its_quotes() {
        assert_eq!(quoted("a\"b\\c\nd\x07"), "\"a\\\"b\\\\c\\nd?\"");
    }
}
