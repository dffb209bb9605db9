//! From a VM back to the TOML that describes it.

use std::fmt::{Display, Write};

use crate::model::{Assign, Disk, DiskModel, DiskSource, FileDisk, HostDomain, Vm, Writes};
use crate::values::name::DomainName;

impl Vm {
    /// The file that describes this VM, with every default written out. Read again, it gives an equal VM.
    pub fn to_toml(&self) -> String {
        let mut lines = Lines(String::new());
        lines.text("name", &self.name);
        lines.bare("cpus", self.cpus);
        lines.text("memory", self.memory);
        if let Some(pages) = self.backing.hugepages {
            lines.text("hugepages", pages);
        }
        if let Some(node) = self.backing.node {
            lines.bare("node", node);
        }
        lines.text("wire", self.backing.wire);
        lines.text("kernel", &self.boot.kernel);
        if let Some(initrd) = &self.boot.initrd {
            lines.text("initrd", initrd);
        }
        lines.text("cmdline", &self.boot.cmdline);
        lines.text("console", &self.console);
        lines.text("dma", self.dma.back_end);
        lines.text("host-domain", self.dma.host_domain);
        if self.dma.host_domain == HostDomain::Exclusive {
            lines.bare("i-know", true);
        }
        lines.text("on-fault", self.dma.on_fault);
        lines.text("p2p", self.dma.p2p);
        let assigned: Vec<String> = self.assigned.iter().map(assign).collect();
        lines.bare("assign", format_args!("[{}]", assigned.join(", ")));
        for disk in &self.disks {
            lines.0.push_str("\n[[disk]]\n");
            lines.disk(disk);
        }
        lines.0
    }
}

/// An assigned device: its address alone where the rest is as it is without a word.
fn assign(assign: &Assign) -> String {
    let Assign { address, domain, on_fault } = assign;
    if *domain == DomainName::default() && on_fault.is_none() {
        return quoted(address);
    }
    let on_fault = on_fault.map(|answer| format!(", on-fault = {}", quoted(answer))).unwrap_or_default();
    format!("{{ address = {}, domain = {}{on_fault} }}", quoted(address), quoted(domain))
}

struct Lines(String);

impl Lines {
    fn text(&mut self, key: &str, value: impl Display) {
        self.bare(key, quoted(value));
    }

    fn disk(&mut self, disk: &Disk) {
        match &disk.source {
            DiskSource::File(file) => self.file(file),
            DiskSource::Nvme { address, namespace, poll } => {
                self.text("nvme", address);
                self.bare("namespace", namespace);
                self.text("poll", poll);
            }
            DiskSource::Nbd(address) => self.text("nbd", address),
            DiskSource::Ram(size) => self.text("ram", size),
        }
        self.text("model", disk.model.name());
        if let Some(controller) = &disk.controller {
            self.text("controller", controller);
        }
        if let Some(queues) = disk.model.queues() {
            self.bare("queues", queues);
        }
        if let DiskModel::VirtioBlk { packed, write_cache, .. } = disk.model {
            self.bare("packed", packed);
            self.bare("write-cache", write_cache);
        }
        match disk.writes {
            Writes::Kept => self.bare("readonly", false),
            Writes::Refused => self.bare("readonly", true),
            Writes::ThrownAway => self.bare("snapshot", true),
        }
        if let Some(serial) = &disk.serial {
            self.text("serial", serial);
        }
        if let Some(product) = &disk.product {
            self.text("product", product);
        }
        if let Some(firmware) = &disk.firmware {
            self.text("firmware", firmware);
        }
        if let Some(on_error) = disk.on_error {
            self.text("on-error", on_error);
        }
    }

    fn file(&mut self, file: &FileDisk) {
        let FileDisk { path, format, logical, preallocate, bounce, buffers, poll, force } = file;
        self.text("path", path);
        if let Some(format) = format {
            self.text("format", format);
        }
        if let Some(logical) = logical {
            self.bare("logical", logical);
        }
        if *preallocate {
            self.bare("preallocate", true);
        }
        self.text("bounce", bounce);
        if let Some(buffers) = buffers {
            self.text("buffers", buffers);
        }
        if let Some(poll) = poll {
            self.text("poll", poll);
        }
        self.bare("force", force);
    }

    fn bare(&mut self, key: &str, value: impl Display) {
        writeln!(self.0, "{key} = {value}").expect("a String takes all text");
    }
}

/// A TOML string, escaped where needed.
fn quoted(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}
