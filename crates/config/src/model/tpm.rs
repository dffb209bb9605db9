//! The VM's TPM.

use super::words::words;
use crate::values::path::HostPath;

/// A TPM 2.0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tpm {
    /// What executes its commands.
    pub source: TpmSource,
    /// What happens when that fails.
    pub on_error: OnTpmError,
}

/// What executes a TPM's commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TpmSource {
    /// swtpm, with a state that is kept under the VM's name.
    Emulated,
    /// A TPM of this host, by its device file.
    Passthrough(HostPath),
}

words! {
    /// What happens when a TPM fails. It is an event of the VM in every case, and the guest's commands end with errors until the
    /// guest is reset.
    #[derive(Default)]
    pub enum OnTpmError, "an answer to a TPM's failure" {
        /// Nothing more than the event.
        #[default]
        Report = "report",
        /// The VM is paused.
        Pause = "pause",
        /// The VM is stopped.
        Stop = "stop",
    }
}
