//! What people read about the keys comes from their table.

mod file;

use config::{Example, File, Finding, Key, Kind, Problem, Row};

/// The rows of all tables.
fn rows() -> Vec<&'static Row> {
    let mut rows: Vec<&Row> = Key::ALL.iter().map(|key| key.row()).collect();
    for key in Key::ALL {
        if let Kind::Tables(_, more) | Kind::SwitchOrTable(more) = key.row().kind {
            rows.extend(more);
        }
    }
    rows
}

/// With `BLESS=1` in the environment the file is written instead; look at the difference before committing it.
#[test]
fn the_documented_example_is_what_the_table_of_keys_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vm.toml");
    let text = file::text();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap();
    assert!(kept == text, "docs/vm.toml is other than the table of keys says, which is:\n{text}");
}

#[test]
fn the_documented_example_says_of_every_key_what_it_is_and_what_holds_without_it() {
    let words = |text: &str| {
        let words = text.split_whitespace().filter(|word| *word != "#");
        words.collect::<Vec<&str>>().join(" ")
    };
    let text = words(&file::text());
    for row in rows() {
        assert!(text.contains(&words(row.help)), "{}: {}", row.name, row.help);
        let default = row.default.trim_start_matches("off").trim_start_matches("on");
        assert!(text.contains(default), "{}: {default}", row.name);
        assert!(text.contains(&words(row.more)), "{}: {}", row.name, row.more);
    }
}

#[test]
fn a_key_has_a_name_of_its_own_and_came_with_a_version_that_there_is() {
    let version = |text: &str| text.split('.').map(|part| part.parse::<u32>().unwrap()).collect::<Vec<u32>>();
    for row in rows() {
        assert!(version(row.since) <= version(env!("CARGO_PKG_VERSION")), "{}: {}", row.name, row.since);
        assert!(
            row.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        );
        assert!(!row.help.is_empty() && !row.help.ends_with('.'), "{}: {}", row.name, row.help);
    }
    let names: std::collections::HashSet<&str> = Key::ALL.iter().map(|key| key.name()).collect();
    assert_eq!(names.len(), Key::ALL.len());
}

/// What a shell completes is what the description takes.
#[test]
fn every_word_that_the_table_offers_for_a_value_is_one() {
    let mut tried = 0;
    for key in Key::ALL {
        for word in key.row().kind.words() {
            tried += 1;
            let flags = [(Key::Memory, "1G".to_owned()), (*key, word.to_owned())];
            let read = config::Description::read(None, &flags);
            let wrong = |finding: &&Finding| {
                matches!(finding.problem, Problem::WrongType { .. } | Problem::Invalid(_))
            };
            assert_eq!(read.wrong().iter().find(wrong), None);
        }
    }
    assert!(tried > 30, "{tried}");
}

#[test]
fn every_key_of_a_disk_is_shown_in_a_disk_and_every_other_in_lines_of_its_own() {
    for key in Key::ALL {
        let Kind::Tables(_, rows) = key.row().kind else { continue };
        let is_disk = *key == Key::Disk;
        for row in rows {
            let shown = matches!(row.example, Example::Disks([_, ..]));
            assert_eq!(shown, is_disk, "{} {}", key.name(), row.name);
        }
    }
}

/// What is in a table but is not printed would be lost for whoever reads the file again.
#[test]
fn every_key_that_is_shown_is_printed() {
    let bytes = file::text().into_bytes();
    let vm = config::describe(Some(File { name: "vm.toml", bytes: &bytes }), &[]).unwrap();
    let printed = vm.to_toml();
    let shown = |line: &&str| !line.starts_with('#');
    for row in rows() {
        let lines: Vec<&str> = match row.example {
            Example::Lines(lines) => vec![lines],
            Example::Disks(lines) => lines.iter().map(|(_, line)| *line).collect(),
            Example::None => Vec::new(),
        };
        if lines.iter().any(shown) {
            assert!(printed.contains(&format!("\n{} = ", row.name)) || row.name == "name", "{}", row.name);
        }
    }
}

/// A row alone changes nothing: what it stands for must be read. No key takes a number with a fraction.
#[test]
fn every_key_of_every_table_is_read() {
    let beside = |key: Key| match key {
        Key::Assign => "address = \"01:00.0\"",
        Key::FwCfg => "name = \"opt/a\"\nstring = \"b\"",
        Key::Disk => "path = \"d\"",
        _ => "",
    };
    for key in Key::ALL {
        let name = key.name();
        let mut files = vec![(name, format!("{name} = 1.5\n"))];
        let (head, rows) = match key.row().kind {
            Kind::Tables(_, rows) => (format!("[[{name}]]\n{}", beside(*key)), rows),
            Kind::SwitchOrTable(rows) => (format!("[{name}]"), rows),
            _ => (String::new(), &[][..]),
        };
        files.extend(rows.iter().map(|row| {
            let others: String =
                head.lines().filter(|line| !line.starts_with(row.name)).map(|l| format!("{l}\n")).collect();
            (row.name, format!("{others}{} = 1.5\n", row.name))
        }));
        for (name, text) in files {
            let file = File { name: "vm.toml", bytes: text.as_bytes() };
            let read = config::Description::read(Some(file), &[]);
            let wrong =
                |finding: &Finding| matches!(finding.problem, Problem::WrongType { key, .. } if key == name);
            assert!(read.wrong().iter().any(wrong), "{text}: {:?}", read.wrong());
        }
    }
}
