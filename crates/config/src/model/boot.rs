//! What a VM boots.

use std::fmt;
use std::str::FromStr;

use super::distinct::{Distinct, Identified};
use super::words::words;
use crate::values::Invalid;
use crate::values::path::HostPath;
use crate::values::text::{Cmdline, FwCfgName};

/// What a VM boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// A kernel, without firmware.
    Kernel(Linux),
    /// UEFI firmware, and by it what is installed on a disk, or the kernel if one is named.
    Firmware {
        /// The firmware.
        firmware: Firmware,
        /// What it boots first, if not from a disk.
        kernel: Option<Linux>,
    },
}

impl Boot {
    /// The kernel, if one was named.
    pub fn kernel(&self) -> Option<&Linux> {
        match self {
            Boot::Kernel(linux) => Some(linux),
            Boot::Firmware { kernel, .. } => kernel.as_ref(),
        }
    }
}

/// A Linux kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linux {
    /// The kernel: an ELF file with a PVH entry, or a bzImage.
    pub kernel: HostPath,
    /// The initial RAM disk, if any.
    pub initrd: Option<HostPath>,
    /// The kernel's command line.
    pub cmdline: Cmdline,
}

/// UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// Which.
    pub image: FirmwareImage,
    /// The file of its variables; without a word, one under the VM's name.
    pub variables: Option<HostPath>,
    /// Whether it starts only what is signed by keys that it has.
    pub secure_boot: bool,
    /// Whether it shows its menu for a moment before it boots.
    pub menu: bool,
    /// What comes before everything else, at the start and not again after a reset.
    pub once: Option<Once>,
    /// Files for the guest, in its firmware's configuration.
    pub files: Distinct<FwCfgFile>,
}

impl Firmware {
    /// This one, with nothing else said about it.
    pub fn new(image: FirmwareImage) -> Firmware {
        Firmware {
            image,
            variables: None,
            secure_boot: false,
            menu: false,
            once: None,
            files: Distinct::default(),
        }
    }
}

/// A file for the guest, in its firmware's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FwCfgFile {
    /// What it is called there.
    pub name: FwCfgName,
    /// Its bytes.
    pub content: FwCfgContent,
}

/// The bytes of a [`FwCfgFile`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FwCfgContent {
    /// These.
    Text(String),
    /// Those of a file of this host.
    File(HostPath),
}

impl Identified for FwCfgFile {
    fn identity(&self) -> Option<String> {
        Some(format!("the fw-cfg file {}", self.name))
    }
}

words! {
    /// What a VM boots once, as an installer wants it.
    pub enum Once, "what a VM boots once" {
        /// The discs in its CD drives.
        Cd = "once:cd",
    }
}

/// A firmware's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirmwareImage {
    /// What this host has installed.
    Installed,
    /// These.
    Files {
        /// Its code.
        code: HostPath,
        /// What a VM's variables are made from at its first start; without a word, the file beside the code that is named
        /// like it.
        variables: Option<HostPath>,
    },
}

/// What is said of firmware: `auto`, `ovmf`, `none`, or `PATH[,vars=PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirmwareChoice {
    /// None: a kernel is booted without it.
    None,
    /// This one.
    Image(FirmwareImage),
}

impl FromStr for FirmwareChoice {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<FirmwareChoice, Invalid> {
        match text {
            "none" => return Ok(FirmwareChoice::None),
            "auto" | "ovmf" => return Ok(FirmwareChoice::Image(FirmwareImage::Installed)),
            _ => {}
        }
        let (code, variables) = match text.split_once(",vars=") {
            Some((code, variables)) => (code, Some(variables.parse()?)),
            None => (text, None),
        };
        if variables.is_some() && matches!(code, "auto" | "ovmf" | "none") {
            return Err(Invalid::FirmwareVars { word: code.to_owned() });
        }
        // A folder's name may look so, too, but then its path goes on.
        if let Some((key, value)) = code.rsplit_once(',').and_then(|(_, item)| item.split_once('='))
            && (value.starts_with('/') || !value.contains('/'))
        {
            return Err(Invalid::FirmwareKey { key: key.to_owned() });
        }
        let code = HostPath::unless_word(code, "not a firmware", &["auto", "ovmf", "none"])?;
        Ok(FirmwareChoice::Image(FirmwareImage::Files { code, variables }))
    }
}

/// As it is written in flags and TOML.
impl fmt::Display for FirmwareImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FirmwareImage::Installed => f.write_str("auto"),
            FirmwareImage::Files { code, variables: None } => write!(f, "{code}"),
            FirmwareImage::Files { code, variables: Some(variables) } => write!(f, "{code},vars={variables}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firmware_reads_as_it_prints() {
        for text in ["auto", "/a,rev=2/OVMF.fd", "/fw/CODE.fd", "/fw/CODE.fd,vars=/fw/VARS.fd", "./code"] {
            let FirmwareChoice::Image(image) = text.parse().unwrap() else { panic!("{text}") };
            assert_eq!(image.to_string(), text);
        }
        assert_eq!("ovmf".parse(), Ok(FirmwareChoice::Image(FirmwareImage::Installed)));
        assert_eq!("none".parse(), Ok(FirmwareChoice::None));
        for bad in ["", "bios", "/a,vars="] {
            assert!(bad.parse::<FirmwareChoice>().is_err(), "{bad:?}");
        }
        let error = "auto,vars=/v".parse::<FirmwareChoice>().unwrap_err().to_string();
        assert!(error.contains("`vars` goes with a code's path"), "{error}");
        for bad in ["/a,var=/b", "/a,menu=on,vars=/b"] {
            let error = bad.parse::<FirmwareChoice>().unwrap_err().to_string();
            assert!(error.contains("PATH[,vars=PATH]"), "{error}");
        }
    }
}
