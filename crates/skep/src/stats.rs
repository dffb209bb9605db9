//! `skep stats`: what went through a VM's disks.

use std::io::Write;

use clap::Args;
use control::api::{Disk, Drive, Stats};

use crate::ask::{self, Failure, Whom};
use crate::table::{Side, Table, bytes, plain};

#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Arguments {
    #[command(flatten)]
    whom: Whom,
    /// Print JSON, all numbers exact
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments, output: &mut impl Write) -> Result<(), Failure> {
    let stats = arguments.whom.connect()?.stats()?;
    let text = if arguments.json { ask::json(&stats) } else { table(&stats) };
    Ok(output.write_all(text.as_bytes())?)
}

fn table(stats: &Stats) -> String {
    let number = |title| (title, Side::Right);
    let mut table = Table::new([
        ("DISK", Side::Left),
        number("READS"),
        number("WRITES"),
        number("FLUSHES"),
        number("DISCARDS"),
        number("ERRORS"),
        number("IGNORED"),
        number("HELD"),
        number("READ"),
        number("WRITTEN"),
        number("DIRECT"),
        ("COPIED", Side::Left),
    ]);
    for disk in &stats.disks {
        table.row([
            disk.name.clone(),
            disk.reads.to_string(),
            disk.writes.to_string(),
            disk.flushes.to_string(),
            disk.discards.to_string(),
            disk.errors.to_string(),
            disk.ignored.to_string(),
            disk.held.to_string(),
            bytes(disk.bytes_read),
            bytes(disk.bytes_written),
            bytes(disk.bytes_direct),
            copied(disk),
        ]);
    }
    let mut text = table.to_string();
    for disk in &stats.disks {
        if let Some(first) = &disk.held_since {
            text.push_str(&format!(
                "{} held, to be tried again by `skep resume`: {}.\n",
                disk.held,
                plain(first)
            ));
        }
    }
    text.push_str(&drives(&stats.drives));
    text
}

/// What is in CD drives, a line each.
pub fn drives(drives: &[Drive]) -> String {
    let line = |Drive { name, disc, .. }: &Drive| match disc {
        Some(disc) => format!("CD drive {name} holds {}.\n", plain(disc)),
        None => format!("CD drive {name} is empty.\n"),
    };
    drives.iter().map(line).collect()
}

/// How much was copied, and why.
fn copied(disk: &Disk) -> String {
    let copied = disk.bytes_copied;
    let reasons = [
        ("alignment", copied.alignment),
        ("asked for", copied.asked),
        ("page cache", copied.page_cache),
        ("sector emulation", copied.sector_emulation),
        ("image format", copied.image_format),
        ("transport", copied.transport),
    ];
    let reasons = reasons.into_iter().filter(|(_, number)| *number > 0);
    let reasons: Vec<String> = reasons.map(|(why, number)| format!("{} ({why})", bytes(number))).collect();
    if reasons.is_empty() { "none".to_owned() } else { reasons.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::api::Copied;

    #[test]
    fn a_disk_is_a_row_that_says_what_was_copied_and_why() {
        let disk = Disk {
            name: "/dev/sda".into(),
            reads: 12,
            bytes_read: 3 << 20,
            bytes_direct: (3 << 20) - 1536,
            bytes_copied: Copied { alignment: 1024, page_cache: 512, ..Copied::default() },
            ..Disk::default()
        };
        let held_since = Some("disk b: flush failed: why".to_owned());
        let quiet = Disk { name: "b".into(), held: 2, held_since, ..Disk::default() };
        let drive = |name: &str, disc: Option<&str>| Drive {
            name: name.into(),
            disc: disc.map(str::to_owned),
            leaving: None,
        };
        let drives = vec![drive("cd0", Some("b")), drive("cd1", None)];
        let text = table(&Stats { disks: vec![disk, quiet], drives });
        let wanted = "\
DISK      READS  WRITES  FLUSHES  DISCARDS  ERRORS  IGNORED  HELD   READ  WRITTEN   DIRECT  COPIED
/dev/sda     12       0        0         0       0        0     0  3 MiB      0 B  2.9 MiB  1 KiB (alignment), 512 B (page cache)
b             0       0        0         0       0        0     2    0 B      0 B      0 B  none
2 held, to be tried again by `skep resume`: disk b: flush failed: why.
CD drive cd0 holds b.
CD drive cd1 is empty.
";
        assert_eq!(text, wanted);
    }
}
