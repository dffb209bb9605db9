//! The flag that a person meant who wrote another VMM's, or made a typing error. Clap looks for the letters that two flags have
//! in common; what a flag is for it cannot know.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Flags of QEMU, bhyve, cloud-hypervisor, Firecracker and crosvm, and what skep has for them.
const OF_OTHERS: [(&[&str], &str); 16] = [
    (&["--append", "--cmdline-append", "--params"], "--cmdline WORDS"),
    (&["--bios", "--pflash", "--bootrom", "--loader"], "--firmware PATH"),
    (&["--uefi", "--efi", "--ovmf"], "--firmware auto"),
    (&["--vars", "--nvram"], "--firmware-vars PATH"),
    (&["--boot-order", "--order", "--bootindex"], "--disk PATH,bootindex=N"),
    (&["--option-rom", "--romfile"], "--assign ADDRESS,rom=FILE"),
    (&["--cd", "--cdrom", "--iso"], "--disk PATH,model=ahci-cd"),
    (&["--drive", "--hda", "--block", "--blk"], "--disk PATH"),
    (&["--device", "--vfio", "--passthru", "--hostdev"], "--assign ADDRESS"),
    (&["--initramfs", "--ramdisk"], "--initrd PATH"),
    (&["--ram", "--mem", "--memory-size"], "--memory SIZE"),
    (&["--serial", "--nographic", "--com1"], "--console stdio"),
    (&["--smp", "--vcpus", "--cores"], "--cpus N"),
    (&["--tpm-state", "--swtpm", "--tpmdev"], "--tpm on"),
    (&["--file", "--conf"], "--config FILE"),
    (&["--id", "--vm-name"], "--name NAME"),
];

/// What was written, if it is no flag at all.
fn unknown(error: &Error) -> Option<String> {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(written)) if error.kind() == ErrorKind::UnknownArgument => {
            Some(written.split('=').next().unwrap_or_default().to_owned())
        }
        _ => None,
    }
}

/// Answers a flag of another VMM, written behind `skep run`.
pub fn of_others(error: &mut Error) {
    let Some(written) = unknown(error) else { return };
    if let Some((_, meant)) = OF_OTHERS.iter().find(|(words, _)| words.contains(&&*written)) {
        error.insert(ContextKind::SuggestedArg, ContextValue::String((*meant).to_owned()));
        // It was that of the flag that looked alike.
        error.remove(ContextKind::Usage);
    }
}

/// Takes an answer away that has hardly more in common with what was written than some letters.
pub fn only_near(error: &mut Error) {
    let Some(written) = unknown(error) else { return };
    if let Some(ContextValue::String(similar)) = error.get(ContextKind::SuggestedArg)
        && !config::is_near(&written, similar)
    {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::Usage);
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    fn said(written: &str) -> String {
        let command = Command::new("run");
        let command = config::Key::ALL
            .iter()
            .fold(command, |command, key| command.arg(Arg::new(key.name()).long(key.name())));
        let mut error = command.try_get_matches_from(["run", written]).unwrap_err();
        only_near(&mut error);
        of_others(&mut error);
        error.render().to_string()
    }

    #[test]
    fn a_flag_of_another_vmm_is_answered_with_what_skep_has_for_it() {
        for (written, meant) in
            [("--ram", "--memory SIZE"), ("--cd=a.iso", "--disk PATH,model=ahci-cd"), ("--smp", "--cpus N")]
        {
            let said = said(written);
            assert!(said.contains(&format!("'{meant}'")), "{said}");
        }
    }

    #[test]
    fn a_typing_error_is_answered_with_its_flag_and_another_word_with_none() {
        assert!(said("--memroy").contains("'--memory'"));
        let said = said("--net");
        assert!(!said.contains("similar") && said.contains("'--net'"), "{said}");
    }

    #[test]
    fn no_flag_of_others_is_one_of_ours_and_each_answer_is() {
        for (words, meant) in OF_OTHERS {
            let flags = config::Key::ALL.iter().map(|key| format!("--{}", key.name()));
            let flags: Vec<String> = flags.chain(["--config".to_owned()]).collect();
            assert!(flags.iter().any(|flag| meant.split(' ').next() == Some(flag)), "{meant}");
            assert!(words.iter().all(|word| !flags.iter().any(|flag| flag == word)), "{words:?}");
        }
    }
}
