//! What can go wrong.

use crate::address::Address;
use crate::services::ServiceError;

/// What can go wrong on the bus, and with what functions ask of the machine.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// The machine could not do what a function asked.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The address is taken.
    #[error("PCI address {0} is taken already")]
    Taken(Address),
    /// The address is that of a function beside others, and there is no function 0 that shares its device number, or the
    /// function itself does not.
    #[error("PCI address {0} belongs to a device without a function 0, or to one that has no other function")]
    NoFunction0(Address),
    /// There are not enough device numbers.
    #[error(
        "the guest's PCI bus is full: an assigned device takes one of its 30 device numbers, and up to 8 disk controllers \
         take one, which is no room for {own} assigned devices and {shared} controllers. Put several disks on one \
         controller (`controller=`), or assign fewer devices"
    )]
    Full {
        /// Functions with a device number of their own: assigned devices.
        own: usize,
        /// Functions that share device numbers: controllers of disks.
        shared: usize,
    },
    /// A BAR fits into no window.
    #[error(
        "{function}: BAR {bar} of {size:#x} bytes fits into no window of the guest's address space. {hint}"
    )]
    NoRoom {
        /// The function's name.
        function: String,
        /// The BAR.
        bar: usize,
        /// Its size in bytes.
        size: u64,
        /// What a person can do.
        hint: &'static str,
    },
    /// An assigned device or a model failed in its own way.
    #[error("{function}: {what}")]
    Function {
        /// The function's name.
        function: String,
        /// What happened, with its cause and a hint.
        what: String,
    },
    /// Several things at once, a line each.
    #[error("{}", .0.iter().map(PciError::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<PciError>),
}

impl PciError {
    /// Nothing, the one error, or all of them.
    pub fn all(errors: impl IntoIterator<Item = impl Into<PciError>>) -> Result<(), PciError> {
        let mut errors: Vec<PciError> = errors.into_iter().map(Into::into).collect();
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(PciError::Several(errors)),
        }
    }
}
