//! What is said of a TPM.

use config::{File, Findings, Key, OnTpmError, Tpm, TpmSource, Vm};

fn describe(text: &str, flags: &[(Key, String)]) -> Result<Vm, Findings> {
    let text = format!("kernel = \"k\"\n{text}\n");
    config::describe(Some(File { name: "vm.toml", bytes: text.as_bytes() }), flags)
}

#[test]
fn a_tpm_is_there_or_not_emulated_or_the_hosts() {
    let tpm = |text: &str, flags: &[(Key, String)]| describe(text, flags).unwrap().tpm;
    let flag = |text: &str| tpm("tpm = true", &[(Key::Tpm, text.into())]);
    let emulated = |on_error| Some(Tpm { source: TpmSource::Emulated, on_error });
    let path = || TpmSource::Passthrough("/dev/tpm0".parse().unwrap());
    assert_eq!(tpm("", &[]), None);
    assert_eq!(tpm("tpm = true", &[]), emulated(OnTpmError::Report));
    assert_eq!(tpm("tpm = { on-error = \"pause\" }", &[]), emulated(OnTpmError::Pause));
    let host = Some(Tpm { source: path(), on_error: OnTpmError::Report });
    assert_eq!(tpm("tpm = { passthrough = \"/dev/tpm0\" }", &[]), host);
    assert_eq!((flag("off"), flag("on"), flag("/dev/tpm0")), (None, emulated(OnTpmError::Report), host));
    let stops = Some(Tpm { source: path(), on_error: OnTpmError::Stop });
    assert_eq!(flag("passthrough=/dev/tpm0,on-error=stop"), stops);
    for (text, said) in [
        (
            "tpm = 2",
            "`tpm` is the number 2; it must be true, false or a table, { passthrough = \"/dev/tpm0\" }.",
        ),
        ("tpm = \"on\"", "`tpm` is the text \"on\"; it must be true, false or a table"),
        (
            "tpm = \"yes\"",
            "`tpm` is the text \"yes\"; it must be true, false or a table, { passthrough = \"/dev/tpm0\" }.",
        ),
        ("tpm = { path = \"/dev/tpm0\" }", "unknown key `path`."),
        (
            "tpm = { on-error = \"ignore\" }",
            "\"ignore\" is not an answer to a TPM's failure. Write report or pause or stop.",
        ),
        ("[tpm]\npassthrough = \"\"", "the path is empty."),
    ] {
        let found = describe(text, &[]).unwrap_err();
        assert!(found.iter().count() == 1 && found.to_string().contains(said), "{found}");
    }
}

#[test]
fn a_flag_that_switches_a_tpm_on_may_say_more_of_it() {
    let flag = |text: &str| describe("", &[(Key::Tpm, text.into())]).unwrap().tpm.unwrap();
    let stops = Tpm { source: TpmSource::Emulated, on_error: OnTpmError::Stop };
    for text in ["on,on-error=stop", "true,on-error=stop", "on-error=stop"] {
        assert_eq!(flag(text), stops, "{text}");
    }
    let host = Tpm { source: TpmSource::Passthrough("/dev/tpm0".parse().unwrap()), ..stops };
    for text in [
        "on,passthrough=/dev/tpm0,on-error=stop",
        "/dev/tpm0,on-error=stop",
        "on-error=stop,passthrough=/dev/tpm0",
    ] {
        assert_eq!(flag(text), host, "{text}");
    }
}

#[test]
fn a_word_in_a_tpms_flag_that_is_no_path_and_no_known_word_is_none() {
    let forms = "Write --tpm on, --tpm off or --tpm passthrough=/dev/tpm0.";
    for (text, said) in [
        ("yes", format!("\"yes\" is no word for a TPM. {forms}")),
        ("yes,on-error=stop", format!("\"yes\" is no word for a TPM. {forms}")),
        ("2.0", format!("\"2.0\" is no word for a TPM. {forms}")),
        ("tpm0", format!("\"tpm0\" is no word for a TPM. {forms}")),
        ("onn", format!("\"onn\" is no word for a TPM. Did you mean on? {forms}")),
        ("passtrough", format!("\"passtrough\" is no word for a TPM. Did you mean passthrough? {forms}")),
        ("passthrough", "`passthrough` has no value. Write passthrough=VALUE.".into()),
        ("on,passthrough", "`passthrough` has no value. Write passthrough=VALUE.".into()),
        ("on,/dev/tpm0", "`/dev/tpm0` has no value. Write KEY=VALUE".into()),
        ("on,", "there is an empty item between two commas.".into()),
        ("on,on", "`on` has no value. Write on-error=VALUE.".into()),
        ("off,on-error=stop", "`off` means nothing with `on-error=stop`. Remove one of them.".into()),
        ("false,on-error=stop", "`false` means nothing with `on-error=stop`. Remove one of them.".into()),
    ] {
        let found = describe("", &[(Key::Tpm, text.into())]).unwrap_err();
        let whole = format!("--tpm {text}: {said}");
        assert!(found.iter().count() == 1 && found.to_string().starts_with(&whole), "{found}");
    }
}
