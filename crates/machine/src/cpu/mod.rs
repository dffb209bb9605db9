//! vCPUs: what they are, their state, and the threads that run them.

pub mod cpuid;
pub mod firmware;
pub mod registers;
pub mod state;
pub mod threads;
