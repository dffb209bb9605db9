//! What to do about a fault.

use std::fmt;
use std::str::FromStr;

/// What happens to the VM when DMA of one of its devices fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// The event is told, and the VM runs on.
    #[default]
    Report,
    /// The event is told, and the vCPUs stop until somebody lets them run on.
    Pause,
    /// The event is told, and the device is reset; its driver in the guest finds it in its first state.
    Reset,
    /// The event is told, and the VM ends.
    Stop,
}

impl Policy {
    const ALL: [Policy; 4] = [Policy::Report, Policy::Pause, Policy::Reset, Policy::Stop];

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Report => "report",
            Policy::Pause => "pause",
            Policy::Reset => "reset",
            Policy::Stop => "stop",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is nothing that can be done about a DMA fault. Choose report, pause, reset or stop")]
pub struct UnknownPolicy {
    /// What was given.
    pub text: String,
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Policy, UnknownPolicy> {
        let found = Policy::ALL.into_iter().find(|policy| policy.name() == text);
        found.ok_or_else(|| UnknownPolicy { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_they_are_printed_and_others_are_refused_with_the_choice() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert!("ignore".parse::<Policy>().unwrap_err().to_string().contains("report, pause, reset or stop"));
    }
}
