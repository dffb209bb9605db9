//! A TPM: there or not, or a table that says more.

use super::table::{Given, Keys};
use crate::finding::{Finding, Problem};
use crate::keys::{Key, TpmKey};
use crate::model::{Tpm, TpmSource};
use crate::source::{Node, Table, Value};
use crate::values::Invalid;

/// The TPM that a description gives a VM, or that it gives none.
pub(super) fn tpm(keys: &mut Keys<'_, Key>) -> Given<Option<Tpm>> {
    keys.last(Key::Tpm, given)
}

fn given(node: &Node, findings: &mut Vec<Finding>) -> Given<Option<Tpm>> {
    let on = match &node.value {
        Value::Boolean(on) => *on,
        Value::Word(text) => match text.as_str() {
            "on" | "true" => true,
            "off" | "false" => false,
            _ => {
                let problem = Invalid::Tpm { text: text.clone() }.into();
                findings.push(Finding { place: node.place.clone(), problem });
                return Given::Wrong;
            }
        },
        Value::Table(table) => {
            return match read(table, findings) {
                Some(tpm) => Given::Yes(node.place.clone(), Some(tpm)),
                None => Given::Wrong,
            };
        }
        other => {
            let expected = "true, false or a table, { passthrough = \"/dev/tpm0\" }".into();
            let problem = Problem::WrongType { key: Key::Tpm.name(), expected, found: other.in_words() };
            findings.push(Finding { place: node.place.clone(), problem });
            return Given::Wrong;
        }
    };
    let emulated = Tpm { source: TpmSource::Emulated, on_error: Default::default() };
    Given::Yes(node.place.clone(), on.then_some(emulated))
}

fn read(table: &Table, findings: &mut Vec<Finding>) -> Option<Tpm> {
    let before = findings.len();
    let mut keys = Keys::of(table, findings);
    let path = keys.get(TpmKey::Passthrough).value();
    let on_error = keys.get(TpmKey::OnError).value().unwrap_or_default();
    let source = path.map_or(TpmSource::Emulated, TpmSource::Passthrough);
    (findings.len() == before).then_some(Tpm { source, on_error })
}
