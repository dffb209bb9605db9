//! What a guest's kernel warns of, and which of it is known.

/// Warnings that are known, from the list in docs/pc.md.
fn known_warnings() -> Vec<&'static str> {
    let (_, list) =
        include_str!("../../../../docs/pc.md").split_once("## Warnings in the kernel's log").unwrap();
    let (_, list) = list.split_once("```text\n").unwrap();
    list.split_once("```").unwrap().0.lines().collect()
}

/// Prints what the kernel warned of, after a line that shows that it was looked at.
pub const WARNINGS: &str = r"say kernel $(uname -r)
    dmesg -r | grep '^<[0-4]>' | sed 's/^<[0-9]*>\[ *[0-9.]*\] /guest: warning /'";

/// The warnings of one guest that are not on the list. What follows a warning of that kind (registers, a call trace) goes
/// with it.
pub fn unknown_warnings<'a>(warnings: &[&'a str]) -> Vec<&'a str> {
    const BEGINS: &str = "------------[ cut here ]------------";
    const ENDS: &str = "---[ end trace";
    let known = known_warnings();
    let is_known = |line: &str| known.iter().any(|known| line.contains(known));
    let (mut unknown, mut lines) = (Vec::new(), warnings.iter().copied().peekable());
    while let Some(line) = lines.next() {
        if line == BEGINS && lines.peek().is_some_and(|subject| is_known(subject)) {
            lines.by_ref().find(|line| line.starts_with(ENDS));
        } else if !is_known(line) {
            unknown.push(line);
        }
    }
    unknown
}
