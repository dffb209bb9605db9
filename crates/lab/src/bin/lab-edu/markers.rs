//! Memory that nobody may change.

use std::path::Path;
use std::time::Duration;

use crate::memory::Locked;
use crate::number;

/// Fills memory with a pattern, waits for a file to appear, and compares.
pub fn watch(size: &str, seed: &str, file: &str) -> Result<String, String> {
    let seed = number(seed)?;
    let length = usize::try_from(number(size)?).map_err(|e| e.to_string())?;
    let mut memory = Locked::new(length)?;
    (0..memory.words()).for_each(|index| memory.set(index, word(seed, index as u64)));
    let pages = memory.physical()?;
    println!("markers {seed} at {:#x}", pages.iter().max().ok_or("no memory is no mark")?);
    while !Path::new(file).exists() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let changed = (0..memory.words()).filter(|index| memory.get(*index) != word(seed, *index as u64));
    let changed: Vec<usize> = changed.collect();
    match changed.first() {
        None => Ok(format!("markers {seed} unchanged")),
        Some(first) => {
            let at = pages[first / 512] + (first % 512 * 8) as u64;
            Err(format!("{} words changed, the first at {at:#x}", changed.len()))
        }
    }
}

/// The word at this place (splitmix64).
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
