//! What shells complete, from outside.

use std::process::{Command, Stdio};

use config::Key;

fn script(shell: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
    let output = command.args(["completions", shell]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What bash offers at the end of this command line.
fn offered(line: &[&str]) -> Vec<String> {
    let words: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
    let [.., before, last] = &words[..] else { panic!("a command and a word") };
    let program = format!(
        "{}\nCOMP_WORDS=({}); COMP_CWORD={}; _skep skep {last} {before}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script("bash"),
        words.join(" "),
        words.len() - 1,
    );
    let output = Command::new("bash").args(["--norc", "-c", &program]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_the_words_that_a_key_takes() {
    assert_eq!(offered(&["skep", "completi"]), ["completions"]);
    assert_eq!(offered(&["skep", "run", "--host-d"]), ["--host-domain"]);
    assert_eq!(offered(&["skep", "run", "--dma", ""]), ["auto", "iommufd", "type1"]);
    assert_eq!(offered(&["skep", "run", "--on-fault", "re"]), ["report", "reset"]);
    assert_eq!(offered(&["skep", "run", "--nested", ""]), ["on", "off"]);
}

#[test]
fn every_shell_has_every_key() {
    for (shell, form) in [("bash", "--"), ("zsh", "'--"), ("fish", " -l ")] {
        let script = script(shell);
        for key in Key::ALL {
            let flag = format!("{form}{}", key.name());
            let mut behind = script.match_indices(&flag).map(|(at, _)| &script[at + flag.len()..]);
            // In zsh, what may be there several times has a star before it.
            let several = format!("'*--{}=", key.name());
            let is_there = behind.any(|text| text.starts_with([' ', '=', ')', '[']));
            assert!(is_there || script.contains(&several), "{shell}: {}", key.name());
        }
    }
}

#[test]
fn an_unknown_shell_is_a_usage_error_that_names_those_there_are() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
    let output = command.args(["completions", "csh"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("bash, zsh, fish"), "{text}");
}
