//! `lab-count`: init of a guest whose boot is counted. Its first act is a mark; then it says that it is there, and stays
//! for as long as one looks.

use std::io::{self, Write};
use std::time::Duration;

use lab::count::{GUEST_LIVES, mark};

/// Whoever counts kills the monitor long before.
const STAY: Duration = Duration::from_secs(10);

fn main() {
    mark::<GUEST_LIVES>();
    let mut console = io::stdout();
    // Without a console there is nobody to tell.
    let _unheard = console.write_all(b"lab: init\n").and_then(|()| console.flush());
    std::thread::sleep(STAY);
    // SAFETY: reboot with this command takes no memory, and nothing was written that sync would save. The return of
    // init is a panic of its kernel, which ends the guest as well.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}
