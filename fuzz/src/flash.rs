//! A hostile guest's writes to flash memory: what it reads as memory is what was stored, each byte was stored by a command, and
//! the firmware's code never changes.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use devices::{Flash, Store};
use memory::{Gpa, GpaRange, RegisterPages};

use crate::steps::Steps;

const LEN: usize = 16 << 10;

#[derive(Clone)]
struct Kept(Arc<Mutex<Vec<u8>>>, Arc<AtomicBool>);

impl Store for Kept {
    fn name(&self) -> String {
        "the variables".to_owned()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.1.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.lock().expect("not poisoned")[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn unfinished(&self, _: &[u8]) -> Vec<(u64, Vec<u8>)> {
        Vec::new()
    }
}

fn flash(store: Option<Kept>, shown: &Arc<AtomicBool>) -> Flash {
    let range = GpaRange::new(Gpa((1 << 32) - LEN as u64), LEN as u64).expect("not empty");
    let pages = Arc::new(RegisterPages::new(LEN).expect("some memory"));
    let shown = shown.clone();
    let show = Box::new(move |on| {
        shown.store(on, Ordering::Relaxed);
        Ok(())
    });
    Flash::new(range, pages, store.map(|store| Box::new(store) as Box<dyn Store>), show, Box::new(|_| {}))
        .expect("it is shown")
}

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let kept = Kept(Arc::new(Mutex::new(vec![0; LEN])), Arc::default());
    let (shown, code_shown) = (Arc::default(), Arc::default());
    let variables = flash(Some(kept.clone()), &shown);
    let code = flash(None, &code_shown);
    let (mut since, mut failed) = (0, false);
    while let Some(step) = steps.next_step() {
        let len = usize::from(steps.pick(&[1u8, 2, 4, 8]));
        let offset = usize::from(steps.u16()) % (LEN - len + 1);
        match step {
            0..200 => {
                let first = steps.pick(&[0x10, 0x40, 0x20, 0xd0, 0x50, 0x70, 0x90, 0xff, step]);
                let data: Vec<u8> = (0..len).map(|n| if n == 0 { first } else { steps.u8() }).collect();
                variables.write(offset as u64, &data);
                code.write(offset as u64, &data);
            }
            200..210 => variables.reset(),
            210..220 => {
                failed |= step % 2 == 0;
                kept.1.store(step % 2 == 0, Ordering::Relaxed);
            }
            _ => {
                let mut data = vec![0; len];
                code.read(offset as u64, &mut data);
                assert!(data.iter().all(|byte| *byte == 0), "the code was changed");
                variables.read(offset as u64, &mut data);
            }
        }
        assert!(code_shown.load(Ordering::Relaxed), "the code is always memory");
        // Comparing takes longer than all the rest.
        since = (since + 1) % 32;
        if since == 0 && !failed && shown.load(Ordering::Relaxed) {
            compare(&variables, &kept);
        }
    }
    // What could not be stored is, once it can be.
    kept.1.store(false, Ordering::Relaxed);
    variables.reset();
    compare(&variables, &kept);
}

fn compare(variables: &Flash, kept: &Kept) {
    let mut data = vec![0; LEN];
    variables.read(0, &mut data);
    assert_eq!(data, *kept.0.lock().expect("not poisoned"), "what is shown is what is stored");
}
