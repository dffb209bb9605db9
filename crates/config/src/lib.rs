//! A VM's description: one model for flags and for TOML.
//!
//! A [`Vm`] says everything `skep run` needs to know, and a value of it is always valid: every field's type
//! checks itself when it is made. It comes from two sources, which [`describe`] puts together:
//!
//! - **a file** in TOML: see `docs/vm.toml` for every key with its meaning;
//! - **flags**: each key of the file is a flag of the same name ([`Key`]), with the same values.
//!
//! The keys are one table of static data ([`Row`]). A new key is one row of it, and its use: a field of the model, which is read
//! in `describe` and printed in `print`. Tests fail for a row that is not read, not printed or not in the documents.
//!
//! Where both speak, a flag wins for what a VM has once (`--memory`, `--kernel` …), and is added behind the
//! file's entries for what it has several of (`--disk`, `--assign`, `--fw-cfg`).
//!
//! The values of `--disk`, `--assign` and `--fw-cfg` are lists `key=value,key=value`. A value that contains a comma writes
//! it twice (`path=/images/a,,b.img`). The first item may leave out its key where one is obvious: `--disk
//! /dev/sda` means `path=/dev/sda`, `--assign 01:00.0` means `address=01:00.0`; the file has the same short
//! form (`assign = ["01:00.0"]`).
//!
//! Everything that is wrong is found at once ([`Findings`]), and each finding names its place: file, line and
//! column, or the flag as written. What is right beside it ([`Draft`]) can be compared with the host all the same.
//!
//! The value of one `--disk` by itself is what [`describe_disk`] reads, for disks that come while a VM runs.
//!
//! Relative paths mean relative to the working directory, in a file as well as in a flag.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod describe;
mod finding;
mod keys;
mod model;
mod nearest;
mod print;
mod source;
mod values;

pub use describe::{Description, File, describe, describe_disk};
pub use finding::{Finding, Findings, Place, Problem, Syntax};
pub use keys::{Example, Key, Kind, Of, Row};
pub use model::{
    Assign, Backing, Boot, BootFirmware, Bounce, Buffers, Chain, Console, Disk, DiskModel, DiskSource,
    Distinct, Dma, DmaBackEnd, Draft, FileDisk, FirmwareChoice, FirmwareImage, Format, FwCfgContent,
    FwCfgFile, HostDomain, HugePages, Identified, Linux, ModelName, OnError, OnFault, OnRequest, OnTpmError,
    Once, P2p, Poll, Rom, Tpm, TpmSource, Vm, Wire, Writes,
};
pub use nearest::is_near;
pub use values::address::PciAddress;
pub use values::count::{BootIndex, Cpus, LogicalBlock, Namespace, NodeId, Queues};
pub use values::name::{ControllerName, DomainName, VmName};
pub use values::nbd::NbdAddress;
pub use values::path::{HostPath, SocketPath};
pub use values::size::{ByteSize, DiskSize, MemorySize};
pub use values::text::{Cmdline, Firmware, FwCfgName, Product, Serial};
pub use values::{Invalid, Repeated};
