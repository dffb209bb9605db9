//! The word that a person meant.

/// The one of `valid` that `word` most looks like, if one does: it begins with the same letters, or few typing
/// errors lie between them (a third of its letters, and always one).
pub(crate) fn nearest(word: &str, valid: &'static [&'static str]) -> Option<&'static str> {
    // Nothing so long is a typing error, and the distance takes time in the square of the length.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase();
    let distance = |candidate: &&str| match candidate.starts_with(&word) && word.len() >= 2 {
        true => 1,
        false => distance(&word, candidate),
    };
    let best = *valid.iter().min_by_key(|candidate| distance(candidate))?;
    (distance(&best) <= (best.len() / 3).max(1)).then_some(best)
}

/// How many letters must be inserted, removed, replaced, or swapped with their neighbour to make `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(nearest(typed, KEYS), Some(meant), "{typed}");
        }
    }

    #[test]
    fn another_word_finds_none() {
        for word in ["", "network", "x", "ü", &"m".repeat(10_000)] {
            assert_eq!(nearest(word, KEYS), None, "{word}");
        }
    }

    #[test]
    fn the_distance_counts_errors() {
        for (a, b, errors) in
            [("", "", 0), ("", "abc", 3), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "xbcd", 2)]
        {
            assert_eq!(distance(a, b), errors, "{a} {b}");
            assert_eq!(distance(b, a), errors, "{b} {a}");
        }
    }
}
