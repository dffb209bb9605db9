//! From a VM back to the TOML that describes it.

use std::fmt::Write;

use crate::keys::{AssignKey, DiskKey, FwCfgKey, Key, Keyed, Kind, TpmKey};
use crate::model::{
    Assign, Boot, BootFirmware, Disk, DiskModel, DiskSource, FileDisk, FwCfgContent, FwCfgFile, HostDomain,
    OnTpmError, Tpm, TpmSource, Vm, Writes,
};

impl Vm {
    /// The file that describes this VM, with every default written out. Read again, it gives an equal VM.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for key in Key::ALL {
            if let Some(value) = of_vm(self, *key) {
                writeln!(text, "{} = {value}", key.name()).expect("a String takes all text");
            }
        }
        let firmware = of_firmware(&self.boot).into_iter();
        for file in firmware.flat_map(|firmware| &firmware.files) {
            text += &section(Key::FwCfg, |key| of_fw_cfg(file, key));
        }
        for disk in &self.disks {
            text += &section(Key::Disk, |key| of_disk(disk, key));
        }
        text
    }
}

impl Disk {
    /// The value of `--disk` that describes this disk. Read again, it gives an equal one.
    pub fn to_flag(&self) -> String {
        let items = DiskKey::ALL.iter().flat_map(|key| {
            of_disk(self, *key).into_iter().map(|said| format!("{}={}", key.name(), said.replace(',', ",,")))
        });
        items.collect::<Vec<String>>().join(",")
    }
}

/// What a table says for a key: nothing, a text as in a flag, or several of them.
type Said = Vec<String>;

fn said(value: impl ToString) -> Said {
    said_if(Some(value))
}

fn said_if(value: Option<impl ToString>) -> Said {
    value.into_iter().map(|value| value.to_string()).collect()
}

fn switch(on: bool) -> Said {
    said(if on { "on" } else { "off" })
}

/// The value of a VM's key in TOML, unless it is one of those that are written as tables behind all others.
fn of_vm(vm: &Vm, key: Key) -> Option<String> {
    let firmware = of_firmware(&vm.boot);
    let linux = vm.boot.kernel();
    let said = match key {
        Key::Name => said(&vm.name),
        Key::Cpus => said(vm.cpus),
        Key::Nested => switch(vm.nested),
        Key::Memory => said(vm.memory),
        Key::Hugepages => said_if(vm.backing.hugepages),
        Key::Node => said_if(vm.backing.node),
        Key::Wire => said(vm.backing.wire),
        Key::Firmware => said_if(firmware.map(|firmware| &firmware.image)),
        Key::FirmwareVars => said_if(firmware.and_then(|firmware| firmware.variables.as_ref())),
        Key::SecureBoot => firmware.map(|firmware| switch(firmware.secure_boot)).unwrap_or_default(),
        Key::Boot => said_if(firmware.and_then(|firmware| firmware.once)),
        Key::BootMenu => firmware.map(|firmware| switch(firmware.menu)).unwrap_or_default(),
        Key::Kernel => said_if(linux.map(|linux| &linux.kernel)),
        Key::Initrd => said_if(linux.and_then(|linux| linux.initrd.as_ref())),
        Key::Cmdline => said_if(linux.map(|linux| &linux.cmdline)),
        Key::Console => said(&vm.console),
        Key::Dma => said(vm.dma.back_end),
        Key::HostDomain => said(vm.dma.host_domain),
        Key::IKnow => said_if((vm.dma.host_domain == HostDomain::Exclusive).then_some("on")),
        Key::OnFault => said(vm.dma.on_fault),
        Key::P2p => said(vm.dma.p2p),
        Key::Tpm => return Some(tpm(vm.tpm.as_ref())),
        Key::Assign => {
            let assigned: Vec<String> = vm.assigned.iter().map(assign).collect();
            return Some(format!("[{}]", assigned.join(", ")));
        }
        Key::FwCfg | Key::Disk => return None,
    };
    in_toml(Keyed::row(key).kind, &said)
}

fn of_firmware(boot: &Boot) -> Option<&BootFirmware> {
    match boot {
        Boot::Firmware { firmware, .. } => Some(firmware),
        Boot::Kernel(_) => None,
    }
}

/// A TPM: that it is there alone where the rest is as it is without a word.
fn tpm(tpm: Option<&Tpm>) -> String {
    match tpm {
        None => "false".into(),
        Some(Tpm { source: TpmSource::Emulated, on_error }) if *on_error == OnTpmError::default() => {
            "true".into()
        }
        Some(Tpm { source, on_error }) => inline(|key| match (key, source) {
            (TpmKey::Passthrough, TpmSource::Passthrough(path)) => said(path),
            (TpmKey::Passthrough, TpmSource::Emulated) => Vec::new(),
            (TpmKey::OnError, _) => said(on_error),
        }),
    }
}

/// An assigned device: its address alone where the rest is as it is without a word.
fn assign(assign: &Assign) -> String {
    let Assign { address, domain, on_fault, on_request, boot_index, rom } = assign;
    if *assign == Assign::new(*address) {
        return quoted(&address.to_string());
    }
    inline(|key| match key {
        AssignKey::Address => said(address),
        AssignKey::Domain => said(domain),
        AssignKey::OnFault => said_if(*on_fault),
        AssignKey::OnRequest => said(on_request),
        AssignKey::BootIndex => said_if(*boot_index),
        AssignKey::Rom => said(rom),
    })
}

fn of_fw_cfg(file: &FwCfgFile, key: FwCfgKey) -> Said {
    match (key, &file.content) {
        (FwCfgKey::Name, _) => said(&file.name),
        (FwCfgKey::String, FwCfgContent::Text(text)) => said(text),
        (FwCfgKey::File, FwCfgContent::File(path)) => said(path),
        (FwCfgKey::String | FwCfgKey::File, _) => Vec::new(),
    }
}

fn of_disk(disk: &Disk, key: DiskKey) -> Said {
    let nothing = Vec::new;
    match key {
        DiskKey::Model => said(disk.model.name()),
        DiskKey::Controller => said_if(disk.controller.as_ref()),
        DiskKey::Queues => said_if(disk.model.queues()),
        DiskKey::Packed => match disk.model {
            DiskModel::VirtioBlk { packed, .. } => switch(packed),
            _ => nothing(),
        },
        DiskKey::WriteCache => match disk.model {
            DiskModel::VirtioBlk { write_cache, .. } => switch(write_cache),
            _ => nothing(),
        },
        DiskKey::Readonly => match disk.writes {
            Writes::ThrownAway => nothing(),
            Writes::Kept | Writes::Refused => switch(disk.writes == Writes::Refused),
        },
        DiskKey::Snapshot => said_if((disk.writes == Writes::ThrownAway).then_some("on")),
        DiskKey::Serial => said_if(disk.serial.as_ref()),
        DiskKey::Product => said_if(disk.product.as_ref()),
        DiskKey::Firmware => said_if(disk.firmware.as_ref()),
        DiskKey::OnError => said_if(disk.on_error),
        DiskKey::BootIndex => said_if(disk.boot_index),
        of_source => match (&disk.source, of_source) {
            (DiskSource::File(file), key) => of_file(file, key),
            (DiskSource::Nvme { address, .. }, DiskKey::Nvme) => said(address),
            (DiskSource::Nvme { namespace, .. }, DiskKey::Namespace) => said(namespace),
            (DiskSource::Nvme { poll, .. }, DiskKey::Poll) => said(poll),
            (DiskSource::Nbd(address), DiskKey::Nbd) => said(address),
            (DiskSource::Ram(size), DiskKey::Ram) => said(size),
            _ => nothing(),
        },
    }
}

fn of_file(file: &FileDisk, key: DiskKey) -> Said {
    let FileDisk { path, format, chain, logical, preallocate, bounce, buffers, poll, force } = file;
    match key {
        DiskKey::Path => said(path),
        DiskKey::Format => said_if(*format),
        DiskKey::Chain => chain.iter().map(ToString::to_string).collect(),
        DiskKey::Logical => said_if(*logical),
        DiskKey::Preallocate => said_if(preallocate.then_some("on")),
        DiskKey::Bounce => said(bounce),
        DiskKey::Buffers => said_if(*buffers),
        DiskKey::Poll => said_if(*poll),
        DiskKey::Force => switch(*force),
        _ => Vec::new(),
    }
}

/// A table behind all others: `[[disk]]` and what it says, each on a line.
fn section<K: Keyed>(key: Key, said: impl Fn(K) -> Said) -> String {
    let lines: Vec<String> = settings(said).map(|setting| setting + "\n").collect();
    format!("\n[[{}]]\n{}", key.name(), lines.concat())
}

/// A table within a line.
fn inline<K: Keyed>(said: impl Fn(K) -> Said) -> String {
    format!("{{ {} }}", settings(said).collect::<Vec<String>>().join(", "))
}

/// What is said for each key of a table.
fn settings<K: Keyed>(said: impl Fn(K) -> Said) -> impl Iterator<Item = String> {
    K::ALL.iter().filter_map(move |key| {
        let value = in_toml(key.row().kind, &said(*key))?;
        Some(format!("{} = {value}", key.name()))
    })
}

/// A value in TOML, if something is said.
fn in_toml(kind: Kind, said: &[String]) -> Option<String> {
    let first = said.first()?;
    Some(match kind {
        Kind::Switch => (first == "on").to_string(),
        Kind::Number(_) => first.clone(),
        Kind::Texts(_) => {
            let texts: Vec<String> = said.iter().map(|text| quoted(text)).collect();
            format!("[{}]", texts.join(", "))
        }
        _ => quoted(first),
    })
}

/// A TOML string, escaped where needed.
fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}
