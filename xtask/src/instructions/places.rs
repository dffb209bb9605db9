//! Where skep spends its instructions: the plugin's blocks of code by function, from the program's own symbols.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::parse::{Place, Start};
use super::rows::amount;
use crate::bench;

/// How many functions are shown.
const SHOWN: usize = 40;

/// Shows skep's functions in its first start that did well.
pub fn show(starts: &[Start], said: &[Value], program: &str) -> Result<()> {
    let first =
        starts.iter().zip(said).find_map(|(start, said)| Some((start, said["found"]["place"].as_u64()?)));
    let (start, base) = first.context("no start of skep did well")?;
    let symbols = symbols(program)?;
    let all = by_function(&start.places, base, &symbols);
    let mut sorted: Vec<_> = all.iter().collect();
    sorted.sort_by_key(|(_, (instructions, _))| std::cmp::Reverse(*instructions));
    let mut lines = vec![["function", "instructions", "system calls"].map(str::to_owned).to_vec()];
    for (function, (instructions, calls)) in sorted.into_iter().take(SHOWN) {
        lines.push(vec![function.to_string(), amount(*instructions as f64), calls.to_string()]);
    }
    println!("\n{}", bench::format(&lines));
    Ok(())
}

/// A program's functions by address, the last of which ends with the program.
fn symbols(program: &str) -> Result<BTreeMap<u64, String>> {
    let output = Command::new("nm").args(["--demangle", "--defined-only", program]).output();
    let output = output.context("cannot start nm. Install it with: apt-get install -y binutils (as root)")?;
    let symbols = parse(&String::from_utf8_lossy(&output.stdout));
    ensure!(
        !symbols.is_empty(),
        "{program} has no symbols. Build it with them: CARGO_PROFILE_RELEASE_STRIP=none cargo xtask bench …"
    );
    Ok(symbols)
}

fn parse(text: &str) -> BTreeMap<u64, String> {
    let symbol = |line: &str| {
        let (address, rest) = line.split_once(' ')?;
        let (kind, name) = rest.split_once(' ')?;
        let is_code = ["t", "T", "w", "W", "i"].contains(&kind);
        Some((u64::from_str_radix(address, 16).ok()?, name.to_owned())).filter(|_| is_code)
    };
    text.lines().filter_map(symbol).collect()
}

/// Instructions and system calls by function; what lies before the first is other programs'.
fn by_function<'a>(
    places: &[Place],
    base: u64,
    symbols: &'a BTreeMap<u64, String>,
) -> BTreeMap<&'a str, (u64, u64)> {
    // Other programs and the vDSO lie far off: no program is so large.
    const MOST: u64 = 64 << 20;
    let mut sums = BTreeMap::new();
    for place in places {
        let inside = place.at.checked_sub(base).filter(|offset| *offset < MOST);
        let found = inside.and_then(|offset| symbols.range(..=offset).next_back());
        let sum: &mut (u64, u64) =
            sums.entry(found.map_or("(other programs)", |(_, name)| name)).or_default();
        sum.0 += place.instructions;
        sum.1 += place.system_calls;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_belongs_to_the_last_function_that_begins_before_it() {
        let symbols =
            parse("0000000000001000 T first\n0000000000001800 r data\n0000000000002000 t <a as b>::second\n");
        let place = |at, instructions| Place { at, instructions, system_calls: 1 };
        let base = 0x7000_0000;
        let places =
            [place(base + 0x1000, 1), place(base + 0x1fff, 2), place(base + 0x2000, 4), place(0x40, 8)];
        let found = by_function(&places, base, &symbols);
        assert_eq!(found["first"], (3, 2));
        assert_eq!(found["<a as b>::second"], (4, 1));
        assert_eq!(found["(other programs)"], (8, 1));
    }
}
