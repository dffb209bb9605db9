//! What single values mean.

use std::str::FromStr;

use crate::model::{
    Bounce, Buffers, Chain, Console, DmaBackEnd, FirmwareChoice, Format, HostDomain, HugePages, ModelName,
    OnError, OnFault, OnRequest, OnTpmError, Once, P2p, Poll, Rom, Wire,
};
use crate::nearest::either;
use crate::source::Value;
use crate::values::Invalid;
use crate::values::address::PciAddress;
use crate::values::count::{BootIndex, Cpus, LogicalBlock, Namespace, NodeId, Queues};
use crate::values::name::{ControllerName, DomainName, VmName};
use crate::values::nbd::NbdAddress;
use crate::values::path::HostPath;
use crate::values::size::{ByteSize, DiskSize, MemorySize};
use crate::values::text::{Cmdline, Firmware, FwCfgName, Product, Serial};

/// What a single value can mean.
pub(super) trait Read: Sized {
    /// Its type, in words.
    fn expected() -> String;

    /// The value's meaning; `None` if it is of another type.
    fn read(value: &Value) -> Option<Result<Self, Invalid>>;
}

/// Types that are text in a file as well as in a flag.
macro_rules! read_text {
    ($($type:ty: $expected:literal,)*) => {
        $(impl Read for $type {
            fn expected() -> String {
                $expected.into()
            }

            fn read(value: &Value) -> Option<Result<Self, Invalid>> {
                text(value)
            }
        })*
    };
}

read_text! {
    VmName: "text in quotes",
    HostPath: "a path in quotes",
    Cmdline: "text in quotes",
    FwCfgName: "text in quotes",
    Console: "text in quotes: stdio, file:PATH or socket:PATH",
    PciAddress: "a PCI address in quotes, \"0000:01:00.0\"",
    FirmwareChoice: "text in quotes: auto, none or PATH[,vars=PATH]",
    Chain: "text in quotes, or a list of such: follow, or the path of a file",
    NbdAddress: "text in quotes, \"nbd://host/export\"",
    DomainName: "text in quotes",
    Serial: "text in quotes",
    Product: "text in quotes",
    Firmware: "text in quotes",
    ControllerName: "text in quotes",
}

/// Types that are a few words. `on` and `off`, if they are among them, may also be written as true and false.
macro_rules! read_words {
    ($($type:ty,)*) => {
        $(impl Read for $type {
            fn expected() -> String {
                format!("text in quotes: {}", either(<$type>::NAMES))
            }

            fn read(value: &Value) -> Option<Result<Self, Invalid>> {
                word(value, <$type>::NAMES)
            }
        })*
    };
}

read_words! {
    ModelName,
    Once,
    Format,
    Bounce,
    Buffers,
    DmaBackEnd,
    HostDomain,
    OnError,
    OnFault,
    OnTpmError,
    HugePages,
    Wire,
    P2p,
    Poll,
}

/// One of a few words, as text or as a boolean.
fn word<T: FromStr<Err = Invalid>>(value: &Value, names: &[&str]) -> Option<Result<T, Invalid>> {
    match value {
        Value::Boolean(on) => {
            let name = if *on { "on" } else { "off" };
            names.contains(&name).then(|| name.parse())
        }
        _ => text(value),
    }
}

/// Any text.
impl Read for String {
    fn expected() -> String {
        "text in quotes".into()
    }

    fn read(value: &Value) -> Option<Result<String, Invalid>> {
        match value {
            Value::Word(text) | Value::Text(text) => Some(Ok(text.clone())),
            _ => None,
        }
    }
}

impl Read for OnRequest {
    fn expected() -> String {
        format!("text in quotes: {}", either(OnRequest::NAMES))
    }

    fn read(value: &Value) -> Option<Result<Self, Invalid>> {
        Some(text(value)?.map_err(|invalid| match invalid {
            Invalid::Word { text, .. } if text == "unplug" => Invalid::Unplug,
            other => other,
        }))
    }
}

impl Read for Rom {
    fn expected() -> String {
        "text in quotes: on, off or a path".into()
    }

    fn read(value: &Value) -> Option<Result<Self, Invalid>> {
        word(value, &["on", "off"])
    }
}

fn text<T: FromStr<Err = Invalid>>(value: &Value) -> Option<Result<T, Invalid>> {
    match value {
        Value::Word(text) | Value::Text(text) => Some(text.parse()),
        _ => None,
    }
}

/// Types that are whole numbers.
macro_rules! read_number {
    ($($type:ty,)*) => {
        $(impl Read for $type {
            fn expected() -> String {
                "a whole number".into()
            }

            fn read(value: &Value) -> Option<Result<Self, Invalid>> {
                integer(value).map(<$type>::try_from)
            }
        })*
    };
}

read_number! {
    Cpus,
    Queues,
    LogicalBlock,
    Namespace,
    NodeId,
    BootIndex,
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        Value::Word(text) => text.parse().ok(),
        _ => None,
    }
}

/// Types that are sizes; a bare number counts MiB.
macro_rules! read_size {
    ($($type:ty,)*) => {
        $(impl Read for $type {
            fn expected() -> String {
                "a size in quotes as in \"512M\", or a number of MiB".into()
            }

            fn read(value: &Value) -> Option<Result<Self, Invalid>> {
                match value {
                    Value::Integer(mib) => Some(mebibytes(*mib).and_then(<$type>::try_from)),
                    _ => text(value),
                }
            }
        })*
    };
}

read_size! {
    MemorySize,
    DiskSize,
}

fn mebibytes(mib: i64) -> Result<ByteSize, Invalid> {
    let count = u64::try_from(mib).map_err(|_| Invalid::Size { text: mib.to_string() })?;
    ByteSize::from_mib(count).ok_or_else(|| Invalid::SizeTooLarge { text: mib.to_string() })
}

impl Read for bool {
    fn expected() -> String {
        "true or false (in a flag also on or off)".into()
    }

    fn read(value: &Value) -> Option<Result<Self, Invalid>> {
        match value {
            Value::Boolean(value) => Some(Ok(*value)),
            Value::Word(text) if text == "on" || text == "true" => Some(Ok(true)),
            Value::Word(text) if text == "off" || text == "false" => Some(Ok(false)),
            _ => None,
        }
    }
}
