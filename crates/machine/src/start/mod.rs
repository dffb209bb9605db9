//! A start: what is checked before anything is touched, the steps that then make the VM, and their undo.

pub mod assemble;
pub mod check;
#[cfg(test)]
mod known;
pub mod ram;
pub mod steps;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use config::Draft;
use host::Host;

use crate::assigned::leftovers;
use crate::error::StartError;
use crate::events::notice::Reporter;
use crate::vm::Vm;
use assemble::assemble;
use check::{Checked, check};
use steps::Steps;

impl Vm {
    /// Gives back what killed VMs left, and then compares a description with this host, without another change: everything
    /// that prevents a start, or what the start needs. `looked` is called while all that was looked at is still open.
    pub fn check(
        config: &config::Vm,
        report: &Reporter,
        looked: &mut dyn FnMut(),
    ) -> Result<Checked, Vec<StartError>> {
        leftovers::give_back(&Host::here(), report);
        check(&Draft::from(config), looked)
    }

    /// Makes a VM from its description and what was found when that was checked, or says what failed and leaves the host
    /// as it was. The console's output goes to `output`.
    ///
    /// `cancelled` is looked at between the steps, and while swtpm is waited for: once it is set, the start ends there.
    pub fn build(
        config: &config::Vm,
        checked: Checked,
        output: Box<dyn Write + Send>,
        report: Reporter,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Vm, Vec<StartError>> {
        let steps = Steps::new(cancelled);
        let vm = assemble(config, checked, output, report, &steps).map_err(|error| vec![error])?;
        match vm.ready(&steps) {
            Ok(()) => Ok(vm),
            Err(why) => Err(why.into_iter().chain(vm.give_up().err()).collect()),
        }
    }

    /// Whether it may run: no device can have been bus master yet, so this is the last time at which a domain that is
    /// not the memory map harms nobody.
    fn ready(&self, steps: &Steps) -> Result<(), Vec<StartError>> {
        steps.begin("run").map_err(|why| vec![why])?;
        let mirrors = self.map.audit().into_iter();
        let differ: Vec<_> = mirrors.filter_map(|(_, equal)| equal.err()).map(StartError::from).collect();
        if differ.is_empty() { Ok(()) } else { Err(differ) }
    }

    /// Everything on this host that prevents a VM of which only a draft exists, found without a change. `looked`
    /// is as with [`Vm::check`].
    pub fn findings(draft: &Draft, looked: &mut dyn FnMut()) -> Vec<StartError> {
        check(draft, looked).err().unwrap_or_default()
    }
}
