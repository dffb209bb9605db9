use std::str::FromStr;

use super::{SpecError, split_options};

/// Whose IOMMU the emulated host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IommuModel {
    /// Intel VT-d with interrupt remapping, 39 bits of address.
    Intel,
    /// AMD's; NVMe controllers then sit on the root bus, for QEMU's model mistranslates devices behind bridges.
    Amd,
    /// No IOMMU: VFIO has nothing to stand on.
    None,
}

/// The emulated host's IOMMU with QEMU's options for it, as in `intel` or `intel,intremap=off`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iommu {
    /// Whose it is.
    pub model: IommuModel,
    /// Options handed to QEMU's device as they are.
    pub options: Vec<(String, String)>,
}

impl Iommu {
    /// Intel VT-d.
    pub fn intel() -> Self {
        IommuModel::Intel.into()
    }

    /// AMD's IOMMU.
    pub fn amd() -> Self {
        IommuModel::Amd.into()
    }

    /// None at all.
    pub fn none() -> Self {
        IommuModel::None.into()
    }

    /// The model's name on the command line.
    pub fn name(&self) -> &'static str {
        match self.model {
            IommuModel::Intel => "intel",
            IommuModel::Amd => "amd",
            IommuModel::None => "none",
        }
    }
}

impl From<IommuModel> for Iommu {
    fn from(model: IommuModel) -> Self {
        Iommu { model, options: Vec::new() }
    }
}

impl FromStr for Iommu {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let error = |why: String| SpecError::new("IOMMU", text, why, "Choose intel, amd or none");
        let (head, options) = split_options(text).map_err(error)?;
        let model = match head {
            "intel" => IommuModel::Intel,
            "amd" => IommuModel::Amd,
            "none" if options.is_empty() => IommuModel::None,
            "none" => return Err(error("without an IOMMU there is nothing to set".into())),
            _ => return Err(error("there is no such model".into())),
        };
        let options = options.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Ok(Iommu { model, options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_known_by_name_and_take_options() {
        assert_eq!("amd".parse(), Ok(Iommu::amd()));
        let iommu: Iommu = "intel,intremap=off".parse().unwrap();
        assert_eq!(iommu.options, [("intremap".to_owned(), "off".to_owned())]);
    }

    #[test]
    fn an_unknown_model_is_an_error_that_names_the_known_ones() {
        let error = "arm".parse::<Iommu>().unwrap_err().to_string();
        assert!(error.contains("arm") && error.contains("intel, amd or none"), "{error}");
    }
}
