//! Why an image cannot be used.

use crate::options::Format;

/// Why an image cannot be used, and what to do about it.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Unfit {
    pub(super) what: String,
    pub(super) hint: &'static str,
}

impl Unfit {
    pub(super) fn damaged(what: impl Into<String>) -> Unfit {
        Unfit {
            what: what.into(),
            hint: "Repair the image with `qemu-img check -r all`, or take it from a copy.",
        }
    }

    pub(super) fn no_image(format: Format) -> Unfit {
        Unfit {
            what: format!("it cannot be used as a {format} image: it does not begin like one"),
            hint: "Say with `format` which format it has.",
        }
    }
}
