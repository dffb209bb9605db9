//! What is loaded at every start of the guest.

use std::sync::Arc;

use boot::platform::Platform;
use boot::{Contents, CpuState, Initrd, KernelImage, LinuxBoot, LoadError};
use memory::Ram;

/// What is loaded at every start.
pub(crate) struct BootPlan {
    /// `None` where the guest has firmware, which finds everything in its flash memory.
    pub(crate) kernel: Option<KernelPlan>,
    pub(crate) ram: Arc<Ram>,
}

/// A kernel, and what it is started with.
pub(crate) struct KernelPlan {
    pub(crate) kernel: KernelImage,
    pub(crate) initrd: Option<Initrd>,
    pub(crate) command_line: String,
    pub(crate) platform: Platform,
}

impl BootPlan {
    /// Loads kernel and initrd; the state in which the boot CPU enters, if that is not power-on.
    pub(crate) fn load(&self, contents: Contents) -> Result<Option<CpuState>, LoadError> {
        let Some(plan) = &self.kernel else { return Ok(None) };
        let linux = LinuxBoot {
            kernel: &plan.kernel,
            initrd: plan.initrd.as_ref(),
            command_line: &plan.command_line,
        };
        boot::load(&linux, &plan.platform, &self.ram, contents).map(Some)
    }
}
