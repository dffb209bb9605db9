//! The power button, which is an input device.

use std::fs::{self, File};
use std::io::Read;
use std::thread;

use crate::drivers::Drivers;

/// The size of an event (linux/input.h, struct input_event), and a pressed power key in it: type EV_KEY,
/// code KEY_POWER, value 1, after 16 bytes of time.
const EVENT: usize = 24;
const PRESSED: [u8; 8] = [1, 0, 116, 0, 1, 0, 0, 0];

/// Calls `on_press` when a power button is pressed, on a thread of its own. Returns complaints.
pub fn listen(drivers: &Drivers, on_press: fn()) -> Vec<String> {
    let mut complaints: Vec<String> =
        drivers.load(&["button", "evdev"]).err().map(|error| error.to_string()).into_iter().collect();
    for name in buttons() {
        let path = format!("/dev/input/{name}");
        match File::open(&path) {
            Ok(button) => drop(thread::spawn(move || wait(button, on_press))),
            Err(error) => complaints.push(format!("cannot listen to the power button {path}: {error}")),
        }
    }
    complaints
}

/// The event devices that are power buttons.
fn buttons() -> Vec<String> {
    let devices = fs::read_dir("/sys/class/input").into_iter().flatten().flatten();
    devices
        .filter(|device| {
            let name = fs::read_to_string(device.path().join("device/name")).unwrap_or_default();
            name.trim() == "Power Button"
        })
        .map(|device| device.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("event"))
        .collect()
}

fn wait(mut button: File, on_press: fn()) {
    let mut event = [0; EVENT];
    while button.read_exact(&mut event).is_ok() {
        if event[16..] == PRESSED {
            on_press();
        }
    }
}
