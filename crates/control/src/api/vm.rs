//! The VM and its process.

use serde::{Deserialize, Serialize};

use super::words::words;

/// The VM and its process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Info {
    /// The version of the API.
    pub api: u32,
    /// The VM's name.
    pub name: String,
    /// The version of skep that runs it.
    pub version: String,
    /// What it does now.
    pub state: State,
    /// Why it is paused, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The process that runs it.
    pub pid: u32,
    /// When the process began to run it: RFC 3339, UTC.
    pub since: String,
    /// Whether the guest has enabled the power button's ACPI event, without which it notices no press.
    #[serde(default)]
    pub listens_to_button: bool,
}

words! {
    /// What a VM does.
    pub enum State {
        /// It is being put together.
        Starting = "starting",
        /// Its guest runs.
        Running = "running",
        /// Its vCPUs are stopped; its devices may go on.
        Paused = "paused",
        /// It is ending.
        Ending = "ending",
    }
}

/// The answer to something done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Done {
    /// The VM's state afterwards.
    pub state: State,
}
