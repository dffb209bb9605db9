//! Names for the emulated host's devices in the command, such as `@nvme0`: their addresses differ with the IOMMU.

use std::collections::BTreeMap;

/// Where a device sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Its name, without the `@`.
    pub name: String,
    /// Its slot on the root bus, or that of the root port before it.
    pub slot: u8,
    /// Whether it is behind a root port.
    pub behind_port: bool,
}

/// The words with each `@NAME` in them replaced by the address of that device. A name that no device has stays, and so
/// does one that follows a letter or a digit, as in `user@host`.
pub fn with_addresses(words: &[String], addresses: &BTreeMap<String, String>) -> Vec<String> {
    words.iter().map(|word| replaced(word, addresses)).collect()
}

fn replaced(word: &str, addresses: &BTreeMap<String, String>) -> String {
    let mut parts = word.split('@');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end =
            part.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(part.len());
        let (name, rest) = part.split_at(end);
        match addresses.get(name) {
            Some(address) if !whole.ends_with(|c: char| c.is_alphanumeric()) => {
                whole.extend([address.as_str(), rest]);
            }
            _ => whole.extend(["@", part]),
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_become_addresses_wherever_they_stand() {
        let addresses = [("nvme0", "0000:01:00.0"), ("nvme10", "0000:0b:00.0")];
        let addresses = addresses.map(|(name, address)| (name.to_owned(), address.to_owned())).into();
        for (word, wanted) in [
            ("@nvme0", "0000:01:00.0"),
            (
                "skep run --assign @nvme0 --disk nvme=@nvme10,namespace=1",
                "skep run --assign 0000:01:00.0 --disk nvme=0000:0b:00.0,namespace=1",
            ),
            ("--assign=@nvme0", "--assign=0000:01:00.0"),
            ("@nvme1 @nvme00 @ @@", "@nvme1 @nvme00 @ @@"),
            ("root@nvme0", "root@nvme0"),
            ("echo \"@step text\"", "echo \"@step text\""),
            ("", ""),
        ] {
            assert_eq!(with_addresses(&[word.to_owned()], &addresses), [wanted]);
        }
    }
}
