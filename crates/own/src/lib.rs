//! Folders and locks that only this user, or root, can have written, and who has a file open.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod folder;
mod openers;

pub use folder::{OwnError, OwnFolder, holders, own_user};
pub use openers::{Openers, THIS_PROCESS};
