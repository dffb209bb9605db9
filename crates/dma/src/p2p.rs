//! Whether assigned devices reach each other's memory.

use std::fmt;
use std::str::FromStr;

/// What is wished for, from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum P2pWish {
    /// They must not.
    #[default]
    Off,
    /// They may; the VM also runs without it.
    On,
    /// They must; the VM does not start without it.
    Required,
}

impl FromStr for P2pWish {
    type Err = ();

    fn from_str(text: &str) -> Result<P2pWish, ()> {
        match text {
            "off" => Ok(P2pWish::Off),
            "on" => Ok(P2pWish::On),
            "required" => Ok(P2pWish::Required),
            _ => Err(()),
        }
    }
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum P2p {
    /// Nobody asked for it.
    Off,
    /// It was asked for, and nothing has shown yet whether it works: no memory of a device was mapped or tried.
    Asked,
    /// Every memory of a device that the guest sees is mapped for the devices of the domain, or some was on trial.
    Working,
    /// It was asked for and does not work; the reason.
    Failed(String),
}

impl fmt::Display for P2p {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            P2p::Off => f.write_str("off"),
            P2p::Asked => f.write_str("asked for, not tried yet"),
            P2p::Working => f.write_str("working"),
            P2p::Failed(why) => write!(f, "asked for, not working: {why}"),
        }
    }
}
