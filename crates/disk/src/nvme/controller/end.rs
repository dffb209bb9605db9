//! The end of a controller: given up, or shut down in order.

use std::sync::atomic::Ordering;

use super::Controller;
use crate::nvme::error::NvmeError;
use crate::nvme::trouble::TroubleKind;
use nvme_spec::{Configuration, ControllerStatus, register};

impl Controller {
    /// Nothing more is asked of the controller, and it must not reach memory any more.
    pub(super) fn lose(&self, why: &str) {
        let ran = self.status().is_ready();
        let mut failed = self.let_go();
        if !ran {
            // Nothing was left that could have written its cache out.
            failed.insert(0, format!("it was given up: {why}"));
        }
        if self.holds_on() {
            self.report(TroubleKind::NotShutDown { why: failed.join(". ") });
        }
        *self.unfinished.lock() = failed;
        self.lost.store(true, Ordering::Release);
        self.forgotten();
        self.report(TroubleKind::Lost { why: why.to_owned() });
    }

    /// Shuts the controller down, once; whatever is still under way fails. Says all that failed, also when it was
    /// given up before.
    pub fn end(&self) -> Result<(), NvmeError> {
        let mut admin = self.lock();
        let Some(admin) = admin.take() else { return Ok(()) };
        let mut failed = std::mem::take(&mut *self.unfinished.lock());
        if !self.is_lost() {
            failed = self.let_go();
            self.lost.store(true, Ordering::Release);
            self.forgotten();
        }
        failed.extend(self.function.disable_interrupts().err().map(|error| error.to_string()));
        if self.holds_on() {
            admin.forget();
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(NvmeError::NotShutDown { device: self.name().to_owned(), why: failed.join(". ") })
    }

    /// Has it write its cache out, stops it and cuts it off from the bus. Each is tried, whatever became of the
    /// others; returns what failed.
    fn let_go(&self) -> Vec<String> {
        let written = self.write_cache_out();
        let stopped = self.stop();
        let cut = self.function.set_bus_master(false);
        // Registers that read as all ones prove nothing: a device whose memory space is off reads so, and does DMA.
        let absent = self.function.is_absent();
        if stopped.is_err() && cut.is_err() && !absent {
            self.holds_on.store(true, Ordering::Release);
        }
        let mut failed: Vec<String> =
            [written, stopped].into_iter().filter_map(|done| Some(done.err()?.to_string())).collect();
        failed.dedup();
        failed.extend(cut.err().filter(|_| !absent).map(|error| error.to_string()));
        failed
    }

    /// Asks for a normal shutdown (CC.SHN) and waits for its end, if the controller runs.
    fn write_cache_out(&self) -> Result<(), NvmeError> {
        let status = self.status();
        if !status.is_ready() {
            return Ok(());
        }
        if status.is_fatal() && !status.is_gone() {
            return Err(NvmeError::Fatal { device: self.name().to_owned(), what: "shut down" });
        }
        self.function.write(register::CC, Configuration::on(self.capabilities).shutting_down().0);
        self.wait("shut down", self.options.admin_timeout, ControllerStatus::is_shut_down)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            self.report(TroubleKind::NotShutDown { why: error.to_string() });
        }
    }
}
