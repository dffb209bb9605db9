//! What the emulated host is made of, as a person writes it: `ahci:64M,serial=A`, `e1000e`, `intel`.

mod device;
mod disk;
mod iommu;
mod kernel;
mod size;

pub use device::Device;
pub use disk::{BlockSize, Bus, Contents, Disk};
pub use iommu::{Iommu, IommuModel};
pub use kernel::Kernel;
pub use size::Size;

/// A description that cannot be understood or cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?}: {why}. {hint}.")]
pub struct SpecError {
    what: &'static str,
    text: String,
    why: String,
    hint: &'static str,
}

impl SpecError {
    fn new(what: &'static str, text: &str, why: impl Into<String>, hint: &'static str) -> Self {
        SpecError { what, text: text.to_owned(), why: why.into(), hint }
    }
}

/// Options of a description, in their order.
type Options<'a> = Vec<(&'a str, &'a str)>;

/// Splits `a,k=v,k=v` into its head and its options, in their order.
fn split_options(text: &str) -> Result<(&str, Options<'_>), String> {
    let mut parts = text.split(',');
    let head = parts.next().unwrap_or_default();
    let mut options = Vec::new();
    for part in parts {
        match part.split_once('=') {
            Some((key, value)) if !key.is_empty() => options.push((key, value)),
            _ => return Err(format!("{part:?} is not of the form key=value")),
        }
    }
    Ok((head, options))
}
