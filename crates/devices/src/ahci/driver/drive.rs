//! A CD drive without a port: what it makes of a command, before anything is moved.

use std::sync::Arc;

use disk::{Geometry, Operation};

use crate::ahci::action::Action;
use crate::ahci::ata::Names;
use crate::ahci::atapi::CdDrive;
use crate::ahci::fis::CommandFis;
use crate::ahci::text::AtaText;

/// What becomes of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It has ended well, or asks for nothing.
    Done,
    /// It failed, with this content of the error register: the sense key is above the lower four bits.
    Failed(u8),
    /// The drive itself sends this.
    Data(Vec<u8>),
    /// The disc is read.
    Read {
        /// The first block of 2048 bytes.
        first: u64,
        /// Bytes.
        bytes: u64,
    },
}

/// A drive.
pub struct Drive(CdDrive);

impl Drive {
    /// An empty one.
    pub fn new() -> Drive {
        let names = Names {
            serial: AtaText::from_lossy("S"),
            firmware: AtaText::from_lossy("F"),
            model: AtaText::from_lossy("a drive"),
        };
        Drive(CdDrive::new(names, Arc::default()))
    }

    /// Somebody puts a disc in.
    pub fn insert(&mut self, disc: &Geometry) {
        self.0.insert(disc);
    }

    /// Somebody takes the disc out.
    pub fn take(&mut self) {
        self.0.remove();
    }

    /// Somebody would like to have the disc, which is locked.
    pub fn ask(&mut self) {
        self.0.ask_to_eject();
    }

    /// Whether there is a disc.
    pub fn has_disc(&self) -> bool {
        self.0.has_disc()
    }

    /// A frame from the driver, with a packet behind it. `None` when it is no frame that devices take.
    pub fn frame(&mut self, frame: &[u8; 64], packet: &[u8; 16]) -> Option<Answer> {
        let fis = CommandFis::read(frame)?;
        Some(match self.0.execute(&fis, packet) {
            Action::Done(taskfile) if taskfile.is_failure() => Answer::Failed(taskfile.error),
            Action::Send(data, _) => Answer::Data(data),
            Action::Transfer { operation: Operation::Read { at }, bytes, .. } => {
                Answer::Read { first: at.0 / 4, bytes }
            }
            Action::Done(_) | Action::Signature(_) | Action::Control { .. } => Answer::Done,
            other => panic!("a CD drive does no such thing: {other:?}"),
        })
    }

    /// A packet.
    pub fn packet(&mut self, packet: &[u8; 16]) -> Answer {
        let mut frame = [0; 64];
        frame[..4].copy_from_slice(&[0x27, 0x80, 0xa0, 1]);
        self.frame(&frame, packet).expect("a command")
    }
}

impl Default for Drive {
    fn default() -> Drive {
        Drive::new()
    }
}
