use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

/// Which kernel the emulated host runs; its guests get the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// The newest of this Debian, fetched as a package and unpacked, never installed.
    Debian,
    /// The lab's own with everything built in, made by `cargo xtask lab-kernel`.
    Lab,
    /// A bzImage or an ELF kernel with everything built in that the lab needs.
    File(PathBuf),
}

impl FromStr for Kernel {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "debian" => Kernel::Debian,
            "lab" => Kernel::Lab,
            path => Kernel::File(path.into()),
        })
    }
}
