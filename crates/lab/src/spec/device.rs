use std::str::FromStr;

use super::{SpecError, split_options};

/// A device of the emulated host that is no disk: `e1000e`, `igb`, `ahci`, `edu`, `xhci` or another of QEMU's
/// PCI devices by its name there, with QEMU's options for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    model: String,
    options: Vec<(String, String)>,
}

impl Device {
    /// The usual device of that model.
    pub(crate) fn of_model(model: &str) -> Self {
        Device { model: model.to_owned(), options: Vec::new() }
    }

    /// QEMU's name of the model.
    pub fn model(&self) -> &str {
        match self.model.as_str() {
            "xhci" => "qemu-xhci",
            model => model,
        }
    }

    /// Options handed to QEMU as they are.
    pub fn options(&self) -> &[(String, String)] {
        &self.options
    }

    /// Whether the device is a network card, which QEMU wants to see plugged into something.
    pub fn is_network_card(&self) -> bool {
        let model = self.model();
        model.starts_with("e1000") || model.starts_with("igb") || model.starts_with("virtio-net")
    }
}

impl FromStr for Device {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let error =
            |why: String| SpecError::new("device", text, why, "Write it like e1000e, edu or xhci,id=usb");
        let (model, options) = split_options(text).map_err(error)?;
        if model.is_empty() || !model.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(error("its model has no name".into()));
        }
        if let Some((key, _)) = options.iter().find(|(key, _)| ["addr", "bus", "netdev"].contains(key)) {
            return Err(error(format!("{key} is chosen by the lab")));
        }
        let options = options.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Ok(Device { model: model.to_owned(), options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_model_and_options_in_their_order() {
        let device: Device = "xhci,p2=4,p3=8".parse().unwrap();
        assert_eq!(device.model(), "qemu-xhci");
        assert_eq!(device.options().len(), 2);
        assert_eq!(device.options()[1], ("p3".to_owned(), "8".to_owned()));
    }

    #[test]
    fn what_the_lab_chooses_cannot_be_given() {
        assert!("edu,addr=3".parse::<Device>().unwrap_err().to_string().contains("addr"));
    }

    #[test]
    fn a_device_without_model_or_with_a_bare_word_is_an_error() {
        for text in ["", ",x=y", "edu,fast", "edu,=1", "ed u"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
