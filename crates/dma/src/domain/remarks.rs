//! Failures that are returned to no caller.

use std::time::SystemTime;

use super::{Domain, State};
use crate::fault::{Fault, Source, Witness};

/// Failures that are returned to no caller.
pub(super) enum Remarks {
    /// They wait until there is a witness. They are few: P2P is given up once, and a driver's memory is unmapped once.
    Waiting(Vec<Fault>),
    /// They are reported to this witness.
    To(Witness),
}

impl Domain {
    /// Reports to this witness what fails here without a caller that gets the error: peers' memory that could not be mapped
    /// where it was only wished for ([`crate::P2pWish::On`]), a driver's memory that could not be unmapped. What failed before
    /// is told now.
    pub fn tell(&self, witness: &Witness) {
        if let Remarks::Waiting(faults) =
            std::mem::replace(&mut self.state().remarks, Remarks::To(witness.clone()))
        {
            faults.into_iter().for_each(|fault| witness.tell(fault));
        }
    }
}

impl State {
    /// Reports a failure, or keeps it until there is a witness.
    pub(super) fn remark(&mut self, reason: String) {
        let (time, source) = (SystemTime::now(), Source::Ledger);
        let fault = Fault { time, device: None, direction: None, iova: None, pasid: None, reason, source };
        match &mut self.remarks {
            Remarks::Waiting(faults) => faults.push(fault),
            Remarks::To(witness) => witness.tell(fault),
        }
    }
}
