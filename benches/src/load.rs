//! What is asked of the disk.

use std::str::FromStr;

/// Reads of one size, so many at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// 4 KiB at random places, so many at once.
    Random {
        /// Requests at once.
        depth: u16,
    },
    /// 1 MiB in 128 pieces of memory, one after another on the disk, so many at once.
    Sequential {
        /// Requests at once.
        depth: u16,
    },
}

impl Load {
    /// The loads that are recorded.
    pub const ALL: [Load; 3] =
        [Load::Random { depth: 1 }, Load::Random { depth: 16 }, Load::Sequential { depth: 4 }];

    /// Bytes of a request.
    pub fn bytes(self) -> u64 {
        match self {
            Load::Random { .. } => 4096,
            Load::Sequential { .. } => 1 << 20,
        }
    }

    /// Requests at once.
    pub fn depth(self) -> u16 {
        match self {
            Load::Random { depth } | Load::Sequential { depth } => depth,
        }
    }

    /// As it is called in tables and on command lines.
    pub fn name(self) -> String {
        match self {
            Load::Random { depth } => format!("random-{depth}"),
            Load::Sequential { depth } => format!("sequential-{depth}"),
        }
    }
}

impl FromStr for Load {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Load> {
        let found = Load::ALL.into_iter().find(|load| load.name() == text);
        found.ok_or_else(|| anyhow::anyhow!("no load is called {text}"))
    }
}
