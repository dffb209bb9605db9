use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

const COMMAND: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 8];
const RESPONSE: [u8; 10] = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0, 0];

/// Executes a command when the test says so, with the result that it says.
struct Model {
    began: Sender<()>,
    results: Mutex<Receiver<Result<Vec<u8>, TpmFailed>>>,
    /// To itself, for an execution that is aborted.
    abort: Sender<Result<Vec<u8>, TpmFailed>>,
    powered: Mutex<u32>,
    works: bool,
    /// Held by a test while a switch-on is to wait.
    slow: Mutex<()>,
}

impl TpmBackEnd for Model {
    fn power_on(&self) -> Result<(), TpmFailed> {
        *self.powered.lock() += 1;
        drop(self.slow.lock());
        if self.works { Ok(()) } else { Err(TpmFailed) }
    }

    fn execute(&self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
        assert_eq!(command, COMMAND);
        self.began.send(()).unwrap();
        self.results.lock().recv().unwrap()
    }

    fn abort(&self) {
        let powered = *self.powered.lock();
        self.abort.send(Err(TpmFailed)).unwrap();
        // The execution ends at once, and this goes on for a while.
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(*self.powered.lock(), powered, "a switch-on waits until what it would lose to is over");
    }
}

struct Bench {
    tpm: Tpm,
    model: Arc<Model>,
    began: Receiver<()>,
    results: Sender<Result<Vec<u8>, TpmFailed>>,
}

fn bench(works: bool) -> Bench {
    let ((began, begins), (results, ends)) = (channel(), channel());
    let abort = results.clone();
    let (results_end, powered, slow) = (Mutex::new(ends), Mutex::default(), Mutex::default());
    let model = Arc::new(Model { began, results: results_end, abort, powered, works, slow });
    let tpm = Tpm::new(Gpa(0xfed4_0000), model.clone()).unwrap();
    Bench { tpm, model, began: begins, results }
}

impl Bench {
    fn start(&self) {
        self.tpm.write(0x08, &1u32.to_le_bytes());
        self.tpm.write(0x40, &1u32.to_le_bytes());
        self.tpm.write(0x80, &COMMAND[..8]);
        self.tpm.write(0x88, &COMMAND[8..]);
        self.tpm.write(0x4c, &1u32.to_le_bytes());
        self.began.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    fn register(&self, offset: u64) -> u32 {
        let mut bytes = [0xff; 4];
        self.tpm.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn wait_for_end(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.register(0x4c) != 0 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_driver_polls_while_a_command_is_executed_and_finds_the_response() {
    let bench = bench(true);
    bench.start();
    assert_eq!(bench.register(0x4c), 1, "no access waits for it");
    bench.results.send(Ok(RESPONSE.to_vec())).unwrap();
    bench.wait_for_end();
    let mut response = [0; 10];
    bench.tpm.read(0x80, &mut response);
    assert_eq!((response, bench.register(0x44)), (RESPONSE, 0));
}

#[test]
fn a_back_end_that_fails_is_a_fatal_error_until_the_machine_is_reset() {
    let bench = bench(true);
    bench.start();
    bench.results.send(Err(TpmFailed)).unwrap();
    bench.wait_for_end();
    assert_eq!(bench.register(0x44), 1);
    bench.tpm.reset().unwrap();
    assert_eq!((bench.register(0x44), *bench.model.powered.lock()), (2, 1));
}

#[test]
fn a_reset_ends_a_command_by_force_and_its_result_is_nobodys() {
    let bench = bench(true);
    bench.start();
    bench.tpm.reset().unwrap();
    assert_eq!((bench.register(0x44), bench.register(0x4c), bench.register(0x80)), (2, 0, 0));
    bench.start();
    bench.results.send(Ok(RESPONSE.to_vec())).unwrap();
    bench.wait_for_end();
    assert_eq!(bench.register(0x44), 0);
}

#[test]
fn one_that_cannot_be_switched_on_again_says_so_to_its_driver_and_to_its_owner() {
    let bench = bench(false);
    assert_eq!(bench.tpm.reset(), Err(TpmFailed));
    assert_eq!(bench.register(0x44), 3);
}

#[test]
fn a_switch_on_that_comes_too_late_does_not_bring_it_to_life_and_the_next_one_does() {
    let bench = bench(true);
    let slow = bench.model.slow.lock();
    bench.tpm.shared.turn_to(Turn::PowerOn);
    while *bench.model.powered.lock() == 0 {
        std::thread::yield_now();
    }
    bench.tpm.shared.give_up(&mut bench.tpm.shared.desk());
    drop(slow);
    let shared = &bench.tpm.shared;
    let desk = shared.settled(shared.desk(), Duration::from_secs(10), Turn::at_rest);
    assert_eq!(desk.turn, Turn::Rest);
    drop(desk);
    assert_eq!(bench.register(0x44), 3, "broken");
    bench.tpm.reset().unwrap();
    assert_eq!(bench.register(0x44), 2);
}

#[test]
fn a_tpm_that_is_dropped_in_the_middle_of_a_command_ends_it() {
    let bench = bench(true);
    bench.start();
    let model = bench.model.clone();
    drop(bench.tpm);
    assert_eq!(Arc::strong_count(&model), 2, "this test's two: the thread has gone");
}
