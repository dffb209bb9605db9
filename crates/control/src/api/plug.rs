//! Disks that come and go while the VM runs.

use std::fmt::{self, Display};
use std::str::FromStr;

use config::{
    Bounce, Buffers, Chain, DiskSource, FileDisk, Findings, Format, ModelName, OnError, Poll, Writes,
};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::endpoint::Ask;

/// Which disk is to be plugged in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Plug {
    /// The disk.
    #[serde(deserialize_with = "disk_or_flag")]
    pub disk: NewDisk,
}

impl Ask for Plug {
    fn example() -> Plug {
        let disk =
            NewDisk { path: Some("/dev/sdb".to_owned()), serial: Some("A".to_owned()), ..NewDisk::default() };
        Plug { disk }
    }
}

/// A disk with the keys of a `[[disk]]` in docs/vm.toml, which has their meanings. One of `path`, `nvme`, `nbd` and `ram` says
/// what holds its data; paths are absolute.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NewDisk {
    /// A block device or a file of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// An NVMe controller that skep drives itself, by PCI address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvme: Option<String>,
    /// A disk on an NBD server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbd: Option<String>,
    /// Memory of the host, of this size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram: Option<String>,
    /// What the guest sees; `ahci` if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Word<ModelName>>,
    /// The SATA controller; the first with a free port if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// How the file keeps the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Word<Format>>,
    /// Which files an image may lead to: paths, or `follow` for those in its folder.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
    /// The size of the blocks that the guest sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logical: Option<u32>,
    /// Whether a raw file gets all its room first.
    #[serde(skip_serializing_if = "is_off")]
    pub preallocate: bool,
    /// When data is copied on its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bounce: Option<Word<Bounce>>,
    /// How the kernel gets at guest RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffers: Option<Word<Buffers>>,
    /// How skep learns that a request is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll: Option<Word<Poll>>,
    /// Whether it is taken although somebody else uses it.
    #[serde(skip_serializing_if = "is_off")]
    pub force: bool,
    /// Whether the guest may only read.
    #[serde(skip_serializing_if = "is_off")]
    pub readonly: bool,
    /// Whether what the guest writes is thrown away at the end.
    #[serde(skip_serializing_if = "is_off")]
    pub snapshot: bool,
    /// The serial number that the guest sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The model that the guest sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// The firmware revision that the guest sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// What is done when this host fails a request of the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_error: Option<Word<OnError>>,
    /// Its place among what firmware boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootindex: Option<u16>,
}

fn is_off(switch: &bool) -> bool {
    !switch
}

impl From<&config::Disk> for NewDisk {
    fn from(disk: &config::Disk) -> NewDisk {
        let config::Disk {
            source,
            model,
            controller,
            writes,
            serial,
            product,
            firmware,
            on_error,
            boot_index,
            syntax: _,
        } = disk;
        let new = NewDisk {
            model: Some(Word(model.name())),
            controller: text(controller.as_ref()),
            readonly: *writes == Writes::Refused,
            snapshot: *writes == Writes::ThrownAway,
            serial: text(serial.as_ref()),
            product: text(product.as_ref()),
            firmware: text(firmware.as_ref()),
            on_error: on_error.map(Word),
            bootindex: boot_index.map(config::BootIndex::get),
            ..NewDisk::default()
        };
        match source {
            DiskSource::File(FileDisk {
                path,
                format,
                chain,
                logical,
                preallocate,
                bounce,
                buffers,
                poll,
                force,
            }) => NewDisk {
                path: Some(path.to_string()),
                format: format.map(Word),
                chain: chain.iter().map(Chain::to_string).collect(),
                logical: logical.map(config::LogicalBlock::bytes),
                preallocate: *preallocate,
                bounce: Some(Word(*bounce)),
                buffers: buffers.map(Word),
                poll: poll.map(Word),
                force: *force,
                ..new
            },
            DiskSource::Nvme { address, namespace: _, poll } => {
                NewDisk { nvme: Some(address.to_string()), poll: Some(Word(*poll)), ..new }
            }
            DiskSource::Nbd(address) => NewDisk { nbd: Some(address.to_string()), ..new },
            DiskSource::Ram(size) => NewDisk { ram: Some(size.to_string()), ..new },
        }
    }
}

fn text(value: Option<&impl Display>) -> Option<String> {
    value.map(ToString::to_string)
}

impl NewDisk {
    /// The disk, checked as that of a VM's description is.
    pub fn describe(&self) -> Result<config::Disk, Findings> {
        let keys = serde_json::to_value(self).expect("types of the API are JSON by construction");
        let keys = keys.as_object().into_iter().flatten();
        let items: Vec<String> = keys.flat_map(|(key, value)| items(key, value)).collect();
        config::describe_disk("the disk", &items.join(","), ModelName::Ahci)
    }
}

/// The items of `--disk` that say the same.
fn items(key: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(|value| items(key, value)).collect(),
        Value::Bool(on) => vec![format!("{key}={}", if *on { "on" } else { "off" })],
        Value::String(text) => vec![format!("{key}={}", text.replace(',', ",,"))],
        other => vec![format!("{key}={other}")],
    }
}

/// A disk; or the value of `skep run --disk`, which skep 0.1.0 sent.
fn disk_or_flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NewDisk, D::Error> {
    struct DiskOrFlag;

    impl<'de> Visitor<'de> for DiskOrFlag {
        type Value = NewDisk;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a disk as an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NewDisk, A::Error> {
            NewDisk::deserialize(MapAccessDeserializer::new(map))
        }

        fn visit_str<E: de::Error>(self, flag: &str) -> Result<NewDisk, E> {
            let disk = config::describe_disk("the disk", flag, ModelName::Ahci).map_err(E::custom)?;
            Ok(NewDisk::from(&disk))
        }
    }

    deserializer.deserialize_any(DiskOrFlag)
}

/// A value of a closed set of crate config, in JSON the word that descriptions have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word<T>(pub T);

impl<T: Display> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Word<T>, D::Error> {
        String::deserialize(deserializer)?.parse().map(Word).map_err(de::Error::custom)
    }
}

/// A disk that was plugged in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Plugged {
    /// The disk's name, by which it is unplugged again.
    pub disk: String,
    /// Where it is: `ahci 00:03.0, port 1`.
    pub place: String,
}

/// Which disk is to be unplugged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Unplug {
    /// The disk's name, as the statistics have it.
    pub disk: String,
}

impl Ask for Unplug {
    fn example() -> Unplug {
        Unplug { disk: "/dev/sdb".to_owned() }
    }
}

/// A disk that was unplugged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Unplugged {
    /// The disk's name.
    pub disk: String,
    /// Whether it is still open, because a request of the guest is under way.
    pub leaving: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_the_same_at_both_ends_however_it_was_described() {
        for flag in [
            "/dev/sdb",
            "/a,,b.img,serial=A,,B,product=P,firmware=1.0,on-error=pause,controller=c",
            "/i.qcow2,format=qcow2,chain=follow,chain=/base,,1.img,snapshot=on,force=on,buffers=plain",
            "/i.vmdk,format=vmdk,readonly=on,bounce=always",
            "/raw,format=raw,preallocate=on,poll=adaptive,buffers=registered,bootindex=3",
            "/raw,logical=512,on-error=report",
            "nbd=nbd://server/export,on-error=ignore",
            "ram=1G",
            "/dev/sdb,model=ahci-cd",
            "/dev/sdb,model=virtio-blk,poll=off",
            "/dev/sdb,model=nvme,poll=on",
            "nvme=03:00.0",
        ] {
            let disk = config::describe_disk("the disk", flag, ModelName::Ahci).unwrap();
            let sent = serde_json::to_string(&Plug { disk: NewDisk::from(&disk) }).unwrap();
            let Plug { disk: got } = serde_json::from_str(&sent).unwrap();
            assert_eq!(got.describe().unwrap(), disk, "{sent}");
            // As skep 0.1.0 sent it.
            let old = serde_json::json!({ "disk": disk.to_flag() }).to_string();
            assert_eq!(serde_json::from_str::<Plug>(&old).unwrap().disk, got, "{old}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_disk_is_said_with_the_key() {
        let plug = |disk: &str| serde_json::from_str::<Plug>(&format!(r#"{{"disk":{disk}}}"#));
        let wrong = |disk: &str| plug(disk).unwrap_err().to_string();
        assert!(wrong(r#"{"path":"/a","sreial":"A"}"#).contains("`sreial`"));
        assert!(wrong(r#"{"path":"/a","poll":"often"}"#).contains("adaptive"));
        assert!(wrong("7").contains("a disk as an object"));
        let refused = |disk: &str| plug(disk).unwrap().disk.describe().unwrap_err().to_string();
        assert!(refused("{}").contains("path=/dev/sda"));
        assert!(refused(r#"{"path":"/a","readonly":true,"snapshot":true}"#).contains("snapshot"));
        assert!(refused(r#"{"path":""}"#).contains("path"));
    }
}
