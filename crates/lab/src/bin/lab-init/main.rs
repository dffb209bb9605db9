//! Init of the emulated host and of its guests; under the name `lab-initrd`, the tool that puts a script
//! into a guest's initramfs.

mod button;
mod drivers;
mod guest;
mod host;
mod idle_vm;
mod initrd;
mod nvme;
mod pty;
mod system;

use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    if name.ends_with("lab-initrd") {
        return initrd::run();
    }
    if std::process::id() != 1 {
        eprintln!("lab-init: it is init of the lab's emulated host, and nothing else");
        return ExitCode::from(2);
    }
    guest::answer_at_once();
    if system::command_line().iter().any(|word| word == lab::wire::HOST_WORD) {
        host::run();
    } else {
        guest::run();
    }
    system::power_off()
}
