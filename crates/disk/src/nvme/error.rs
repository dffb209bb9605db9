//! Why a controller cannot be used.

use std::time::Duration;

use dma::DomainError;
use dma::vfio::VfioError;

use super::function::FunctionError;
use super::identify::Refusal;
use nvme_spec::Status;

/// Why a controller or a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// The domain has no memory for queues.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// VFIO refused something.
    #[error(transparent)]
    Vfio(#[from] VfioError),
    /// The function refused something; the sentence names the device.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The kernel refused this process something.
    #[error("NVMe controller {device}: cannot {what}: {cause}. Raise the limit of open files (ulimit -n)")]
    System {
        /// PCI address.
        device: String,
        /// As a verb phrase.
        what: &'static str,
        /// The kernel's answer.
        cause: std::io::Error,
    },
    /// The function's registers are not those of a controller that this driver can drive.
    #[error("NVMe controller {device}: {why}. Let the host's kernel drive it (--disk path=/dev/nvme…)")]
    Unfit {
        /// PCI address.
        device: String,
        /// What it lacks.
        why: &'static str,
    },
    /// It did not do in time what it must.
    #[error(
        "NVMe controller {device}: it did not {what} within {} s. Reset it (`echo 1 > /sys/bus/pci/devices/{device}/reset`) or power-cycle the host",
        .after.as_secs_f32()
    )]
    TimedOut {
        /// PCI address.
        device: String,
        /// As a verb phrase: "become ready".
        what: &'static str,
        /// How long it was given.
        after: Duration,
    },
    /// Its registers read as all ones, or its removal was announced.
    #[error(
        "NVMe controller {device}: it is gone. Look whether it is still seated and powered (`lspci -s {device}`)"
    )]
    Gone {
        /// PCI address.
        device: String,
    },
    /// It reports a fatal error of its own (CSTS.CFS).
    #[error(
        "NVMe controller {device}: it reports a fatal error (CSTS.CFS) when it should {what}. See its log with `nvme error-log`, and look for newer firmware"
    )]
    Fatal {
        /// PCI address.
        device: String,
        /// What it was to do, as a verb phrase.
        what: &'static str,
    },
    /// An admin command failed.
    #[error("NVMe controller {device}: it refused to {what}: {status}. See its log with `nvme error-log`")]
    Refused {
        /// PCI address.
        device: String,
        /// What it was to do, as a verb phrase.
        what: &'static str,
        /// Its answer.
        status: Status,
    },
    /// The namespace cannot be used.
    #[error("NVMe controller {device}, namespace {namespace}: {why}.")]
    Namespace {
        /// PCI address.
        device: String,
        /// The namespace.
        namespace: u32,
        /// Why not.
        why: Refusal,
    },
    /// It was not shut down in order at the end.
    #[error(
        "NVMe controller {device}: it was not shut down in order: {why}. What its write cache held may be lost; check \
         the disk's contents"
    )]
    NotShutDown {
        /// PCI address.
        device: String,
        /// All that failed.
        why: String,
    },
    /// All queues that were set aside are in use.
    #[error("NVMe controller {device}: all its {queues} I/O queues are in use")]
    NoQueue {
        /// PCI address.
        device: String,
        /// How many there are.
        queues: u16,
    },
}
