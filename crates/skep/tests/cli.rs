//! The command line of `skep run`, from outside.

use std::fs;
use std::process::{Command, Output, Stdio};

fn skep(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_skep")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A file with this text, gone when dropped.
fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

fn run_file(text: &str, more: &[&str]) -> (Output, String) {
    let file = file(text);
    let path = file.path().to_str().unwrap().to_owned();
    let output = skep(&[&["run", "--config", &path], more].concat());
    (output, path)
}

#[test]
fn an_unknown_flag_is_a_usage_error_that_names_it_and_the_nearest() {
    let output = skep(&["run", "--memroy", "1G"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.starts_with("skep: unexpected argument '--memroy' found\n"), "{text}");
    assert!(text.contains("'--memory'"), "{text}");
}

#[test]
fn an_unknown_key_is_a_usage_error_that_names_the_line_and_the_nearest() {
    let (output, path) = run_file("kernel = \"k\"\nmemroy = \"1G\"\n", &["--check-config"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output), format!("skep: {path}:2:1: unknown key `memroy`. Did you mean `memory`?\n"));
    assert_eq!(stdout(&output), "");
}

#[test]
fn every_error_of_file_and_flags_is_said_on_a_line_of_its_own() {
    let (output, path) = run_file(
        "cpus = 0\n[[disk]]\npaht = \"a\"\n",
        &["--check-config", "--memory", "1.5G", "--assign", "1", "--disk", "a,b"],
    );
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    let starts = [
        format!("skep: {path}:1:8: a VM cannot have 0 vCPUs."),
        format!("skep: {path}:2:1: this disk has no `path`."),
        format!("skep: {path}:3:1: unknown key `paht`. Did you mean `path`?"),
        "skep: --disk a,b: `b` has no value.".into(),
        "skep: --memory 1.5G: \"1.5G\" is not a size.".into(),
        "skep: --assign 1: \"1\" is not a PCI address.".into(),
    ];
    for (line, start) in text.lines().zip(&starts) {
        assert!(line.starts_with(start), "{start}\n{text}");
    }
    assert_eq!(text.lines().count(), starts.len(), "{text}");
}

#[test]
fn a_checked_description_prints_as_one_that_reads_the_same() {
    let flags = [
        "run",
        "--check-config",
        "--name",
        "a",
        "--cpus",
        "2",
        "--memory",
        "6G",
        "--kernel",
        "/k",
        "--initrd",
        "/i",
        "--cmdline",
        "-- x=\"y\"",
        "--console",
        "file:/o",
        "--disk",
        "path=/dev/a,,b,readonly=on,queues=2,serial=S",
        "--disk",
        "/dev/c",
        "--assign",
        "0000:01:00.0",
        "--assign",
        "02:00.0,domain=b,on-request=stop",
        "--nested",
        "--hugepages=2M",
        "--node=1",
        "--wire=on",
        "--dma=type1",
        "--host-domain=exclusive",
        "--i-know",
        "--on-fault=stop",
        "--p2p=on",
    ];
    let first = skep(&flags);
    assert_eq!((first.status.code(), stderr(&first)), (Some(0), String::new()));
    let text = stdout(&first);
    for line in ["memory = \"6G\"", "path = \"/dev/a,b\"", "i-know = true", "nested = true", "p2p = \"on\""] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let (second, _) = run_file(&text, &["--check-config"]);
    assert_eq!((second.status.code(), stdout(&second)), (Some(0), text));
}

#[test]
fn an_exclusive_host_domain_is_refused_without_a_word_that_it_is_meant() {
    let output = skep(&["run", "--kernel", "k", "--check-config", "--host-domain", "exclusive"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--i-know"), "{output:?}");
}

#[test]
fn a_flag_wins_over_the_file() {
    let (output, _) = run_file("kernel = \"k\"\nmemory = \"1G\"\n", &["--memory", "2G", "--check-config"]);
    assert!(stdout(&output).contains("memory = \"2G\"\n"), "{output:?}");
}

#[test]
fn a_file_that_is_not_there_is_named_with_the_reason() {
    let output = skep(&["run", "--config", "/no/such/vm.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.starts_with("skep: cannot read the description /no/such/vm.toml: No such file"), "{text}");
}

#[test]
fn a_description_that_cannot_be_written_is_an_error() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_skep"))
        .args(["run", "--check-config", "--kernel", "k"])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).starts_with("skep: cannot write the description"), "{output:?}");
}

#[test]
fn the_help_says_exit_statuses_and_keys() {
    let output = skep(&["run", "--help"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    let text = stdout(&output);
    for part in
        ["  3  the guest crashed (triple fault)", "Ctrl-A x ", "Ctrl-A Ctrl-A ", "--check-config", "SIGTERM"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// With `BLESS=1` in the environment it is kept as it is; look at the difference before committing it.
#[test]
fn the_help_of_run_is_as_it_was() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/run-help.txt");
    let text = stdout(&skep(&["run", "--help"]));
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, &text).unwrap();
    }
    assert!(fs::read_to_string(path).unwrap() == text, "the help is other than it was. It is now:\n{text}");
}

#[test]
fn the_help_of_each_command_begins_as_the_list_of_commands_says() {
    let list = stdout(&skep(&["--help"]));
    let commands = list.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<_> =
        commands.map_while(|line| line.trim().split_once(' ')).filter(|(name, _)| *name != "help").collect();
    assert_eq!(commands.len(), 15, "{list}");
    for (name, what) in commands {
        let help = stdout(&skep(&[name, "--help"]));
        assert_eq!(help.lines().next(), Some(what.trim()), "{name}");
    }
}

#[test]
fn without_a_command_the_help_is_a_usage_error() {
    let output = skep(&[]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("Usage: skep") && !text.contains("skep: "), "it is help, no error: {text}");
}

#[test]
fn errors_have_no_colours_away_from_a_terminal() {
    let output = skep(&["run", "--name", ".."]);
    assert!(!output.stderr.contains(&0x1b), "{output:?}");
}

#[test]
fn a_report_overwrites_no_file_that_only_an_image_names_whatever_else_is_wrong() {
    let place = tempfile::tempdir().unwrap();
    let image = |words: &[&str]| {
        let made = Command::new("qemu-img").args(["create", "-q"]).args(words).current_dir(&place).status();
        assert!(made.unwrap().success());
    };
    image(&["-f", "raw", "base.raw", "1M"]);
    image(&["-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2"]);
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let disk = format!("{},format=qcow2,chain=follow", at("top.qcow2"));
    let (kernel, report) = (at("none"), at("base.raw"));
    let output = skep(&["run", "--kernel", &kernel, "--disk", &disk, "--report", &report]);
    let text = stderr(&output);
    assert!(text.contains("base.raw is a file that a disk or another part of this VM consists of"), "{text}");
    assert!(text.contains("cannot open the kernel"), "{text}");
    assert_eq!(fs::metadata(report).unwrap().len(), 1 << 20);
}
