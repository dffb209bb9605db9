//! How a controller is driven.

use std::time::Duration;

use super::trouble::ReportTrouble;

/// How a controller is driven.
#[derive(Clone)]
pub struct NvmeOptions {
    /// I/O queues at most, for all namespaces together; each queue of each device model takes one.
    pub queues: u16,
    /// How long an admin command may take, and writing the cache out at the end.
    pub admin_timeout: Duration,
    /// How long a request may take before it is aborted.
    pub io_timeout: Duration,
    /// Where troubles go.
    pub on_trouble: ReportTrouble,
}

impl NvmeOptions {
    /// Up to 64 queues, 10 s for admin commands and 30 s for requests.
    pub fn new(on_trouble: ReportTrouble) -> NvmeOptions {
        NvmeOptions {
            queues: 64,
            admin_timeout: Duration::from_secs(10),
            io_timeout: Duration::from_secs(30),
            on_trouble,
        }
    }
}
