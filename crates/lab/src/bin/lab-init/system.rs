//! What init asks of the kernel.

use std::ffi::CString;
use std::fs;
use std::io;
use std::process::ExitStatus;

/// The words of the kernel's command line.
pub fn command_line() -> Vec<String> {
    let text = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Mounts a file system, making the mount point if it is not there.
pub fn mount(kind: &str, source: &str, at: &str, flags: libc::c_ulong, options: &str) -> io::Result<()> {
    fs::create_dir_all(at)?;
    let [kind, source, at, options] = [kind, source, at, options].map(CString::new);
    let (kind, source, at, options) = (kind?, source?, at?, options?);
    // SAFETY: the four are C strings that live through the call; mount reads nothing else.
    let result =
        unsafe { libc::mount(source.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The file systems that every program expects. What this kernel does not have is left out.
pub fn mount_the_usual() {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("tmpfs", "/dev/shm"),
        ("devpts", "/dev/pts"),
        ("hugetlbfs", "/dev/hugepages"),
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        let options = if at == "/tmp" { "mode=1777" } else { "" };
        // Missing file systems show themselves to whoever needs them.
        let _absent = mount(kind, kind, at, 0, options);
    }
    for (link, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let _there_already =
            std::os::unix::fs::symlink(format!("/proc/self/fd{target}"), format!("/dev/{link}"));
    }
    // A kernel without modules has no such file.
    let _no_modules = fs::write("/proc/sys/kernel/modprobe", "/bin/modprobe");
    // Locked memory is what VFIO pins; without a limit nothing is hidden by it, and tests can set their own.
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure lives through the call.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// The exit status as a shell gives it: 128 + N when signal N ended the program.
pub fn shell_status(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Writes everything back.
pub fn sync() {
    // SAFETY: sync has no arguments and cannot fail.
    unsafe { libc::sync() };
}

/// Switches the machine off.
pub fn power_off() -> ! {
    // SAFETY: reboot with this command takes no memory. If the machine cannot be switched off, there is
    // nothing left to do but wait.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
        loop {
            libc::pause();
        }
    }
}
