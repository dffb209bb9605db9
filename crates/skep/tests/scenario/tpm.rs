//! Debian's programs around TPMs, with the libraries that they need: swtpm for the emulated host, and tpm2-tools for its guests.

use std::fs;
use std::path::Path;

use super::programs;

/// Unpacks swtpm in the host, from the folder that it shares. For the beginning of a story.
pub const SWTPM: &str = "
    (cd / && cpio -i -d < /share/swtpm.cpio 2> /dev/null)
";

/// Gives the host a TPM, /dev/tpm0, with a file of [`of_the_host`] and this machine's swtpm and python3.
pub const HOST_TPM: &str = "
    modprobe tpm_vtpm_proxy
    mount --bind /dev /host/dev
    mkdir -p /host/tmp/tpm
    outer python3 /share/host_tpm.py /tmp/tpm < /dev/null > /dev/null &
    wait_for 120 test -c /dev/tpmrm0
";

/// For guests: a driver that serves several programs, and one TPM.
pub const TOOLS: &str = "
    export TPM2TOOLS_TCTI=device:/dev/tpmrm0
";

/// Puts what makes a TPM of the host into a folder to share with it.
pub fn of_the_host(folder: &Path) {
    fs::write(folder.join("host_tpm.py"), include_str!("host_tpm.py")).unwrap();
}

/// Puts them into a folder to share with the host; every guest gets the tools.
pub fn programs(folder: &Path) {
    fs::write(folder.join("swtpm.cpio"), programs::packed(&["swtpm"], &[])).unwrap();
    // Which device to talk to is a library that nothing but its name leads to.
    let device = "/usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0";
    fs::write(folder.join("programs.cpio"), programs::packed(&["tpm2"], &[Path::new(device)])).unwrap();
}
