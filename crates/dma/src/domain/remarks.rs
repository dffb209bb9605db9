//! Failures that are returned to no caller.

use std::time::SystemTime;

use super::{Domain, State};

/// A failure that was returned to no caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// When it happened.
    pub time: SystemTime,
    /// What failed, and why.
    pub reason: String,
}

/// What is done with remarks.
pub(super) enum Remarks {
    /// They wait until somebody listens. They are few: P2P is given up once, and a driver's memory is unmapped once.
    Waiting(Vec<Remark>),
    /// Somebody listens.
    To(Box<dyn Fn(Remark) + Send>),
}

impl Domain {
    /// Calls `tell` with what fails here without a caller that gets the error: peers' memory that could not be mapped
    /// where it was only wished for ([`crate::P2pWish::On`]), a driver's memory that could not be unmapped. What failed before
    /// is told now. `tell` must not call the domain.
    pub fn tell(&self, tell: impl Fn(Remark) + Send + 'static) {
        let mut state = self.state();
        if let Remarks::Waiting(remarks) = &mut state.remarks {
            remarks.drain(..).for_each(&tell);
        }
        state.remarks = Remarks::To(Box::new(tell));
    }
}

impl State {
    /// Reports a failure, or keeps it until somebody listens.
    pub(super) fn remark(&mut self, reason: String) {
        let remark = Remark { time: SystemTime::now(), reason };
        match &mut self.remarks {
            Remarks::Waiting(remarks) => remarks.push(remark),
            Remarks::To(tell) => tell(remark),
        }
    }
}
