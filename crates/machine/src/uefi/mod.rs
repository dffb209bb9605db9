//! UEFI firmware in a VM: its files, checked before anything is touched, and the flash memory and the configuration device
//! that it finds.

mod files;
mod order;
mod variables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use boot::firmware::{self, Damaged, EfiKernel, EfiKernelError, FindError, FirmwareError, Part, SecureBoot};
use boot::platform::Platform;
use boot::{Initrd, InitrdError, LoadError};
use config::{BootFirmware, FwCfgContent, FwCfgFile, FwCfgName, HostPath, Once, VmName};
use devices::fw_cfg::{Content, Items, NameError, key};
use devices::{Flash, FwCfg, Store};
use memory::{Change, DeviceMemory, Gpa, GpaRange, MemoryMap, Ram, RegisterPages};

use crate::events::Events;

use files::Files;

pub use boot::firmware::templates;
pub use files::variables_of;
pub use order::{BootKind, Bootable, assigned};
use variables::Origin;
pub use variables::VariablesError;

/// Where flash memory ends.
const END: u64 = 1 << 32;

/// With less RAM, OVMF ends in a triple fault: it does with 24 MiB, and with 32 it does not.
const LEAST_RAM: u64 = 32 << 20;

/// Whether firmware can start in so many bytes of RAM.
pub fn enough_ram(bytes: u64) -> Result<(), UefiError> {
    if bytes >= LEAST_RAM { Ok(()) } else { Err(UefiError::TooLittleRam { bytes }) }
}

/// How long a menu is shown.
const MENU: Duration = Duration::from_secs(5);

/// Why a VM cannot have its firmware.
#[derive(Debug, thiserror::Error)]
pub enum UefiError {
    /// This host has none.
    #[error(transparent)]
    Find(#[from] FindError),
    /// A file is not what it should be.
    #[error(transparent)]
    File(#[from] FirmwareError),
    /// There is no template of variables beside the code.
    #[error(
        "there is no template of variables for the firmware {}, which this VM's would be copied from: no file beside it is named like \
         it. Name one: --firmware {},vars=PATH.",
        .0.display(), .0.display()
    )]
    NoTemplate(PathBuf),
    /// There is none that turns Secure Boot on.
    #[error(
        "there is no template of variables with keys for Secure Boot beside the firmware {} (OVMF_VARS.ms.fd for OVMF_CODE.fd, say), \
         which this VM's would be copied from. Name one: --firmware {},vars=PATH; Debian's OVMF_VARS_4M.ms.fd fits each code of \
         3653632 bytes. Or leave --secure-boot out.",
        .0.display(), .0.display()
    )]
    NoTemplateWithKeys(PathBuf),
    /// Secure Boot is to be on, and is not.
    #[error(
        "the firmware's variables {} do not turn Secure Boot on: they have no platform key, or SecureBootEnable is off. Start once without \
         --secure-boot and enrol keys or turn it on in the firmware's own settings; or remove the file, and it is made anew (what was \
         set is lost) from a template with keys.",
        .0.display()
    )]
    NoKeys(PathBuf),
    /// Secure Boot is to be on, and new variables would not turn it on.
    #[error(
        "the variables {} that this VM's would be copied from do not turn Secure Boot on: they have no platform key. Name some that \
         have (--firmware CODE,vars=PATH; Debian's package ovmf has OVMF_VARS_4M.ms.fd), or leave --secure-boot out.",
        .0.display()
    )]
    TemplateWithoutKeys(PathBuf),
    /// Secure Boot is to be on, and nobody can say whether it is.
    #[error(
        "whether {} turns Secure Boot on is not to be seen: {damaged}. Put a copy of the file in its place, or leave --secure-boot out.",
        .path.display()
    )]
    DamagedKeys {
        /// The file.
        path: PathBuf,
        /// Where and what.
        damaged: Damaged,
    },
    /// The variables.
    #[error(transparent)]
    Variables(#[from] VariablesError),
    /// The kernel that it is to start.
    #[error(transparent)]
    Kernel(#[from] EfiKernelError),
    /// That kernel's initial RAM disk.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// One of the two cannot be given to it.
    #[error("the firmware cannot be given the {what} {file}: {cause}. It takes files of less than 4 GiB.")]
    Part {
        /// "kernel" or "initrd".
        what: &'static str,
        /// Its path.
        file: String,
        /// Why.
        cause: std::io::Error,
    },
    /// What it is told.
    #[error(transparent)]
    Tables(#[from] LoadError),
    /// The same.
    #[error("the firmware's configuration: {0}. This is a fault in skep.")]
    Name(#[from] NameError),
    /// The guest's.
    #[error(
        "UEFI firmware needs at least 32 MiB of RAM for itself, and this VM has {bytes} bytes: it would crash before its first word. Give \
         it more (--memory), and what it boots as well."
    )]
    TooLittleRam {
        /// What it has.
        bytes: u64,
    },
    /// Memory for the flash.
    #[error("cannot allocate flash memory: {0}. This host is short of memory.")]
    Memory(std::io::Error),
    /// The flash in the guest's memory.
    #[error(
        "KVM does not show the firmware to the guest as memory: {0}. Look into the kernel's log (`dmesg`)."
    )]
    Shown(std::io::Error),
    /// Another descriptor of a file.
    #[error("cannot have one more open file: {0}. Raise the limit of open files (ulimit -n).")]
    Descriptor(std::io::Error),
}

/// A firmware whose files are what they should be.
#[derive(Debug)]
pub struct Firmware {
    own: Files,
    menu: bool,
    once: Option<Once>,
    files: Vec<GuestFile>,
}

/// A file for the guest, with its name.
#[derive(Debug)]
struct GuestFile(FwCfgName, GuestContent);

#[derive(Debug)]
enum GuestContent {
    Text(String),
    File(Part),
}

impl GuestFile {
    fn open(FwCfgFile { name, content }: &FwCfgFile) -> Result<GuestFile, UefiError> {
        let content = match content {
            FwCfgContent::Text(text) => GuestContent::Text(text.clone()),
            FwCfgContent::File(path) => GuestContent::File(Part::of_file(path.as_path())?),
        };
        Ok(GuestFile(name.clone(), content))
    }

    fn give(&self, items: &mut Items) -> Result<(), UefiError> {
        let content = match &self.1 {
            GuestContent::Text(text) => Content::from(text.clone().into_bytes()),
            GuestContent::File(part) => content(part)?,
        };
        Ok(items.add(self.0.as_str(), content)?)
    }
}

impl Firmware {
    /// Finds and checks the files of a firmware, for a VM of this name.
    pub fn check(described: &BootFirmware, name: &VmName) -> Result<Firmware, Vec<UefiError>> {
        let (mut files, mut wrong) = (Vec::new(), Vec::new());
        let own = Files::check(described, name).map_err(|errors| wrong.extend(errors));
        for file in &described.files {
            match GuestFile::open(file) {
                Ok(file) => files.push(file),
                Err(error) => wrong.push(error),
            }
        }
        match own {
            Ok(own) if wrong.is_empty() => {
                let BootFirmware { menu, once, .. } = *described;
                Ok(Firmware { own, menu, once, files })
            }
            _ => Err(wrong),
        }
    }

    /// What to tell people about it.
    pub fn said(&self) -> String {
        let (code, variables) = (self.own.code.path().display(), self.own.variables.path().display());
        let secure_boot = match &self.own.secure_boot {
            Ok(SecureBoot::Off) => "",
            Ok(SecureBoot::On) => ", Secure Boot",
            Ok(SecureBoot::ByTestKey) => {
                ", Secure Boot by a test key that is published: anybody can sign what it starts"
            }
            Err(damaged) => {
                return format!(
                    "firmware {code}, its variables {variables}: {damaged}; the firmware may lose some of them, or all"
                );
            }
        };
        format!("firmware {code}{secure_boot}, its variables {variables}")
    }

    /// What to tell people about variables that this start makes: where they are from now on.
    pub fn new_variables(&self) -> Option<String> {
        let variables = &self.own.variables;
        let (path, template) = (variables.path().display(), variables.store().path().display());
        let said = format!("the firmware's variables of this VM are new: {path}, copied from {template}");
        (variables.origin() == Origin::Template).then_some(said)
    }

    /// The configuration device, with what it asks for. `bootable` are the disks in the order in which they are described, and
    /// behind them the assigned devices.
    pub fn configuration(
        &self,
        platform: &Platform,
        ram: &Arc<Ram>,
        kernel: Option<&Kernel>,
        bootable: &[Bootable],
    ) -> Result<FwCfg, UefiError> {
        let mut items = Items::default();
        if let Some(kernel) = kernel {
            kernel.give(&mut items)?;
        }
        // More than the register holds there are not: KVM's limit is 4096.
        let cpus = platform.cpus.count() as u16;
        items.set(key::CPUS, cpus.to_le_bytes().to_vec());
        items.set(key::CPUS_MAX, cpus.to_le_bytes().to_vec());
        for file in firmware::files(platform, ram)? {
            items.add(file.name, file.bytes)?;
        }
        let [first, again] = order::files(bootable, self.once);
        items.add_changing("bootorder", first, again)?;
        for file in &self.files {
            file.give(&mut items)?;
        }
        if self.menu {
            items.set(key::BOOT_MENU, 1u16.to_le_bytes().to_vec());
            items.add("etc/boot-menu-wait", (MENU.as_millis() as u16).to_le_bytes().to_vec())?;
        }
        Ok(FwCfg::new(items, ram.clone()))
    }

    /// Puts it into flash memory, which the guest reads as memory; its variables it also writes.
    pub fn flash(&self, map: &Arc<MemoryMap>, events: &Events) -> Result<Vec<Flash>, UefiError> {
        let (store, variables) = self.own.variables.take()?;
        let code = self.own.code.read()?;
        let code_at = Gpa(END - code.len() as u64);
        let variables_at = Gpa(code_at.0 - variables.len() as u64);
        let store: Box<dyn Store> = Box::new(store);
        Ok(vec![
            chip("firmware variables", variables_at, &variables, Some(store), map, events)?,
            chip("firmware code", code_at, &code, None, map, events)?,
        ])
    }
}

fn chip(
    name: &'static str,
    at: Gpa,
    bytes: &[u8],
    store: Option<Box<dyn Store>>,
    map: &Arc<MemoryMap>,
    events: &Events,
) -> Result<Flash, UefiError> {
    let pages = Arc::new(RegisterPages::new(bytes.len()).map_err(UefiError::Memory)?);
    pages.store_bytes(0, bytes);
    let range =
        GpaRange::new(at, bytes.len() as u64).expect("a firmware's files are whole blocks below 4 GiB");
    let memory: DeviceMemory = pages.at(name, range).expect("the range is as long as the pages");
    // The VM's, which goes when the VM does.
    let map = Arc::downgrade(map);
    let show = Box::new(move |shown| {
        let change =
            if shown { Change::AddDevice(memory.clone()) } else { Change::RemoveDevice(memory.clone()) };
        let Some(map) = map.upgrade() else { return Ok(()) };
        map.apply(&change).map_err(std::io::Error::other)
    });
    let events = events.clone();
    Flash::new(range, pages, store, show, Box::new(move |what| events.provoked(what)))
        .map_err(UefiError::Shown)
}

/// A kernel that firmware starts, with all that it gets.
pub struct Kernel {
    /// Its setup part and the rest.
    kernel: [Part; 2],
    initrd: Option<Part>,
    command_line: String,
}

impl Kernel {
    /// Opens and checks the files.
    pub fn check(linux: &config::Linux) -> Result<Kernel, Vec<UefiError>> {
        let refused = |what, path: &HostPath| {
            let file = path.to_string();
            move |cause| UefiError::Part { what, file, cause }
        };
        let kernel = EfiKernel::open(linux.kernel.as_path())
            .map_err(UefiError::from)
            .and_then(|kernel| kernel.parts().map_err(refused("kernel", &linux.kernel)));
        let initrd = linux.initrd.as_ref().map(|path| {
            Initrd::open(path.as_path())
                .map_err(UefiError::from)
                .and_then(|initrd| initrd.part().map_err(refused("initrd", path)))
        });
        let command_line = linux.cmdline.as_str().to_owned();
        match (kernel, initrd.transpose()) {
            (Ok(kernel), Ok(initrd)) => Ok(Kernel { kernel, initrd, command_line }),
            (kernel, initrd) => Err(kernel.err().into_iter().chain(initrd.err()).collect()),
        }
    }

    fn give(&self, items: &mut Items) -> Result<(), UefiError> {
        let [setup, rest] = &self.kernel;
        give(items, key::SETUP_SIZE, key::SETUP, setup)?;
        give(items, key::KERNEL_SIZE, key::KERNEL, rest)?;
        if let Some(initrd) = &self.initrd {
            give(items, key::INITRD_SIZE, key::INITRD, initrd)?;
        }
        let line = [self.command_line.as_bytes(), &[0]].concat();
        items.set(key::COMMAND_LINE_SIZE, (line.len() as u32).to_le_bytes().to_vec());
        items.set(key::COMMAND_LINE, line);
        Ok(())
    }
}

fn give(items: &mut Items, size: u16, key: u16, part: &Part) -> Result<(), UefiError> {
    items.set(size, part.len.to_le_bytes().to_vec());
    items.set(key, content(part)?);
    Ok(())
}

fn content(part: &Part) -> Result<Content, UefiError> {
    let Part { file, offset, len } = part;
    Ok(Content::File { file: file.try_clone().map_err(UefiError::Descriptor)?, offset: *offset, len: *len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initrd_of_4_gib_is_found_with_the_kernel_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let initrd = folder.path().join("initrd");
        std::fs::File::create(&initrd).unwrap().set_len(1 << 32).unwrap();
        let path = |path: &std::path::Path| path.to_str().unwrap().parse().unwrap();
        let linux = config::Linux {
            kernel: path(&folder.path().join("none")),
            initrd: Some(path(&initrd)),
            cmdline: config::Cmdline::default(),
        };
        let found: Vec<String> =
            Kernel::check(&linux).err().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains(&format!("the initrd {}", initrd.display())), "{found:?}");
    }

    #[test]
    fn too_little_ram_for_firmware_is_a_finding_and_what_suffices_is_not() {
        assert!(enough_ram(32 << 20).is_ok());
        let error = enough_ram((32 << 20) - 4096).unwrap_err().to_string();
        assert!(error.contains("33550336 bytes") && error.contains("--memory"), "{error}");
    }
}
