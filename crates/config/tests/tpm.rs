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
