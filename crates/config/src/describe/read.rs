//! What single values mean.

use std::str::FromStr;

use crate::model::{
    Bounce, Buffers, Chain, Console, DmaBackEnd, FirmwareChoice, Format, HostDomain, HugePages, ModelName,
    OnError, OnFault, OnRequest, OnTpmError, Once, P2p, Poll, Rom, Wire,
};
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
    const EXPECTED: &'static str;

    /// The value's meaning; `None` if it is of another type.
    fn read(value: &Value) -> Option<Result<Self, Invalid>>;
}

/// Types that are text in a file as well as in a flag.
macro_rules! read_text {
    ($($type:ty: $expected:literal,)*) => {
        $(impl Read for $type {
            const EXPECTED: &'static str = $expected;

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
    ModelName: "text in quotes",
    Once: "text in quotes: once:cd",
    Format: "text in quotes: raw, qcow2 or vmdk",
    Chain: "text in quotes, or a list of such: follow, or the path of a file",
    Bounce: "text in quotes: needed or always",
    Buffers: "text in quotes: registered or plain",
    NbdAddress: "text in quotes, \"nbd://host/export\"",
    DomainName: "text in quotes",
    DmaBackEnd: "text in quotes: auto, iommufd or type1",
    HostDomain: "text in quotes: shared or exclusive",
    OnError: "text in quotes: report, pause or ignore",
    OnFault: "text in quotes: report, pause, reset or stop",
    OnTpmError: "text in quotes: report, pause or stop",
    HugePages: "text in quotes: 2M or 1G",
    Serial: "text in quotes",
    Product: "text in quotes",
    Firmware: "text in quotes",
    ControllerName: "text in quotes",
}

/// Any text.
impl Read for String {
    const EXPECTED: &'static str = "text in quotes";

    fn read(value: &Value) -> Option<Result<String, Invalid>> {
        match value {
            Value::Word(text) | Value::Text(text) => Some(Ok(text.clone())),
            _ => None,
        }
    }
}

impl Read for OnRequest {
    const EXPECTED: &'static str = "text in quotes: report or stop";

    fn read(value: &Value) -> Option<Result<Self, Invalid>> {
        Some(text(value)?.map_err(|invalid| match invalid {
            Invalid::Word { text, .. } if text == "unplug" => Invalid::Unplug,
            other => other,
        }))
    }
}

/// Types that are words, of which `on` and `off` may also be written as true and false.
macro_rules! read_switch {
    ($($type:ty: $expected:literal,)*) => {
        $(impl Read for $type {
            const EXPECTED: &'static str = $expected;

            fn read(value: &Value) -> Option<Result<Self, Invalid>> {
                match value {
                    Value::Boolean(true) => Some("on".parse()),
                    Value::Boolean(false) => Some("off".parse()),
                    _ => text(value),
                }
            }
        })*
    };
}

read_switch! {
    Wire: "text in quotes: auto, on or off",
    P2p: "text in quotes: off, on or required",
    Rom: "text in quotes: on, off or a path",
    Poll: "text in quotes: off, adaptive or on",
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
            const EXPECTED: &'static str = "a whole number";

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
            const EXPECTED: &'static str = "a size in quotes as in \"512M\", or a number of MiB";

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
    const EXPECTED: &'static str = "true or false (in a flag also on or off)";

    fn read(value: &Value) -> Option<Result<Self, Invalid>> {
        match value {
            Value::Boolean(value) => Some(Ok(*value)),
            Value::Word(text) if text == "on" || text == "true" => Some(Ok(true)),
            Value::Word(text) if text == "off" || text == "false" => Some(Ok(false)),
            _ => None,
        }
    }
}
