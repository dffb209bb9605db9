//! Why a change of the memory map did not happen.

use std::error::Error;
use std::fmt;

use super::{Change, Mirror};

/// Why a mirror refused: its own error, a sentence or more.
pub type MirrorError = Box<dyn Error + Send + Sync>;

/// How a mirror differs from the memory map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{mirror} does not hold the VM's memory map: {}", differences.join("; "))]
pub struct Difference {
    /// The mirror's name.
    pub mirror: String,
    /// Each difference, in words.
    pub differences: Vec<String>,
}

/// Something that could not be undone: the mirror is now other than the map.
#[derive(Debug)]
pub struct Stuck {
    /// The mirror's name.
    pub mirror: String,
    /// What it should have done: "remove RAM 0x0-0xfff".
    pub change: String,
    /// Why it could not.
    pub cause: MirrorError,
}

/// A change that happened nowhere, but for what is stuck.
#[derive(Debug)]
pub struct ChangeError {
    mirror: Option<String>,
    change: String,
    cause: Option<MirrorError>,
    stuck: Vec<Stuck>,
}

impl ChangeError {
    pub(super) fn misfit(change: &Change, cause: MirrorError) -> ChangeError {
        ChangeError { mirror: None, change: change.to_string(), cause: Some(cause), stuck: Vec::new() }
    }

    pub(super) fn refused(
        mirror: &dyn Mirror,
        change: String,
        cause: MirrorError,
        stuck: Vec<Stuck>,
    ) -> ChangeError {
        ChangeError { mirror: Some(mirror.name()), change, cause: Some(cause), stuck }
    }

    pub(super) fn detach(mirror: &dyn Mirror, stuck: Vec<Stuck>) -> ChangeError {
        let change = "give up the memory map".to_owned();
        ChangeError { mirror: Some(mirror.name()), change, cause: None, stuck }
    }

    /// What could not be undone; nothing, as a rule.
    pub fn stuck(&self) -> &[Stuck] {
        &self.stuck
    }
}

impl Error for ChangeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as &(dyn Error + 'static))
    }
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ChangeError { mirror, change, cause, stuck } = self;
        match mirror {
            Some(mirror) => write!(f, "{mirror} cannot {change}")?,
            None => write!(f, "cannot {change}")?,
        }
        if let Some(cause) = cause {
            write!(f, ": {cause}")?;
        }
        for Stuck { mirror, change, cause } in stuck {
            write!(
                f,
                ". Besides, {mirror} could not {change}, and is now other than the memory map: {cause}"
            )?;
        }
        Ok(())
    }
}
