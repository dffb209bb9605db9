//! The help of a key's flag.

use super::{Key, Keyed, Kind, Of, Row};
use crate::nearest::either;

impl Key {
    /// The help of its flag.
    pub fn help(self) -> String {
        let Row { help, kind, default, in_flag, .. } = *self.row();
        let mut text = match kind {
            Kind::Tables(_, rows @ [Row { of: Of::Either, .. }, ..]) => {
                format!("{help}: {}\n", either_with(rows))
            }
            Kind::Tables(_, rows) => format!("{help}: {}.", list(rows[0].kind.takes().into(), &rows[1..])),
            Kind::SwitchOrTable(rows) => {
                let first = format!("{}={}", rows[0].name, rows[0].kind.takes());
                format!("{help}: off, or {}.", list(format!("on|{first}"), &rows[1..]))
            }
            _ => format!("{help}."),
        };
        let several = if kind.is_several() { "May be given several times" } else { "" };
        for more in [in_flag, several].into_iter().filter(|more| !more.is_empty()) {
            let space = if text.ends_with('\n') { "" } else { " " };
            text = text + space + more;
        }
        let text = text.trim_end_matches('.');
        if default.is_empty() { text.into() } else { format!("{text} [default: {default}]") }
    }
}

/// The keys of a flag's list, behind its first item: those of which there is one, then all others.
fn list(first: String, rows: &[Row]) -> String {
    let (either, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.of == Of::Either);
    let either = either.into_iter().map(setting).collect::<Vec<String>>().join("|");
    let either = if either.is_empty() { either } else { format!(",({either})") };
    let others = others.into_iter().map(|row| format!("[,{}]", setting(row)));
    first + &either + &others.collect::<String>()
}

/// The keys of a flag's list that begins with one of several, each on a line, and the others by what they go with.
fn either_with(rows: &'static [Row]) -> String {
    let (either, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.of == Of::Either);
    let widest = either.iter().map(|row| setting(row).len()).max().unwrap_or_default();
    let either = either.into_iter().map(|row| format!("\n  {:widest$}  {}", setting(row), row.help));
    let mut text = format!("one of{}\nand what there is to say of it,", either.collect::<String>());
    let mut groups = vec![Of::All];
    for row in &others {
        if !groups.contains(&row.of) {
            groups.push(row.of);
        }
    }
    for of in groups {
        text = text + "\n  " + &of.in_words().unwrap_or("of any disk".into()) + ": ";
        text.extend(others.iter().filter(|row| row.of == of).map(|row| format!("[,{}]", setting(row))));
    }
    text
}

/// A key with what stands for its value, as in a flag.
fn setting(row: &Row) -> String {
    format!("{}={}", row.name, row.kind.takes())
}

impl Of {
    /// The disks that a key goes with, unless that is all: `with path or nvme`, `of virtio-blk`.
    pub fn in_words(self) -> Option<String> {
        let (word, names): (&str, Vec<&str>) = match self {
            Of::All | Of::Either => return None,
            Of::Source(keys) => ("with", keys.iter().map(|key| key.name()).collect()),
            Of::Model(models) => ("of", models.iter().map(|model| model.name()).collect()),
        };
        Some(format!("{word} {}", either(&names)))
    }
}
