//! A request under way, and the commands that it has become.

use std::time::Instant;

use crate::contract::{DiskError, Event, Operation, Request};
use crate::nvme::transfer::Cursor;
use nvme_spec::Command;

/// A request under way.
pub(crate) struct Flight {
    pub request: Request,
    /// What of the data has become commands.
    pub cursor: Cursor,
    /// Commands that have not ended.
    pub open: u16,
    rest: Rest,
}

/// What is left to begin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// The data behind the cursor.
    Data,
    /// The one command that there is.
    Command,
    /// Nothing.
    None,
    /// Nothing, for a command has failed.
    Failed(DiskError),
}

impl Flight {
    pub fn new(request: Request) -> Flight {
        let rest = match request.operation {
            Operation::Read { .. } | Operation::Write { .. } => Rest::Data,
            _ => Rest::Command,
        };
        Flight { request, cursor: Cursor::default(), open: 0, rest }
    }

    /// Whether all commands are begun that will be.
    pub fn is_begun(&self) -> bool {
        match self.rest {
            Rest::Data => self.cursor.at == self.request.buffers.bytes(),
            Rest::Command => false,
            Rest::None | Rest::Failed(_) => true,
        }
    }

    /// The one command is begun.
    pub fn begun(&mut self) {
        self.rest = Rest::None;
    }

    /// A command failed: no more are begun. The first failure is the request's.
    pub fn fail(&mut self, error: DiskError) {
        if !matches!(self.rest, Rest::Failed(_)) {
            self.rest = Rest::Failed(error);
        }
    }

    /// What has become of it.
    pub fn result(&self) -> Result<(), DiskError> {
        match self.rest {
            Rest::Failed(error) => Err(error),
            _ => Ok(()),
        }
    }

    pub fn done(self, result: Result<(), DiskError>) -> Event {
        let Request { tag, operation, buffers } = self.request;
        Event::Done { tag, operation, result, buffers }
    }
}

/// A command under way.
pub(crate) struct UnderWay {
    pub flight: u16,
    /// As it was sent, for the case that it must be sent again.
    pub command: Command,
    pub data: Data,
    pub tries: u8,
    /// The tick in which it was sent.
    pub since: u32,
    pub stage: Stage,
}

/// Where a command is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// With the controller.
    Sent,
    /// With the controller, which was told to abort it in this tick.
    Aborted(u32),
    /// With the controller, which is asked to abort it, for nobody wants it any more, since this tick.
    Cancelled(u32),
    /// Here: it failed for the moment, and is sent again then.
    Held(Instant),
}

impl UnderWay {
    pub fn new(flight: u16, command: Command, data: Data) -> UnderWay {
        UnderWay { flight, command, data, tries: 1, since: 0, stage: Stage::Sent }
    }
}

/// The data of a command.
#[derive(Clone, Copy)]
pub(crate) enum Data {
    None,
    /// Guest memory.
    Direct {
        from: Cursor,
        bytes: u64,
    },
    /// A copy in a bounce buffer.
    Bounced {
        from: Cursor,
        bytes: u64,
        buffer: u16,
    },
}

impl Data {
    pub fn bytes(self) -> u64 {
        match self {
            Data::None => 0,
            Data::Direct { bytes, .. } | Data::Bounced { bytes, .. } => bytes,
        }
    }
}
