//! The NVMe host driver: skep drives a controller itself, through VFIO.
//!
//! The controller is in a *host domain*, in which guest RAM lies at IOVA = GPA and the queues above it. So a guest's
//! request becomes a command whose data pointers (PRPs) are the guest's own addresses: no copy, and no system call
//! but to sleep. Each queue of a device model has a queue pair of the controller, and an interrupt vector, to itself.
//!
//! - *Time-outs everywhere.* A command that is not answered is aborted, then the controller is reset and what was
//!   under way is asked for again, a bounded number of times. A controller that does not come back, or is removed,
//!   fails all requests from then on; nothing waits for it.
//! - *Buffers last.* A request's memory is its owner's again only when the controller has completed the command or
//!   has been stopped.
//! - *The end in order.* When the last user goes, the controller writes its cache out (CC.SHN) and is disabled, and the
//!   host's own driver can have it back.

mod admin;
mod controller;
mod error;
mod function;
mod identify;
mod meaning;
#[cfg(any(test, feature = "fake"))]
pub mod model;
mod namespace;
mod options;
mod queue;
mod ring;
mod transfer;
mod trouble;
mod vfio;

use std::sync::Arc;

use dma::Domain;
use dma::vfio::VfioDevice;
use vmm_sys_util::eventfd::EventFd;

pub use error::NvmeError;
pub use function::{Function, FunctionError};
pub use identify::{ControllerData, Refusal};
pub use namespace::Namespace;
pub use nvme_spec::Status;
pub use options::NvmeOptions;
pub use trouble::{Direction, NvmeTrouble, ReportTrouble, TroubleKind};

use controller::Controller;
use nvme_spec::cns;

/// A controller that skep drives. It is shut down when this and all its namespaces and their queues are gone.
pub struct NvmeController {
    controller: Arc<Controller>,
    data: ControllerData,
}

impl NvmeController {
    /// Takes a controller into use: `device` is it, opened through VFIO, and translates through `domain`, which is
    /// attached to the VM's memory map.
    pub fn new(
        device: &Arc<VfioDevice>,
        domain: &Arc<Domain>,
        options: NvmeOptions,
    ) -> Result<NvmeController, NvmeError> {
        NvmeController::over(Box::new(vfio::VfioFunction::new(device)?), domain, options)
    }

    /// The same over any function, such as the `model` of tests.
    pub fn over(
        function: Box<dyn Function>,
        domain: &Arc<Domain>,
        options: NvmeOptions,
    ) -> Result<NvmeController, NvmeError> {
        let controller = Arc::new(Controller::new(function, domain.clone(), options)?);
        let data = ControllerData::read(&*controller.identify("identify itself", cns::CONTROLLER, 0)?);
        Ok(NvmeController { controller, data })
    }

    /// How many I/O queues it grants, for all namespaces together: no more than the options ask for.
    pub fn queues(&self) -> u16 {
        self.controller.granted()
    }

    /// Readable once the host wants the controller back or it is being removed. Whoever waits for that calls
    /// [`heed_removal`](NvmeController::heed_removal) then.
    pub fn removal(&self) -> &EventFd {
        self.controller.removal()
    }

    /// Gives the controller up if its removal was announced: it is shut down, and all requests fail from then on.
    pub fn heed_removal(&self) {
        if self.controller.removal().read().is_ok() {
            self.controller.give_up("the host takes it away");
        }
    }

    /// Shuts the controller down now: it writes its cache out, is disabled and cut off from memory. Requests under
    /// way, and all later ones, fail.
    ///
    /// # Errors
    ///
    /// [`NvmeError::NotShutDown`] says all that failed, also when the controller was given up before. Dropping it
    /// without this call only reports that.
    pub fn shut_down(&self) -> Result<(), NvmeError> {
        self.controller.end()
    }

    /// Whether a namespace of it, or a queue of one, is still there.
    pub fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.controller) > 1
    }

    /// What it says about itself.
    pub fn data(&self) -> &ControllerData {
        &self.data
    }

    /// Its PCI address.
    pub fn name(&self) -> &str {
        self.controller.name()
    }

    /// The numbers of its active namespaces.
    pub fn namespaces(&self) -> Result<Vec<u32>, NvmeError> {
        let list = self.controller.identify("list its namespaces", cns::ACTIVE_NAMESPACES, 0)?;
        let numbers =
            list.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
        Ok(numbers.take_while(|number| *number != 0).collect())
    }

    /// A namespace as a disk's back end.
    pub fn namespace(&self, number: u32) -> Result<Namespace, NvmeError> {
        Namespace::open(self.controller.clone(), &self.data, number)
    }
}

impl std::fmt::Debug for NvmeController {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NvmeController").field("name", &self.name()).field("data", &self.data).finish()
    }
}
