use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why the lab could not do its work. Whether the command itself succeeded is told by
/// [`Outcome::status`](crate::Outcome::status), not by an error.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The time was over before the command ended.
    #[error("time-out: the lab was stopped after {} s ({during}). Give it more with --timeout.{}", .after.as_secs(), tail(.console))]
    TimedOut {
        /// The time that was given.
        after: Duration,
        /// What went on at the time.
        during: &'static str,
        /// The console's last lines.
        console: String,
    },
    /// The host is up and gives no sign of life any more.
    #[error(
        "the emulated host gave no sign of life for {} s ({during}), so it was stopped. Is this machine overloaded or was QEMU \
         stopped? Then try again, or allow more with --silence.{}", .silence.as_secs(), tail(.console)
    )]
    Silent {
        /// For how long.
        silence: Duration,
        /// What went on at the time.
        during: &'static str,
        /// The console's last lines.
        console: String,
    },
    /// A program that the lab needs is not there.
    #[error("{program} is not installed: {purpose}. Install it with: {command}")]
    Missing {
        /// Its name.
        program: String,
        /// What it is needed for.
        purpose: &'static str,
        /// The command that mends it.
        command: &'static str,
    },
    /// The lab's own programs were not built.
    #[error("cannot find {name} beside skep or in a dist folder near it. Build it with: cargo xtask build")]
    NotBuilt {
        /// The program's name.
        name: &'static str,
    },
    /// There is no lab kernel.
    #[error(
        "there is no lab kernel: SKEP_LAB_KERNEL is not set and {} is not there. \
         Build it with: cargo xtask lab-kernel, or use --kernel debian", .cache.display()
    )]
    NoLabKernel {
        /// Where it would be.
        cache: PathBuf,
    },
    /// A kernel cannot be used.
    #[error("kernel {}: {why}. Give a bzImage (gzip, xz or zstd) or an ELF kernel for x86-64.", .path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Debian's kernel could not be fetched.
    #[error("cannot fetch Debian's kernel: {why}. {hint}.")]
    Fetch {
        /// What happened.
        why: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// An installed system could not be made.
    #[error(
        "cannot make an installed Debian: {why}. Its packages come over the network, and SKEP_CACHE needs 2 GB for a while: \
         look at both and try again."
    )]
    Install {
        /// What happened.
        why: String,
    },
    /// A disk, a device or the machine as a whole cannot be built as described.
    #[error("{why}. {hint}.")]
    Description {
        /// What is wrong.
        why: String,
        /// What would be right.
        hint: &'static str,
    },
    /// A device that this emulator does not have.
    #[error("{} (version {version}) has no device {model}. {hint}{}", .qemu.display(), if .hint.ends_with('?') { "" } else { "." })]
    NoModel {
        /// The device's model.
        model: String,
        /// The emulator.
        qemu: PathBuf,
        /// Its version.
        version: String,
        /// What to do about it.
        hint: String,
    },
    /// The emulator ended by itself before the host was up.
    #[error("QEMU refused the emulated host ({status}): {message}. {hint}")]
    Qemu {
        /// How it ended.
        status: String,
        /// What it said.
        message: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The emulated host did not come up, twice.
    #[error("the emulated host did not come up: {why}, twice.{}", tail(.console))]
    NoBoot {
        /// What was seen.
        why: String,
        /// The console's last lines.
        console: String,
    },
    /// The emulated host died while the command ran.
    #[error("the emulated host died while the command ran ({status}).{}{}", said(.why), tail(.console))]
    Died {
        /// How the emulator ended.
        status: String,
        /// What it said itself, if anything.
        why: String,
        /// The console's last lines.
        console: String,
    },
    /// The emulated host came up but could not do what it was asked.
    #[error("in the emulated host: {why}.{}", tail(.console))]
    Inside {
        /// What it said.
        why: String,
        /// The console's last lines.
        console: String,
    },
    /// A file, a folder or a process of this machine.
    #[error("cannot {action} {what}: {source}.{}", permission_hint(.source))]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl LabError {
    /// The exit status that stands for this error: 124 when the lab was stopped for its time or for its silence, 125 for
    /// everything else.
    pub fn exit_status(&self) -> u8 {
        if matches!(self, LabError::TimedOut { .. } | LabError::Silent { .. }) { 124 } else { 125 }
    }

    pub(crate) fn system(action: &'static str, what: impl std::fmt::Display, source: io::Error) -> Self {
        LabError::System { action, what: what.to_string(), source }
    }

    /// For `map_err`: the path is what was acted upon.
    pub(crate) fn path<'a>(
        action: &'static str,
        path: &'a std::path::Path,
    ) -> impl FnOnce(io::Error) -> LabError + 'a {
        move |source| LabError::system(action, path.display(), source)
    }
}

fn permission_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " The lab's files are kept in the folder that SKEP_CACHE names, else in ~/.cache/skep: it must be yours."
        }
        io::ErrorKind::StorageFull => " Free some space, or name another folder with SKEP_CACHE.",
        _ => "",
    }
}

/// What the emulator said, and what to do about it if that is known.
fn said(why: &str) -> String {
    let known = crate::run::known(why).map(|hint| format!(" {hint}")).unwrap_or_default();
    if why.is_empty() { String::new() } else { format!(" QEMU said: {why}.{known}") }
}

fn tail(console: &str) -> String {
    if console.trim().is_empty() {
        return " Its console stayed silent.".into();
    }
    format!(" The console's last lines:\n{}", console.trim_end())
}
