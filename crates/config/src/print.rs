//! From a VM back to the TOML that describes it.

use std::fmt::{Display, Write};

use crate::model::{
    Assign, Boot, BootFirmware, Disk, DiskModel, DiskSource, FileDisk, FwCfgContent, FwCfgFile, HostDomain,
    OnTpmError, Tpm, TpmSource, Vm, Writes,
};

impl Vm {
    /// The file that describes this VM, with every default written out. Read again, it gives an equal VM.
    pub fn to_toml(&self) -> String {
        let mut lines = Lines(String::new());
        lines.text("name", &self.name);
        lines.bare("cpus", self.cpus);
        lines.bare("nested", self.nested);
        lines.text("memory", self.memory);
        if let Some(pages) = self.backing.hugepages {
            lines.text("hugepages", pages);
        }
        if let Some(node) = self.backing.node {
            lines.bare("node", node);
        }
        lines.text("wire", self.backing.wire);
        if let Boot::Firmware { firmware, .. } = &self.boot {
            let BootFirmware { image, variables, secure_boot, menu, once, files: _ } = firmware;
            lines.text("firmware", image);
            if let Some(variables) = variables {
                lines.text("firmware-vars", variables);
            }
            lines.bare("secure-boot", secure_boot);
            if let Some(once) = once {
                lines.text("boot", once);
            }
            lines.bare("boot-menu", menu);
        }
        if let Some(linux) = self.boot.kernel() {
            lines.text("kernel", &linux.kernel);
            if let Some(initrd) = &linux.initrd {
                lines.text("initrd", initrd);
            }
            lines.text("cmdline", &linux.cmdline);
        }
        lines.text("console", &self.console);
        lines.text("dma", self.dma.back_end);
        lines.text("host-domain", self.dma.host_domain);
        if self.dma.host_domain == HostDomain::Exclusive {
            lines.bare("i-know", true);
        }
        lines.text("on-fault", self.dma.on_fault);
        lines.text("p2p", self.dma.p2p);
        lines.bare("tpm", tpm(self.tpm.as_ref()));
        let assigned: Vec<String> = self.assigned.iter().map(assign).collect();
        lines.bare("assign", format_args!("[{}]", assigned.join(", ")));
        if let Boot::Firmware { firmware, .. } = &self.boot {
            for FwCfgFile { name, content } in &firmware.files {
                lines.0.push_str("\n[[fw-cfg]]\n");
                lines.text("name", name);
                match content {
                    FwCfgContent::Text(text) => lines.text("string", text),
                    FwCfgContent::File(path) => lines.text("file", path),
                }
            }
        }
        for disk in &self.disks {
            lines.0.push_str("\n[[disk]]\n");
            lines.disk(disk);
        }
        lines.0
    }
}

/// A TPM: that it is there alone where the rest is as it is without a word.
fn tpm(tpm: Option<&Tpm>) -> String {
    let Some(Tpm { source, on_error }) = tpm else { return "false".into() };
    let answer = format!("on-error = {}", quoted(on_error));
    match source {
        TpmSource::Emulated if *on_error == OnTpmError::default() => "true".into(),
        TpmSource::Emulated => format!("{{ {answer} }}"),
        TpmSource::Passthrough(path) => format!("{{ passthrough = {}, {answer} }}", quoted(path)),
    }
}

/// An assigned device: its address alone where the rest is as it is without a word.
fn assign(assign: &Assign) -> String {
    let Assign { address, domain, on_fault, on_request, boot_index, rom } = assign;
    if *assign == Assign::new(*address) {
        return quoted(address);
    }
    let on_fault = on_fault.map(|answer| format!(", on-fault = {}", quoted(answer))).unwrap_or_default();
    let boot_index = boot_index.map(|index| format!(", bootindex = {index}")).unwrap_or_default();
    let [address, domain, on_request, rom] =
        [quoted(address), quoted(domain), quoted(on_request), quoted(rom)];
    format!(
        "{{ address = {address}, domain = {domain}{on_fault}, on-request = {on_request}{boot_index}, rom = {rom} }}"
    )
}

impl Disk {
    /// The value of `--disk` that describes this disk. Read again, it gives an equal one.
    pub fn to_flag(&self) -> String {
        let items = words(self).into_iter().map(|(key, word)| match word {
            Word::Text(text) => item(key, &text),
            Word::Texts(texts) => texts.iter().map(|text| item(key, text)).collect::<Vec<String>>().join(","),
            Word::Number(number) => format!("{key}={number}"),
            Word::Switch(on) => format!("{key}={}", if on { "on" } else { "off" }),
        });
        items.collect::<Vec<String>>().join(",")
    }
}

/// An item of a flag's list.
fn item(key: &str, text: &str) -> String {
    format!("{key}={}", text.replace(',', ",,"))
}

/// A value of a disk.
enum Word {
    Text(String),
    /// Not empty.
    Texts(Vec<String>),
    Number(String),
    Switch(bool),
}

fn text(value: impl Display) -> Word {
    Word::Text(value.to_string())
}

fn number(value: impl Display) -> Word {
    Word::Number(value.to_string())
}

/// What is said of a disk, with its keys.
fn words(disk: &Disk) -> Vec<(&'static str, Word)> {
    let mut words = match &disk.source {
        DiskSource::File(file) => words_of_file(file),
        DiskSource::Nvme { address, namespace, poll } => {
            vec![("nvme", text(address)), ("namespace", number(namespace)), ("poll", text(poll))]
        }
        DiskSource::Nbd(address) => vec![("nbd", text(address))],
        DiskSource::Ram(size) => vec![("ram", text(size))],
    };
    words.push(("model", text(disk.model.name())));
    words.extend(disk.controller.as_ref().map(|name| ("controller", text(name))));
    words.extend(disk.model.queues().map(|queues| ("queues", number(queues))));
    if let DiskModel::VirtioBlk { packed, write_cache, .. } = disk.model {
        words.push(("packed", Word::Switch(packed)));
        words.push(("write-cache", Word::Switch(write_cache)));
    }
    words.push(match disk.writes {
        Writes::Kept => ("readonly", Word::Switch(false)),
        Writes::Refused => ("readonly", Word::Switch(true)),
        Writes::ThrownAway => ("snapshot", Word::Switch(true)),
    });
    words.extend(disk.serial.as_ref().map(|serial| ("serial", text(serial))));
    words.extend(disk.product.as_ref().map(|product| ("product", text(product))));
    words.extend(disk.firmware.as_ref().map(|firmware| ("firmware", text(firmware))));
    words.extend(disk.on_error.map(|on_error| ("on-error", text(on_error))));
    words.extend(disk.boot_index.map(|index| ("bootindex", number(index))));
    words
}

fn words_of_file(file: &FileDisk) -> Vec<(&'static str, Word)> {
    let FileDisk { path, format, chain, logical, preallocate, bounce, buffers, poll, force } = file;
    let mut words = vec![("path", text(path))];
    words.extend(format.map(|format| ("format", text(format))));
    if !chain.is_empty() {
        words.push(("chain", Word::Texts(chain.iter().map(ToString::to_string).collect())));
    }
    words.extend(logical.map(|logical| ("logical", number(logical))));
    words.extend(preallocate.then_some(("preallocate", Word::Switch(true))));
    words.push(("bounce", text(bounce)));
    words.extend(buffers.map(|buffers| ("buffers", text(buffers))));
    words.extend(poll.map(|poll| ("poll", text(poll))));
    words.push(("force", Word::Switch(*force)));
    words
}

struct Lines(String);

impl Lines {
    fn text(&mut self, key: &str, value: impl Display) {
        self.bare(key, quoted(value));
    }

    fn disk(&mut self, disk: &Disk) {
        for (key, word) in words(disk) {
            match word {
                Word::Text(text) => self.text(key, text),
                Word::Texts(texts) => {
                    let texts: Vec<String> = texts.iter().map(quoted).collect();
                    self.bare(key, format_args!("[{}]", texts.join(", ")));
                }
                Word::Number(number) => self.bare(key, number),
                Word::Switch(on) => self.bare(key, on),
            }
        }
    }

    fn bare(&mut self, key: &str, value: impl Display) {
        writeln!(self.0, "{key} = {value}").expect("a String takes all text");
    }
}

/// A TOML string, escaped where needed.
fn quoted(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}
