//! What variables a store holds. EDK II, MdeModulePkg/Include/Guid/VariableFormat.h: authenticated variables, which is what
//! firmware with Secure Boot has.

use std::collections::HashMap;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::ftw;
use super::volume::{BLOCK, is_kept};

/// EFI_GLOBAL_VARIABLE (UEFI 2.10, 3.3).
const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// gEfiSecureBootEnableDisableGuid.
const SECURE_BOOT_ENABLE: [u8; 16] =
    [0xf0, 0xa3, 0x0b, 0xf0, 0x73, 0xaf, 0x3c, 0x4d, 0x9a, 0x0a, 0x1e, 0x9f, 0xe0, 0xfd, 0x0c, 0x52];
/// Where a firmware volume's header says how long it is.
const HEADER_LEN_AT: usize = 48;
/// gEfiAuthenticatedVariableGuid: the stores that are read here. Those of the other kind have no keys.
const AUTHENTICATED: [u8; 16] =
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
/// What follows the variables in their half: the log of events and the working block.
const NOT_VARIABLES: usize = 2 * BLOCK;
const FORMATTED: u8 = 0x5a;
const HEALTHY: u8 = 0xfe;
const ENDS: &str = "the file ends";
/// A variable's header begins so.
const START: u16 = 0x55aa;
/// Where headers may begin.
const ALIGN: usize = 4;
/// States; each step clears bits of the one before. Nothing is known of a variable yet.
const BEGUN: u8 = 0xff;
/// It is there (VAR_ADDED).
const ADDED: u8 = 0x3f;
/// It is there until another one comes in its place (with VAR_IN_DELETED_TRANSITION).
const REPLACED: u8 = 0x3e;

/// VARIABLE_STORE_HEADER.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct StoreHeader {
    signature: [u8; 16],
    size: U32,
    format: u8,
    state: u8,
    reserved: [u8; 6],
}

/// AUTHENTICATED_VARIABLE_HEADER.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
struct Header {
    start: U16,
    state: u8,
    reserved: u8,
    attributes: U32,
    monotonic_count: U64,
    time: [u8; 16],
    public_key: U32,
    name_len: U32,
    data_len: U32,
    vendor: [u8; 16],
}

/// A variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name; U+FFFD stands for what is no UTF-16 in it.
    pub name: String,
    /// Whose it is: a GUID, as it is in memory.
    pub vendor: [u8; 16],
    /// Its value.
    pub data: Vec<u8>,
}

/// A store that no firmware leaves, whenever it is interrupted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the variable store is damaged at byte {at}: {why}")]
pub struct Damaged {
    /// Where, from the file's beginning.
    pub at: usize,
    /// What is wrong there.
    pub why: &'static str,
}

/// All variables in a store with this file's bytes, once [`unfinished`](super::unfinished) is done. A store of the kind without
/// authentication has none here: nothing in it turns Secure Boot on.
pub fn variables(file: &[u8]) -> Result<Vec<Variable>, Damaged> {
    let file = &*ftw::finished(file);
    let mut at = HEADER_LEN_AT;
    let damaged = |at, why| Damaged { at, why };
    let len = file.get(at..at + 2).ok_or(damaged(at, ENDS))?;
    at = usize::from(u16::from_le_bytes([len[0], len[1]]));
    let rest = file.get(at..).ok_or(damaged(at, ENDS))?;
    let (store, _) = StoreHeader::ref_from_prefix(rest).map_err(|_| damaged(at, ENDS))?;
    if store.signature != AUTHENTICATED {
        return Ok(Vec::new());
    }
    if !is_kept(file) {
        return Err(damaged(0, "its volume is not one that OVMF keeps, and it is formatted anew"));
    }
    // All that is not for the log of events and the working block (VariableNonVolatile.c relies on it).
    let room = (file.len() / 2).checked_sub(NOT_VARIABLES + at);
    if room != Some(store.size.get() as usize) {
        return Err(damaged(at, "its length is not that of the store in this file"));
    }
    if (store.format, store.state) != (FORMATTED, HEALTHY) {
        return Err(damaged(at, "it is not formatted and healthy"));
    }
    let end = at + store.size.get() as usize;
    at += size_of::<StoreHeader>();
    let (mut there, mut replaced) = (HashMap::new(), Vec::new());
    while let Some((header, rest)) = header(file.get(at..end).unwrap_or_default()) {
        let [name_len, data_len] = header.lens();
        let body = name_len.checked_add(data_len).and_then(|len| rest.get(..len));
        let body = body.ok_or(damaged(at, "a variable ends behind the store"))?;
        let (name, data) = body.split_at(name_len);
        if let ADDED | REPLACED = header.state {
            // Two names may look the same: a guest can write what is no UTF-16.
            let shown = text(name).ok_or(damaged(at, "a name is no text that ends with a zero"))?;
            let name = (name, shown);
            if header.state == REPLACED {
                replaced.push(((name, header.vendor), (at, data)));
            } else if there.insert((name, header.vendor), (at, data)).is_some() {
                return Err(damaged(at, "a variable is there twice"));
            }
        }
        at = (at + size_of::<Header>() + body.len()).next_multiple_of(ALIGN);
    }
    // Where nothing came in its place yet, the old one counts: the last of them, if there are several.
    for (name, old) in replaced.into_iter().rev() {
        there.entry(name).or_insert(old);
    }
    let mut all: Vec<_> = there.into_iter().collect();
    all.sort_by_key(|(_, (at, _))| *at);
    let variable =
        |(((_, name), vendor), (_, data)): (_, (_, &[u8]))| Variable { name, vendor, data: data.to_vec() };
    Ok(all.into_iter().map(variable).collect())
}

impl Header {
    /// The lengths of name and data. Before all of the header is written there are none (EDK II, VariableParsing.c,
    /// NameSizeOfVariable and DataSizeOfVariable).
    fn lens(&self) -> [usize; 2] {
        let lens = [self.name_len.get(), self.data_len.get()];
        let begun = self.state == BEGUN || lens.contains(&u32::MAX) || self.attributes.get() == u32::MAX;
        if begun { [0, 0] } else { lens.map(|len| len as usize) }
    }
}

/// The text of a name: UTF-16 up to a zero, which is its last unit.
fn text(name: &[u8]) -> Option<String> {
    let units: Vec<u16> = name.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    let (zero, text) = units.split_last()?;
    let ends = *zero == 0 && !text.is_empty() && !text.contains(&0) && name.len().is_multiple_of(2);
    ends.then(|| String::from_utf16_lossy(text))
}

fn header(bytes: &[u8]) -> Option<(&Header, &[u8])> {
    let (header, rest) = Header::ref_from_prefix(bytes).ok()?;
    (header.start.get() == START).then_some((header, rest))
}

/// Who may say what a firmware starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecureBoot {
    /// Nobody: it starts anything.
    Off,
    /// Who has the key of its owner.
    On,
    /// Everybody: that key was made for tests, and is published.
    ByTestKey,
}

/// What certificates of published keys have in their names: Debian's snakeoil key (package ovmf, README.Debian), and the keys that
/// came with other firmware ("PKfail", CVE-2024-8105).
const TEST_KEYS: [&[u8]; 3] = [b"SnakeOil", b"DO NOT TRUST", b"DO NOT SHIP"];

/// Whether a firmware with these variables starts only what is signed: it has a platform key, and is not told to be lenient.
pub fn secure_boot(variables: &[Variable]) -> SecureBoot {
    let get = |name: &str, vendor| {
        variables.iter().find(|one| one.name == name && one.vendor == vendor).map(|one| &one.data[..])
    };
    let Some(key) = get("PK", GLOBAL).filter(|key| !key.is_empty()) else { return SecureBoot::Off };
    let test = |name: &&[u8]| key.windows(name.len()).any(|part| part == *name);
    match get("SecureBootEnable", SECURE_BOOT_ENABLE) {
        Some(enabled) if enabled != [1] => SecureBoot::Off,
        _ if TEST_KEYS.iter().any(test) => SecureBoot::ByTestKey,
        _ => SecureBoot::On,
    }
}

#[cfg(test)]
mod tests {
    use super::super::volume::tests::head;
    use super::*;

    const GUID: [u8; 16] = [5; 16];

    /// Of a file with two halves of 16 KiB; the variables have 8 KiB.
    const LEN: usize = 32768;

    /// A store of these variables, each with its state.
    fn store(variables: &[(&str, [u8; 16], u8, &[u8])]) -> Vec<u8> {
        let mut file = head(true, LEN as u64);
        file.resize(LEN, 0xff);
        let mut bytes = file[72..88].to_vec();
        bytes.extend((LEN as u32 / 2 - 8192 - 72).to_le_bytes());
        bytes.extend([FORMATTED, HEALTHY, 0, 0, 0, 0, 0, 0]);
        for (name, vendor, state, data) in variables {
            let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
            bytes.extend(START.to_le_bytes());
            bytes.extend([*state, 0, 7, 0, 0, 0]);
            bytes.extend([0; 28]);
            bytes.extend((name.len() as u32).to_le_bytes());
            bytes.extend((data.len() as u32).to_le_bytes());
            bytes.extend(vendor);
            if *state != BEGUN {
                bytes.extend(name);
                bytes.extend(*data);
            }
            bytes.resize(bytes.len().next_multiple_of(ALIGN), 0xff);
        }
        file[72..72 + bytes.len()].copy_from_slice(&bytes);
        file
    }

    fn named(file: &[u8]) -> Vec<(String, Vec<u8>)> {
        variables(file).unwrap().into_iter().map(|variable| (variable.name, variable.data)).collect()
    }

    #[test]
    fn what_firmware_had_only_begun_is_not_there_and_what_it_was_to_replace_still_is() {
        let file = store(&[
            ("a", GUID, ADDED, &[1]),
            ("deleted", GUID, 0x3d, &[2]),
            ("b", GUID, REPLACED, &[3]),
            ("c", GUID, REPLACED, &[4]),
            ("c", GUID, ADDED, &[5, 5]),
            ("header", GUID, 0x7f, &[6]),
            ("d", GLOBAL, ADDED, &[]),
            ("begun", GUID, BEGUN, &[7]),
        ]);
        let expected = [("a", vec![1]), ("b", vec![3]), ("c", vec![5, 5]), ("d", vec![])];
        assert_eq!(named(&file), expected.map(|(name, data)| (name.to_owned(), data)));
    }

    #[test]
    fn of_a_clean_up_that_was_interrupted_the_copy_counts_from_which_the_firmware_goes_on() {
        let copy = store(&[("PK", GLOBAL, ADDED, &[1, 2]), ("a", GUID, ADDED, &[3])]);
        for half_done in [store(&[]), store(&[("a", GUID, ADDED, &[4]), ("a", GUID, ADDED, &[5])])] {
            let file = super::super::ftw::tests::torn(&half_done, &copy);
            assert_eq!(variables(&file), variables(&copy));
            assert_eq!(secure_boot(&variables(&file).unwrap()), SecureBoot::On);
        }
    }

    #[test]
    fn what_no_firmware_leaves_is_damage() {
        let why = |file: &[u8]| variables(file).unwrap_err().why;
        assert!(why(&store(&[("a", GUID, ADDED, &[1]), ("a", GUID, ADDED, &[2])])).contains("twice"));
        let mut long = store(&[("a", GUID, ADDED, &[1])]);
        // The length of its data.
        long[72 + 28 + 40..][..4].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
        assert!(why(&long).contains("behind the store"));
        let mut new = store(&[]);
        new[72 + 20] = 0xff;
        assert!(why(&new).contains("not formatted"));
        assert!(why(&[0; 49]).contains("ends") && why(&[0xff; 60]).contains("ends"));
        let mut other = new;
        other[72] ^= 0xff;
        assert_eq!(variables(&other), Ok(Vec::new()), "a store of the other kind is not read");
        let key = ("PK", GLOBAL, ADDED, &[1, 2][..]);
        let mut revision = store(&[key]);
        revision[55] = 1;
        assert!(why(&revision).contains("formatted anew"));
        let mut blocks = store(&[key]);
        blocks[61] = 0x20;
        assert!(why(&blocks).contains("formatted anew"));
        let mut small = store(&[key]);
        small[72 + 16..72 + 20].copy_from_slice(&4096u32.to_le_bytes());
        let mut short = store(&[key]);
        short[32..40].copy_from_slice(&(LEN as u64 / 2).to_le_bytes());
        assert!(why(&small).contains("its length is not that"));
        for file in [short, [store(&[key]), vec![0xff; 4096]].concat()] {
            assert!(why(&file).contains("formatted anew"));
        }
        let hidden = store(&[("a", GUID, 0x3d, &[0; 90]), key]);
        assert_eq!(named(&hidden).len(), 1);
        let mut open = hidden;
        // What was deleted has attributes that were never written: the firmware goes on behind its header.
        open[100 + 4..100 + 8].fill(0xff);
        assert!(variables(&open).is_err() || named(&open).is_empty());
        let mut nameless = store(&[key]);
        nameless[100 + 36..100 + 40].copy_from_slice(&2u32.to_le_bytes());
        assert!(why(&nameless).contains("a name is no text"));
    }

    #[test]
    fn a_guest_may_name_a_variable_by_what_is_no_utf_16_and_two_such_are_two() {
        let mut file = store(&[("a", GUID, ADDED, &[1]), ("b", GUID, ADDED, &[2])]);
        for name in [*b"a\0\0\0", *b"b\0\0\0"] {
            let at = file.windows(4).position(|part| part == name).unwrap();
            // Halves of a surrogate pair, alone.
            file[at..at + 2].copy_from_slice(&[name[0], 0xd8]);
        }
        let found = variables(&file).unwrap();
        assert_eq!(
            found.iter().map(|one| (&*one.name, one.data[0])).collect::<Vec<_>>(),
            [("\u{fffd}", 1), ("\u{fffd}", 2)]
        );
    }

    #[test]
    fn a_store_full_of_variables_is_read_in_a_moment() {
        // 260,000 of one letter: as many as 16 MiB hold.
        let mut empty = [&START.to_le_bytes()[..], &[ADDED], &[0; 57], b"a\0\0\0"].concat();
        empty[36] = 4;
        let mut file = head(true, 32 << 20);
        file.resize(32 << 20, 0xff);
        file[72 + 16..72 + 20].copy_from_slice(&((16u32 << 20) - 8192 - 72).to_le_bytes());
        file[72 + 20..72 + 22].copy_from_slice(&[FORMATTED, HEALTHY]);
        let many = ((16 << 20) - 8192 - 100) / 64;
        for n in 0..many {
            let at = 100 + n * 64;
            file[at..at + 64].copy_from_slice(&empty);
            file[at + 44..at + 48].copy_from_slice(&(n as u32).to_le_bytes());
        }
        assert_eq!(variables(&file).unwrap().len(), many);
    }

    #[test]
    fn secure_boot_is_on_where_there_is_a_platform_key_and_nothing_turns_it_off() {
        let how = |all: &[(&str, [u8; 16], u8, &[u8])]| secure_boot(&variables(&store(all)).unwrap());
        let on = |all: &[(&str, [u8; 16], u8, &[u8])]| how(all) == SecureBoot::On;
        let key = ("PK", GLOBAL, ADDED, &[1, 2][..]);
        assert!(on(&[key]) && on(&[key, ("SecureBootEnable", SECURE_BOOT_ENABLE, ADDED, &[1])]));
        assert!(!on(&[key, ("SecureBootEnable", SECURE_BOOT_ENABLE, ADDED, &[0])]));
        assert!(!on(&[]) && !on(&[("PK", GLOBAL, ADDED, &[])]) && !on(&[("PK", GUID, ADDED, &[1])]));
        assert!(!on(&[("PK", GLOBAL, 0x3d, &[1])]), "it was deleted");
        let public = ("PK", GLOBAL, ADDED, &b"\x30\x82O=SnakeOil1"[..]);
        assert_eq!(how(&[public]), SecureBoot::ByTestKey);
        assert_eq!(how(&[public, ("SecureBootEnable", SECURE_BOOT_ENABLE, ADDED, &[0])]), SecureBoot::Off);
    }

    /// How many bytes of data are found.
    fn held(file: &[u8]) -> usize {
        variables(file).unwrap_or_default().iter().map(|variable| variable.data.len()).sum()
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at in 72usize..600, with: [u8; 8]) {
            proptest::prop_assert!(held(&bytes) <= bytes.len());
            let mut file = store(&[("a", GUID, ADDED, &[1]), ("b", GUID, REPLACED, &[2; 40])]);
            file[at..at + 8].copy_from_slice(&with);
            proptest::prop_assert!(held(&file) <= file.len());
        }
    }
}
