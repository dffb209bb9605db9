//! What variables a store holds. EDK II, MdeModulePkg/Include/Guid/VariableFormat.h: authenticated variables, which is what
//! firmware with Secure Boot has.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// EFI_GLOBAL_VARIABLE (UEFI 2.10, 3.3).
const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// gEfiSecureBootEnableDisableGuid.
const SECURE_BOOT_ENABLE: [u8; 16] =
    [0xf0, 0xa3, 0x0b, 0xf0, 0x73, 0xaf, 0x3c, 0x4d, 0x9a, 0x0a, 0x1e, 0x9f, 0xe0, 0xfd, 0x0c, 0x52];
/// Where a firmware volume's header says how long it is.
const HEADER_LEN_AT: usize = 48;
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
    /// Its name.
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

/// All variables that firmware finds in a store with this file's bytes.
pub fn variables(file: &[u8]) -> Result<Vec<Variable>, Damaged> {
    let mut at = HEADER_LEN_AT;
    let damaged = |at, why| Damaged { at, why };
    let len = file.get(at..at + 2).ok_or(damaged(at, ENDS))?;
    at = usize::from(u16::from_le_bytes([len[0], len[1]]));
    let rest = file.get(at..).ok_or(damaged(at, ENDS))?;
    let (store, _) = StoreHeader::ref_from_prefix(rest).map_err(|_| damaged(at, ENDS))?;
    if (store.format, store.state) != (FORMATTED, HEALTHY) {
        return Err(damaged(at, "it is not formatted and healthy"));
    }
    let end = at.saturating_add(store.size.get() as usize).min(file.len());
    at += size_of::<StoreHeader>();
    let (mut there, mut replaced) = (Vec::new(), Vec::new());
    while let Some((header, rest)) = header(file.get(at..end).unwrap_or_default()) {
        let lens = [header.name_len.get(), header.data_len.get()].map(|len| len as usize);
        let [name_len, data_len] = if header.state == BEGUN { [0, 0] } else { lens };
        let body = name_len.checked_add(data_len).and_then(|len| rest.get(..len));
        let body = body.ok_or(damaged(at, "a variable ends behind the store"))?;
        let (name, data) = body.split_at(name_len);
        if let ADDED | REPLACED = header.state {
            let units = name.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
            let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
            let name = String::from_utf16(&units).map_err(|_| damaged(at, "a name is no text"))?;
            let variable = Variable { name, vendor: header.vendor, data: data.to_vec() };
            if header.state == REPLACED {
                replaced.push(variable);
            } else if there.iter().any(|other| variable.is_another(other)) {
                return Err(damaged(at, "a variable is there twice"));
            } else {
                there.push(variable);
            }
        }
        at = (at + size_of::<Header>() + body.len()).next_multiple_of(ALIGN);
    }
    // Where nothing came in its place yet, the old one counts.
    replaced.retain(|old| !there.iter().any(|new| old.is_another(new)));
    there.append(&mut replaced);
    Ok(there)
}

fn header(bytes: &[u8]) -> Option<(&Header, &[u8])> {
    let (header, rest) = Header::ref_from_prefix(bytes).ok()?;
    (header.start.get() == START).then_some((header, rest))
}

impl Variable {
    /// Whether it has the name and the vendor of the other.
    fn is_another(&self, other: &Variable) -> bool {
        (&self.name, self.vendor) == (&other.name, other.vendor)
    }
}

/// Whether a firmware with these variables starts only what is signed: it has a platform key, and is not told to be lenient.
pub fn secure_boot(variables: &[Variable]) -> bool {
    let get = |name: &str, vendor| {
        variables.iter().find(|one| one.name == name && one.vendor == vendor).map(|one| &one.data[..])
    };
    get("PK", GLOBAL).is_some_and(|key| !key.is_empty())
        && get("SecureBootEnable", SECURE_BOOT_ENABLE).is_none_or(|enabled| enabled == [1])
}

#[cfg(test)]
mod tests {
    use super::super::volume::tests::head;
    use super::*;

    const GUID: [u8; 16] = [5; 16];

    /// A store of these variables, each with its state.
    fn store(variables: &[(&str, [u8; 16], u8, &[u8])]) -> Vec<u8> {
        let mut file = head(true, 8192);
        file.resize(8192, 0xff);
        let mut bytes = file[72..88].to_vec();
        bytes.extend(8000u32.to_le_bytes());
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
        let expected = [("a", vec![1]), ("c", vec![5, 5]), ("d", vec![]), ("b", vec![3])];
        assert_eq!(named(&file), expected.map(|(name, data)| (name.to_owned(), data)));
    }

    #[test]
    fn what_no_firmware_leaves_is_damage() {
        let why = |file: &[u8]| variables(file).unwrap_err().why;
        assert!(why(&store(&[("a", GUID, ADDED, &[1]), ("a", GUID, ADDED, &[2])])).contains("twice"));
        let mut long = store(&[("a", GUID, ADDED, &[1])]);
        // The length of its data.
        long[72 + 28 + 40..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(why(&long).contains("behind the store"));
        let mut new = store(&[]);
        new[72 + 20] = 0xff;
        assert!(why(&new).contains("not formatted"));
        assert!(why(&[0; 49]).contains("ends") && why(&[0xff; 60]).contains("ends"));
    }

    #[test]
    fn secure_boot_is_on_where_there_is_a_platform_key_and_nothing_turns_it_off() {
        let on = |all: &[(&str, [u8; 16], u8, &[u8])]| secure_boot(&variables(&store(all)).unwrap());
        let key = ("PK", GLOBAL, ADDED, &[1, 2][..]);
        assert!(on(&[key]) && on(&[key, ("SecureBootEnable", SECURE_BOOT_ENABLE, ADDED, &[1])]));
        assert!(!on(&[key, ("SecureBootEnable", SECURE_BOOT_ENABLE, ADDED, &[0])]));
        assert!(!on(&[]) && !on(&[("PK", GLOBAL, ADDED, &[])]) && !on(&[("PK", GUID, ADDED, &[1])]));
        assert!(!on(&[("PK", GLOBAL, 0x3d, &[1])]), "it was deleted");
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
