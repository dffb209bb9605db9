use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::{Receiver, channel};

use super::super::state::State;
use super::*;

/// TPM2_Startup(CLEAR), TPM2_GetRandom(8), and TPM2_PCR_Extend(16) of a SHA-256 of ones.
const STARTUP: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0];
const RANDOM: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 8];
/// TPM2_PCR_Read of SHA-256's PCR 16.
const READ_16: [u8; 20] = [0x80, 0x01, 0, 0, 0, 20, 0, 0, 0x01, 0x7e, 0, 0, 0, 1, 0, 11, 3, 0, 0, 1];

fn extend_16() -> Vec<u8> {
    let body = [
        &[0x80, 0x02, 0, 0, 0, 65, 0, 0, 0x01, 0x82, 0, 0, 0, 16, 0, 0, 0, 9][..],
        &[0x40, 0, 0, 9, 0, 0, 0, 0, 0],
        &[0, 0, 0, 1, 0, 11],
        &[1; 32],
    ];
    body.concat()
}

struct Bench {
    _folder: tempfile::TempDir,
    state: PathBuf,
    told: Receiver<String>,
    tell: Tell,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let (sender, told) = channel();
        let sender = Mutex::new(sender);
        let tell: Tell = Arc::new(move |what| lock(&sender).send(what).unwrap());
        Bench { state: folder.path().join("tpm2"), _folder: folder, told, tell }
    }

    fn start_with(&self, program: &Path) -> Result<Swtpm, TpmError> {
        Swtpm::start(program, State::check(&self.state)?.take()?, self.tell.clone())
    }

    /// With the real one.
    fn start(&self) -> Swtpm {
        let program = find().expect("swtpm is not installed. Get it with: cargo xtask setup tests");
        self.start_with(&program).unwrap()
    }

    /// With a script in its place, whose standard input is the control channel.
    fn start_script(&self, script: &str) -> Result<Swtpm, TpmError> {
        let program = self._folder.path().join("swtpm");
        fs::write(&program, format!("#!/usr/bin/env python3\n{script}")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        self.start_with(&program)
    }

    fn told(&self) -> String {
        self.told.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

fn result(response: &[u8]) -> u32 {
    u32::from_be_bytes(response[6..10].try_into().unwrap())
}

fn pid(swtpm: &Swtpm) -> u32 {
    lock(&lock(&swtpm.slot).as_ref().unwrap().child).id()
}

/// Does what swtpm does on the control channel, and then what is said.
const WELL_BEHAVED: &str = r"
import socket, sys, os, struct, array
control = socket.socket(fileno=0)
def serve():
    message, extra, _, _ = control.recvmsg(64, 64)
    (command,) = struct.unpack('>I', message[:4])
    control.sendall(bytes(4) + (struct.pack('>III', 3968, 3968, 3968) if command == 0x11 else b''))
    return extra
extra = serve()
data = socket.socket(fileno=array.array('i', extra[0][2])[0])
for _ in range(3): serve()
";

#[test]
fn it_executes_commands_keeps_pcrs_until_it_is_switched_off_and_its_state_for_ever() {
    let bench = Bench::new();
    let swtpm = bench.start();
    assert_eq!(result(&swtpm.execute(&RANDOM).unwrap()), 0x100, "TPM_RC_INITIALIZE: not started up");
    assert_eq!(result(&swtpm.execute(&STARTUP).unwrap()), 0);
    let random = swtpm.execute(&RANDOM).unwrap();
    assert_eq!((result(&random), random.len()), (0, 20));
    let before = swtpm.execute(&READ_16).unwrap();
    assert_eq!(result(&swtpm.execute(&extend_16()).unwrap()), 0);
    let extended = swtpm.execute(&READ_16).unwrap();
    assert_ne!(before[before.len() - 32..], extended[extended.len() - 32..]);
    swtpm.power_on().unwrap();
    swtpm.execute(&STARTUP).unwrap();
    let after = swtpm.execute(&READ_16).unwrap();
    assert_eq!(before[before.len() - 32..], after[after.len() - 32..]);
    assert!(bench.start_with(&find().unwrap()).is_err(), "its state is taken");
    drop(swtpm);
    let kept: Vec<_> = fs::read_dir(&bench.state).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(kept.iter().any(|name| name == "tpm2-00.permall"), "{kept:?}");
    drop(bench.start());
    assert!(bench.told.try_recv().is_err(), "nothing of that is a failure");
}

#[test]
fn its_death_is_told_once_commands_fail_and_the_next_power_on_starts_it_again() {
    let bench = Bench::new();
    let swtpm = bench.start();
    swtpm.execute(&STARTUP).unwrap();
    let killed = Command::new("kill").args(["-9", &pid(&swtpm).to_string()]).status().unwrap();
    assert!(killed.success());
    let told = bench.told();
    assert!(told.starts_with("the TPM has failed: swtpm ended (signal: 9"), "{told}");
    assert_eq!(swtpm.execute(&RANDOM), Err(TpmFailed));
    swtpm.power_on().unwrap();
    assert_eq!(result(&swtpm.execute(&STARTUP).unwrap()), 0);
    assert!(bench.told.try_recv().is_err(), "told once");
}

#[test]
fn an_execution_that_is_aborted_fails_without_a_word_and_the_next_power_on_starts_it_again() {
    let bench = Bench::new();
    let swtpm = bench.start_script(&format!("{WELL_BEHAVED}\ndata.recv(100)\ndata.recv(100)")).unwrap();
    std::thread::scope(|scope| {
        let executed = scope.spawn(|| swtpm.execute(&RANDOM));
        std::thread::sleep(Duration::from_millis(100));
        swtpm.abort();
        assert_eq!(executed.join().unwrap(), Err(TpmFailed));
    });
    swtpm.power_on().unwrap();
    assert!(bench.told.try_recv().is_err());
}

#[test]
fn a_response_that_is_none_ends_it_with_the_reason() {
    for (response, reason) in [
        ("bytes(10)", "a response of 0 bytes"),
        ("bytes([128, 1, 255, 255, 255, 255, 0, 0, 0, 0])", "a response of 4294967295 bytes"),
        ("bytes([128, 1, 0, 0, 15, 129, 0, 0, 0, 0])", "a response of 3969 bytes"),
    ] {
        let bench = Bench::new();
        let script = format!("{WELL_BEHAVED}\ndata.recv(100)\ndata.sendall({response})\ndata.recv(100)");
        let swtpm = bench.start_script(&script).unwrap();
        assert_eq!(swtpm.execute(&RANDOM), Err(TpmFailed));
        let told = bench.told();
        assert!(told.contains(reason), "{told}");
    }
}

#[test]
fn one_that_closes_its_channel_in_the_middle_of_a_response_is_told_of_with_its_last_words() {
    let bench = Bench::new();
    let script = format!(
        "{WELL_BEHAVED}\ndata.recv(100)\nsys.stderr.write('out of ideas\\n')\ndata.sendall(bytes([128, 1, 0, 0, 0, 20, 0, 0, 0, 0, 1]))\nsys.exit(3)"
    );
    let swtpm = bench.start_script(&script).unwrap();
    assert_eq!(swtpm.execute(&RANDOM), Err(TpmFailed));
    let told = bench.told();
    assert!(told.contains("swtpm ended (exit status: 3). Its last words: \"out of ideas\""), "{told}");
}

#[test]
fn what_does_not_start_or_refuses_its_state_says_why() {
    let bench = Bench::new();
    let error = bench.start_with(Path::new("/nothing/swtpm")).err().unwrap().to_string();
    assert!(error.starts_with("cannot start /nothing/swtpm: "), "{error}");
    let error = bench.start_script("import sys\nsys.exit('no TPM today')").err().unwrap().to_string();
    assert!(error.contains("swtpm ended (exit status: 1). Its last words: \"no TPM today\""), "{error}");
    fs::write(bench.state.join("tpm2-00.permall"), [0x55; 1000]).unwrap();
    let error = bench.start_with(&find().unwrap()).err().unwrap().to_string();
    assert!(error.contains("does not work with the TPM's state") && error.contains("backup"), "{error}");
}

#[test]
fn a_response_that_does_not_come_in_time_is_a_failure() {
    let (ours, mut its) = UnixStream::pair().unwrap();
    let slow = std::thread::spawn(move || {
        let mut command = [0; 12];
        its.read_exact(&mut command).unwrap();
        // A byte now and then keeps nobody waiting for ever.
        while its.write_all(&[0]).is_ok() {
            std::thread::sleep(Duration::from_millis(40));
        }
    });
    let begun = Instant::now();
    let error = exchange(&ours, &RANDOM, Duration::from_millis(150)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(ours);
    slow.join().unwrap();
}
