use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use super::super::state::{LOCK, State};
use super::process::exchange;
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
        let tell: Tell = Arc::new(move |what| sender.lock().send(what).unwrap());
        Bench { state: folder.path().join("tpm2"), _folder: folder, told, tell }
    }

    /// One that is off.
    fn made(&self, program: &Path, start_up: StartUp, limit: Duration) -> Result<Swtpm, TpmError> {
        let state = State::check(&self.state)?.take()?;
        Ok(Swtpm::new(program, state, start_up, limit, self.tell.clone()))
    }

    fn start_with(&self, program: &Path) -> Result<Swtpm, TpmError> {
        let swtpm = self.made(program, StartUp::ByFirmware, SWITCH_ON_LIMIT)?;
        match swtpm.switch_on() {
            Ok(()) => Ok(swtpm),
            Err(NotOn::Failed(error)) => Err(error),
            Err(NotOn::Aborted) => panic!("nobody has aborted it"),
        }
    }

    /// With the real one.
    fn start(&self) -> Swtpm {
        let program = find().expect("swtpm is not installed. Get it with: cargo xtask setup tests");
        self.start_with(&program).unwrap()
    }

    /// With a script in its place, whose standard input is the control channel.
    fn start_script(&self, script: &str) -> Result<Swtpm, TpmError> {
        self.start_with(&self.script(script))
    }

    fn script(&self, script: &str) -> PathBuf {
        let program = self._folder.path().join("swtpm");
        fs::write(&program, format!("#!/usr/bin/env python3\n{script}")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    fn told(&self) -> String {
        self.told.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

fn result(response: &[u8]) -> u32 {
    u32::from_be_bytes(response[6..10].try_into().unwrap())
}

fn pid(swtpm: &Swtpm) -> u32 {
    swtpm.slot.lock().working().unwrap().id()
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
fn a_command_that_fails_leaves_no_swtpm_at_the_state_though_another_thread_ends_it() {
    let bench = Bench::new();
    // Its listener takes it out, and waits for its end, before the command fails.
    let script =
        "import time\ndata.recv(100)\nos.close(2)\ntime.sleep(0.5)\ndata.shutdown(2)\ntime.sleep(600)";
    let swtpm = bench.start_script(&format!("{WELL_BEHAVED}\n{script}")).unwrap();
    let process = PathBuf::from(format!("/proc/{}", pid(&swtpm)));
    assert_eq!(swtpm.execute(&RANDOM), Err(TpmFailed));
    assert!(!process.exists());
    let told = bench.told();
    assert!(told.contains("swtpm is of no use any more"), "{told}");
    assert!(bench.told.try_recv().is_err(), "told once");
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
    let error = exchange(&ours, &RANDOM, Instant::now() + Duration::from_millis(150)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(ours);
    slow.join().unwrap();
}

#[test]
fn a_process_that_swtpm_leaves_behind_holds_up_nobody() {
    let bench = Bench::new();
    let left_behind = "import time\nif os.fork() == 0: time.sleep(120)\nserve()\n";
    let swtpm = bench.start_script(&format!("{WELL_BEHAVED}{left_behind}")).unwrap();
    let begin = Instant::now();
    swtpm.abort();
    drop(swtpm);
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}

/// Gives no answer from here on, and does not end when its channels close.
const SILENT: &str = "import time\ntime.sleep(600)\n";

/// Silent ones: from the beginning, in the middle of the answers on the control channel, and at the start-up.
fn silent() -> [String; 3] {
    let half = WELL_BEHAVED.replace("range(3)", "range(1)");
    [SILENT.into(), format!("{half}{SILENT}"), format!("{WELL_BEHAVED}{SILENT}")]
}

/// Waits until its process is at such a place.
fn await_place(swtpm: &Swtpm, such: impl Fn(&Place) -> bool) {
    let begun = Instant::now();
    while !such(&swtpm.slot.lock()) {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
}

/// Waits until its switch-on is under way.
fn await_switch_on(swtpm: &Swtpm) {
    await_place(swtpm, |place| matches!(place, Place::SwitchesOn(_)));
}

/// How long something takes that must not wait for swtpm.
fn at_once(what: impl FnOnce()) {
    let begun = Instant::now();
    what();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn an_abortion_ends_a_first_switch_on_at_once_that_waits_for_a_silent_swtpm() {
    for script in silent() {
        let bench = Bench::new();
        let program = bench.script(&script);
        let swtpm = bench.made(&program, StartUp::BySkep, SWITCH_ON_LIMIT).unwrap();
        std::thread::scope(|scope| {
            let switched_on = scope.spawn(|| swtpm.switch_on());
            // Also one whose python has not begun yet.
            await_switch_on(&swtpm);
            std::thread::sleep(Duration::from_millis(300));
            at_once(|| {
                swtpm.abort();
                assert!(matches!(switched_on.join().unwrap(), Err(NotOn::Aborted)), "{script}");
            });
        });
        assert!(bench.told.try_recv().is_err(), "it was wished for");
    }
}

#[test]
fn an_abortion_ends_a_switch_on_at_once_that_waits_for_a_silent_swtpm() {
    let bench = Bench::new();
    let swtpm = bench.start_script(&format!("{WELL_BEHAVED}{SILENT}")).unwrap();
    std::thread::scope(|scope| {
        let switched_on = scope.spawn(|| swtpm.power_on());
        await_switch_on(&swtpm);
        at_once(|| {
            swtpm.abort();
            assert_eq!(switched_on.join().unwrap(), Err(TpmFailed));
        });
    });
    assert!(bench.told.try_recv().is_err(), "it was wished for");
}

#[test]
fn a_silent_swtpm_fails_a_switch_on_by_the_deadline_and_is_told_of_with_its_state_and_what_to_do() {
    let switch_on = |script: &str| {
        let bench = Bench::new();
        let limit = Duration::from_millis(4500);
        let swtpm = bench.made(&bench.script(script), StartUp::BySkep, limit).unwrap();
        at_once(|| assert_eq!(swtpm.power_on(), Err(TpmFailed)));
        let told = bench.told();
        let state = bench.state.display();
        let said =
            format!("swtpm did not switch on the TPM with the state {state} within 4.5 s. Look whether");
        assert!(told.starts_with(&said) && told.contains("backup"), "{told}");
        assert!(matches!(*swtpm.slot.lock(), Place::Empty), "its process was ended");
    };
    std::thread::scope(|scope| {
        for script in silent() {
            scope.spawn(move || switch_on(&script));
        }
    });
}

#[test]
fn answers_that_drip_have_one_deadline_together() {
    let bench = Bench::new();
    // Each answer comes, and each later than it could if all of them are to.
    let slow = WELL_BEHAVED.replace("    control.sendall", "    time.sleep(0.9)\n    control.sendall");
    let script = bench.script(&format!("import time{slow}{SILENT}"));
    let swtpm = bench.made(&script, StartUp::ByFirmware, Duration::from_secs(2)).unwrap();
    let begun = Instant::now();
    let Err(NotOn::Failed(error)) = swtpm.switch_on() else { panic!("it is on") };
    assert!(matches!(error, TpmError::Silent { .. }), "{error}");
    assert!(begun.elapsed() >= Duration::from_secs(2));
}

/// Another process with swtpm's lock of the state, for so many seconds.
struct Holder(Child);

impl Holder {
    fn of(state: &Path, seconds: f32) -> Holder {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(state).unwrap();
        let script = "import fcntl, sys, time
file = open(sys.argv[1], 'a')
fcntl.lockf(file, fcntl.LOCK_EX)
print('held', flush=True)
time.sleep(float(sys.argv[2]))";
        let mut python = Command::new("python3");
        python.args(["-c", script]).arg(state.join(LOCK)).arg(seconds.to_string());
        let mut child = python.stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0; 5]).unwrap();
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn what_a_killed_skep_has_left_at_the_state_is_waited_for() {
    let bench = Bench::new();
    let _holder = Holder::of(&bench.state, 1.0);
    drop(bench.start());
    assert!(bench.told.try_recv().is_err());
}

#[test]
fn a_process_that_keeps_the_state_is_named_and_nobody_is_told_to_give_the_state_up() {
    let bench = Bench::new();
    let holder = Holder::of(&bench.state, 600.0);
    let swtpm = bench.made(&find().unwrap(), StartUp::ByFirmware, Duration::from_secs(1)).unwrap();
    let begun = Instant::now();
    at_once(|| assert_eq!(swtpm.power_on(), Err(TpmFailed)));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let told = bench.told();
    let said = format!("is still in use by process {} (python3)", holder.0.id());
    assert!(told.contains(&said) && !told.contains("backup"), "{told}");
    drop((holder, swtpm));
    drop(bench.start());
}

#[test]
fn an_abortion_ends_the_wait_for_a_process_that_keeps_the_state() {
    let bench = Bench::new();
    let _holder = Holder::of(&bench.state, 600.0);
    let swtpm = bench.made(&find().unwrap(), StartUp::ByFirmware, SWITCH_ON_LIMIT).unwrap();
    std::thread::scope(|scope| {
        let switched_on = scope.spawn(|| swtpm.switch_on());
        await_place(&swtpm, |place| matches!(place, Place::Reserved));
        at_once(|| {
            swtpm.abort();
            assert!(matches!(switched_on.join().unwrap(), Err(NotOn::Aborted)));
        });
    });
}

#[test]
fn a_process_that_takes_the_state_just_before_swtpm_is_named_too() {
    let bench = Bench::new();
    let before_init = WELL_BEHAVED.replace("range(3)", "range(2)");
    let taken = format!(
        "import fcntl, time
control.recv(64)
ready, is_ready = os.pipe()
if os.fork() == 0:
    file = open('{}', 'a')
    fcntl.lockf(file, fcntl.LOCK_EX)
    os.write(is_ready, b'!')
    os.closerange(0, 3)
    time.sleep(30)
    os._exit(0)
os.read(ready, 1)
control.sendall(struct.pack('>I', 9))
time.sleep(600)",
        bench.state.join(LOCK).display()
    );
    let error = bench.start_script(&format!("{before_init}{taken}")).err().unwrap();
    assert!(matches!(error, TpmError::StillInUse { .. }), "{error}");
}

#[test]
fn one_that_is_not_tested_well_at_its_start_up_is_ended_and_says_so_once() {
    let bench = Bench::new();
    let answer = "data.recv(100)\ndata.sendall(bytes([128, 1, 0, 0, 0, 10, 0, 0, 1, 1]))\ndata.recv(100)";
    let program = bench.script(&format!("{WELL_BEHAVED}{answer}"));
    let swtpm = bench.made(&program, StartUp::BySkep, SWITCH_ON_LIMIT).unwrap();
    assert_eq!(swtpm.power_on(), Err(TpmFailed));
    let told = bench.told();
    assert!(told.contains("swtpm: its answer to the start-up is error 0x101"), "{told}");
    assert_eq!(swtpm.execute(&RANDOM), Err(TpmFailed));
    assert!(bench.told.try_recv().is_err(), "told once");
}

#[test]
fn one_that_skep_starts_up_executes_commands_at_once_each_time_that_it_is_switched_on() {
    let bench = Bench::new();
    let swtpm = bench.made(&find().unwrap(), StartUp::BySkep, SWITCH_ON_LIMIT).unwrap();
    for _ in 0..2 {
        swtpm.power_on().unwrap();
        assert_eq!(result(&swtpm.execute(&RANDOM).unwrap()), 0);
    }
    assert!(bench.told.try_recv().is_err());
}
