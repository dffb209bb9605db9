//! `docs/vm.toml`, made from the table of keys.

use config::{Example, Key, Kind, Row};

/// The first version of skep, whose keys are not said to be new.
const FIRST: &str = "0.1";
/// Columns of a text.
const WIDTH: usize = 118;

const BEGINNING: &str = "\
# A VM, described: every key there is, with its default where it has one.
#
#   skep run --config vm.toml                  starts it
#   skep run --config vm.toml --memory 6G      the same with more memory: flags win over the file
#   skep run --config vm.toml --disk /dev/sdb  the same with one more disk: disks and devices add up
#   skep run --config vm.toml --check-config   prints what the VM would be, and starts nothing
#
# Each key is a flag of the same name, with the same values. Relative paths are relative to the working
# directory.
";

/// What is said before each of the disks that are shown.
const DISKS: [&str; 8] = [
    "",
    "",
    "Another disk on the same NVMe controller, its namespace 2.",
    "An image file. It and every file that it stands on are locked, in our way and in QEMU's: no file is used that another \
     program writes, and none is written that another program uses; programs that only read may share it (see force).",
    "A raw file.",
    "A namespace of an NVMe controller that skep drives itself: the guest's requests become the controller's, with no system \
     call and no copy in between. The host's kernel does not see the controller meanwhile. Any model.",
    "A disk that a server offers by the NBD protocol (qemu-nbd, nbdkit and others): nbd://HOST:PORT/EXPORT or \
     nbd+unix:///EXPORT?socket=PATH; timeout=SECONDS after a ? is how long a request may take (30).",
    "A disk in this host's memory: empty at first, and gone when the VM ends.",
];

/// The text of `docs/vm.toml`: a file with every key.
pub fn text() -> String {
    let mut text = BEGINNING.to_owned();
    for key in Key::ALL {
        let row = key.row();
        text.push('\n');
        text.extend(in_file(row).split('\n').map(|line| fill("# ", "# ", line)));
        match row.kind {
            // Its keys stand in the disks that are shown.
            Kind::Tables(..) if *key == Key::Disk => {}
            Kind::Tables(_, rows) | Kind::SwitchOrTable(rows) => text += &aligned("#   ", "  ", rows),
            _ => {}
        }
        if let Example::Lines(lines) = row.example {
            text += lines;
            text.push('\n');
        }
    }
    let mut explained = Vec::new();
    let Kind::Tables(_, rows) = Key::Disk.row().kind else { panic!("a VM has several disks") };
    for (n, about) in DISKS.iter().enumerate() {
        if n > 0 {
            text.push('\n');
        }
        if !about.is_empty() {
            text += &fill("# ", "# ", about);
        }
        text += "[[disk]]\n";
        text += &disk(rows, n, &mut explained);
    }
    text
}

/// One of the disks that are shown. Each key is explained where it is first.
fn disk(rows: &'static [Row], number: usize, explained: &mut Vec<&'static str>) -> String {
    let line = |row: &'static Row| match row.example {
        Example::Disks(lines) => lines.iter().find(|(n, _)| *n == number).map(|(_, line)| (row, *line)),
        Example::None | Example::Lines(_) => None,
    };
    let lines: Vec<(&Row, &str)> = rows.iter().filter_map(line).collect();
    let widest = lines.iter().map(|(_, line)| line.len()).max().unwrap_or_default();
    let texts = lines.into_iter().map(|(row, line)| {
        if explained.contains(&row.name) {
            return format!("{line}\n");
        }
        explained.push(row.name);
        beside(&format!("{line:widest$} # "), &in_file(row))
    });
    texts.collect()
}

/// The keys of a table with what is said of each in a file.
fn aligned(before: &str, between: &str, rows: &[Row]) -> String {
    let widest = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    rows.iter().map(|row| beside(&format!("{before}{:widest$}{between}", row.name), &in_file(row))).collect()
}

/// A remark that stands behind something, below itself where it takes several lines.
fn beside(first: &str, text: &str) -> String {
    let hash = first.rfind('#');
    let next = first.char_indices().map(|(at, _)| if Some(at) == hash { '#' } else { ' ' });
    fill(first, &next.collect::<String>(), text)
}

/// All that is said of a key in a file.
fn in_file(row: &Row) -> String {
    let Row { since, help, kind, default, more, .. } = *row;
    let of = row.of.in_words().map(|of| of + ": ").unwrap_or_default();
    let words: Vec<&str> = kind.words().collect();
    // Those of a choice that is all of the value, and that the text does not explain one by one.
    let choice = kind.takes() == words.join("|") && matches!(kind, Kind::Text(_));
    let unexplained = choice && words.len() > 1 && !words.iter().all(|word| help.contains(word));
    let default = match kind {
        Kind::Switch | Kind::SwitchOrTable(_) if default.starts_with("off") => {
            default.replacen("off", "false", 1)
        }
        Kind::Switch | Kind::SwitchOrTable(_) => default.replacen("on", "true", 1),
        _ => default.into(),
    };
    let parts = [
        format!("{of}{help}."),
        if unexplained { format!("One of {}.", words.join(", ")) } else { String::new() },
        more.into(),
        if since == FIRST { String::new() } else { format!("Since version {since}.") },
        if default.is_empty() { String::new() } else { format!("Default: {default}") },
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if let [help] = &parts[..] { help.trim_end_matches('.').into() } else { parts.join(" ") }
}

/// Words in lines of at most [`WIDTH`] columns: the first line behind `first`, the others behind `next`.
fn fill(first: &str, next: &str, words: &str) -> String {
    let columns = |text: &str| text.chars().count();
    let (mut text, mut line, mut behind) = (String::new(), first.to_owned(), "");
    for word in words.split(' ') {
        if columns(&line) + columns(behind) + columns(word) > WIDTH {
            text = text + &line + "\n";
            (line, behind) = (next.to_owned(), "");
        }
        line = line + behind + word;
        behind = " ";
    }
    text + &line + "\n"
}
