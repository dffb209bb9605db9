//! A temporary image on top of another, for changes that are to be thrown away.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use imago::format::gate::DenyImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder, FormatDriverBuilder};

use super::chain::Chain;
use super::layer::Layer;
use crate::kernel;
use crate::options::Bounce;

/// Puts an empty image on top, in a file without a name that is gone when it is closed, also after a crash.
pub(super) fn over(
    below: FormatAccess<Layer>,
    path: &Path,
    bounce: Bounce,
    chain: &mut Chain,
) -> io::Result<FormatAccess<Layer>> {
    let folder = folder();
    let file =
        OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(&folder);
    let file = file.map_err(|cause| {
        let folder = folder.display();
        let hint = match cause.kind() {
            io::ErrorKind::NotFound => "Make that folder, or set TMPDIR to another one",
            _ => "Set TMPDIR to another folder, whose file system has temporary files (O_TMPFILE), as ext4 and XFS do",
        };
        io::Error::new(cause.kind(), format!("no temporary file for the guest's changes in {folder}: {cause}. {hint}"))
    })?;
    let name = folder.join(format!("changes to {}", path.display()));
    let (file, remark) = kernel::temporary(file, &name, bounce)?;
    chain.remarks.extend(remark);
    let layer = chain.put_on_top(file, name);
    let size = below.size();
    let image: Qcow2<Layer> =
        Qcow2::create_builder(layer).size(size).create_open(DenyImplicitOpenGate::default(), |layer| {
            Ok(Qcow2::builder(layer).backing(Some(below)).write(true))
        })?;
    Ok(FormatAccess::new(image))
}

/// Where changes go: they may be large, so not into memory unless told to.
fn folder() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}
