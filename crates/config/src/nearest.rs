//! The word that a person meant.

/// The one of `valid` that `word` most looks like, if one does: it begins with the same letters, or few typing
/// errors lie between them (a third of its letters, and always one).
pub(crate) fn nearest<'a>(word: &str, valid: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Nothing so long is a typing error, and the distance takes time in the square of the length.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase();
    let errors = |candidate: &str| match candidate.starts_with(&word) && word.len() >= 2 {
        true => 1,
        false => strsim::osa_distance(&word, candidate),
    };
    let (errors, best) =
        valid.map(|candidate| (errors(candidate), candidate)).min_by_key(|(errors, _)| *errors)?;
    (errors <= (best.len() / 3).max(1)).then_some(best)
}

/// Keys of QEMU, libvirt and bhyve, and the one that skep has for each.
const OF_OTHERS: [(&[&str], &str); 7] = [
    (&["cdrom"], "model=ahci-cd"),
    (&["media", "if", "interface", "bus"], "model"),
    (&["dev"], "path"),
    (&["romfile", "rombar"], "rom"),
    (&["ro", "read_only"], "readonly"),
    (&["boot-order", "bootorder"], "bootindex"),
    (&["content", "value", "text"], "string"),
];

/// What stands for a key of another VMM among these, as a key or with its value.
pub(crate) fn of_others(word: &str, valid: &[&str]) -> Option<&'static str> {
    // bhyve's -f.
    if word.starts_with("opt/") && valid.contains(&"string") {
        return Some("name=opt/NAME,string=TEXT");
    }
    let (_, meant) = OF_OTHERS.iter().find(|(words, _)| words.contains(&word))?;
    meant.split('=').next().is_some_and(|key| valid.contains(&key)).then_some(*meant)
}

/// Whether somebody who wrote the one of two flags may have meant the other one.
pub fn is_near(written: &str, meant: &str) -> bool {
    let [written, meant] = [written, meant].map(|flag| flag.trim_start_matches('-'));
    nearest(written, std::iter::once(meant)).is_some()
}

/// Words of which one is meant: `a, b or c`.
pub(crate) fn either(words: &[&str]) -> String {
    match words {
        [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
        _ => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{AssignKey, DiskKey, FwCfgKey, Keyed};

    const KEYS: &[&str] = &["name", "cpus", "memory", "readonly", "disk"];

    #[test]
    fn a_typing_error_finds_its_word() {
        for (typed, meant) in [
            ("memroy", "memory"),
            ("Memory", "memory"),
            ("vcpus", "cpus"),
            ("cpu", "cpus"),
            ("mem", "memory"),
            ("disks", "disk"),
            ("read-only", "readonly"),
            ("nmae", "name"),
        ] {
            assert_eq!(nearest(typed, KEYS.iter().copied()), Some(meant), "{typed}");
        }
    }

    #[test]
    fn a_key_of_another_vmm_is_answered_where_its_own_key_is_valid() {
        assert_eq!(of_others("romfile", &["address", "rom"]), Some("rom"));
        assert_eq!(of_others("romfile", &["path", "model"]), None);
        assert_eq!(of_others("cdrom", &["path", "model"]), Some("model=ahci-cd"));
        assert_eq!(of_others("opt/x", &["name", "string"]), Some("name=opt/NAME,string=TEXT"));
        let keys = [DiskKey::ROWS, AssignKey::ROWS, FwCfgKey::ROWS];
        let keys: Vec<&str> = keys.into_iter().flatten().map(|row| row.name).collect();
        for (words, meant) in OF_OTHERS {
            assert!(keys.contains(&meant.split('=').next().unwrap()), "{meant}");
            assert!(words.iter().all(|word| !keys.contains(word)), "{words:?}");
        }
    }

    #[test]
    fn another_word_finds_none() {
        for word in ["", "network", "x", "ü", &"m".repeat(10_000)] {
            assert_eq!(nearest(word, KEYS.iter().copied()), None, "{word}");
        }
    }
}
