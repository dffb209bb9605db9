//! A VFIO call that failed.

use std::fmt;
use std::io;

/// A VFIO call that failed: on what, trying what, why, and what a person can do.
#[derive(Debug)]
pub struct VfioError {
    /// The device's PCI address, "IOMMU group 9", or a path.
    pub object: String,
    /// What was tried, as a verb phrase: "reset it".
    pub what: String,
    /// The kernel's answer.
    pub cause: io::Error,
    /// What a person can do; may be empty.
    pub hint: &'static str,
}

impl VfioError {
    pub(crate) fn new(
        object: impl Into<String>,
        what: impl Into<String>,
        cause: io::Error,
        hint: &'static str,
    ) -> VfioError {
        VfioError { object: object.into(), what: what.into(), cause, hint }
    }
}

impl std::error::Error for VfioError {}

impl fmt::Display for VfioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VfioError { object, what, cause, hint } = self;
        write!(f, "{object}: cannot {what}: {cause}")?;
        if hint.is_empty() { Ok(()) } else { write!(f, ". {hint}") }
    }
}
