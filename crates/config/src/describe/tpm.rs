//! A TPM: there or not, or a table that says more.

use super::key::TPM;
use super::table::{Given, Keys};
use crate::finding::{Finding, Problem};
use crate::model::{Tpm, TpmSource};
use crate::source::{Node, Table, Value, flags};

/// A flag's value as a file would have it.
pub(super) fn flag(flag: &str, text: &str, findings: &mut Vec<Finding>) -> Node {
    match text {
        "on" | "off" | "true" | "false" => flags::word(flag, text),
        _ => flags::list(flag, text, "passthrough", TPM, findings),
    }
}

/// The TPM that a source gives a VM, or that it gives none.
pub(super) fn tpm(node: Option<&Node>, findings: &mut Vec<Finding>) -> Given<Option<Tpm>> {
    let Some(node) = node else { return Given::No };
    let on = match &node.value {
        Value::Boolean(on) => *on,
        Value::Word(text) => text == "on" || text == "true",
        Value::Table(table) => {
            return match read(table, findings) {
                Some(tpm) => Given::Yes(node.place.clone(), Some(tpm)),
                None => Given::Wrong,
            };
        }
        other => {
            let expected = "true, false or a table, { passthrough = \"/dev/tpm0\" }";
            let problem = Problem::WrongType { key: "tpm", expected, found: other.in_words() };
            findings.push(Finding { place: node.place.clone(), problem });
            return Given::Wrong;
        }
    };
    let emulated = Tpm { source: TpmSource::Emulated, on_error: Default::default() };
    Given::Yes(node.place.clone(), on.then_some(emulated))
}

fn read(table: &Table, findings: &mut Vec<Finding>) -> Option<Tpm> {
    let before = findings.len();
    let mut keys = Keys::of(table, TPM, findings);
    let path = keys.get("passthrough").value();
    let on_error = keys.get("on-error").value().unwrap_or_default();
    let source = path.map_or(TpmSource::Emulated, TpmSource::Passthrough);
    (findings.len() == before).then_some(Tpm { source, on_error })
}
