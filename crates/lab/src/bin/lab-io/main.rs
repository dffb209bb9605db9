//! `lab-io`: reads, writes and compares disks in the emulated host and in its guests. All of it by O_DIRECT,
//! so that what is measured and checked is the disk, not the page cache.

mod aio;
mod bench;
mod buffer;
mod cache;
mod device;
mod dm;
mod eject;
mod order;
mod original;
mod pattern;
mod sum;
mod talk;

use std::process::ExitCode;

use lab::order::mix;

const USAGE: &str = "\
usage:
  lab-io randread DEV BS QD SECONDS [SEED]   random reads of BS bytes, QD at once
  lab-io seqread  DEV BS QD SECONDS          sequential reads
  lab-io count    LOAD DEV BS QD TIMES       so many transfers of a load between two marks for whoever counts
                                             instructions: randread, seqread, randwrite or seqwrite
  lab-io fill     DEV OFFSET LEN BS SEED [scattered|whole]
                                             writes a pattern, BS bytes at once: the first 16 times alone, then up to
                                             16 such requests together, as far as they fit 2 MiB
  lab-io check    DEV OFFSET LEN BS SEED [scattered|whole]
                                             compares it; ends with 1 and the first offset that differs
  lab-io dm       NAME TABLE                 a device of the device mapper, made or changed; the table's lines may be
                                             separated by semicolons. With \"suspend\" for a table it keeps all requests
                                             until it gets one. Prints its path
  lab-io dm       remove-all                 removes all such devices that nobody has open
  lab-io write    DEV RUN SECONDS            writes records in order, flushes every few, and says how far it has flushed
  lab-io ordered  DEV RUN FLUSHED            looks whether all is there that was flushed up to record FLUSHED, and more
                                             if the disk shows so; ends with 1 and the first sector that is wrong
  lab-io cache    SOCKET FILE [FLUSHES]      an NBD server: a disk over a file, with a cache that is lost when the
                                             server is killed; after so many flushes it only pretends to flush
  lab-io eject    DEV                        has a CD drive let its disc go
  lab-io original DEV SERIAL                 writes what the lab's disk of this serial number held at first, where it
                                             differs
  lab-io sum                                 SHA-256 of standard input
  lab-io talk     SOCKET                     sends standard input to a Unix socket, and prints what comes back
Sizes in bytes, or with K, M or G. LEN 0 means up to the end. The memory of fill and check is scattered pages, or one
whole piece in a huge page (2 MiB; there must be one: /proc/sys/vm/nr_hugepages).";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["randread", device, bs, qd, seconds] => bench::random(device, bs, qd, seconds, "1"),
        ["randread", device, bs, qd, seconds, seed] => bench::random(device, bs, qd, seconds, seed),
        ["seqread", device, bs, qd, seconds] => bench::sequential(device, bs, qd, seconds),
        ["count", load, device, bs, qd, times] => bench::counted(load, device, bs, qd, times),
        ["fill" | "check", device, offset, length, bs, seed, pieces @ ..] if pieces.len() <= 1 => {
            let stretch = [*device, *offset, *length, *bs, *seed];
            let pieces = pieces.first().copied().unwrap_or("scattered");
            if words[0] == "fill" { pattern::fill(stretch, pieces) } else { pattern::check(stretch, pieces) }
        }
        ["dm", "remove-all"] => dm::remove_all(),
        ["dm", name, "suspend"] => dm::suspend(name),
        ["dm", name, table] => dm::map(name, table),
        ["write", device, run, seconds] => order::write(device, run, seconds),
        ["ordered", device, run, flushed] => order::check(device, run, flushed),
        ["cache", socket, file] => cache::serve(socket, file, None),
        ["cache", socket, file, flushes] => cache::serve(socket, file, Some(flushes)),
        ["eject", device] => eject::eject(device),
        ["original", device, serial] => original::restore(device, serial),
        ["sum"] => sum::sum(),
        ["talk", socket] => talk::talk(socket),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(line) => {
            println!("{} {line}", words[0]);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lab-io {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// A number with K, M or G.
fn size(text: &str) -> Result<u64, String> {
    let zero = text == "0";
    let size = text.parse::<lab::Size>().map(lab::Size::as_bytes);
    if zero { Ok(0) } else { size.map_err(|error| error.to_string()) }
}

/// A plain number.
fn number<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{what} {text:?} is not a number that fits"))
}
