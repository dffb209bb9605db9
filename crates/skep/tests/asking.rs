//! The commands that ask a running VM, from outside.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use control::fake::FakeVm;
use control::{Folder, Server};
use serde_json::Value;

/// A VM called web that runs in a folder of its own.
struct World {
    place: tempfile::TempDir,
    vm: Arc<FakeVm>,
    server: Option<Server>,
}

fn world() -> World {
    let place = tempfile::tempdir().unwrap();
    let vm = Arc::new(FakeVm::new("web"));
    let claim = Folder::at(place.path()).claim(&"web".parse().unwrap()).unwrap();
    World { vm: vm.clone(), server: Some(Server::start(claim, vm).unwrap()), place }
}

impl World {
    fn skep(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_skep"))
            .args(arguments.split_whitespace())
            .env("SKEP_RUNTIME_DIR", self.place.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What a command that must succeed prints.
    fn ask(&self, arguments: &str) -> String {
        let output = self.skep(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_running_vm_answers_every_command() {
    let world = world();
    assert!(world.ask("list").lines().nth(1).unwrap().starts_with("web   running"));
    let dma: Value = serde_json::from_str(&world.ask("dma web --json")).unwrap();
    assert_eq!(dma["domains"][1]["mappings"][2]["target"]["what"], "NVMe queues");
    let table = world.ask("dma web");
    assert!(table.starts_with("guest: devices assigned to the guest, by fake\n"), "{table}");
    assert!(!table.contains('\x1b'), "no colours off a terminal");
    assert!(world.ask("stats web").contains("/dev/sda      7"));
    let output = world.skep("cd web cd0 insert b.iso");
    assert_eq!((output.status.code(), stderr(&output).contains("--force")), (Some(4), true));
    world.ask("cd web cd0 eject --force");
    assert!(world.ask("list").ends_with("web: CD drive cd0 is empty.\n"));
    world.ask("cd web cd0 insert b.iso");
    let here = std::path::absolute("b.iso").unwrap();
    assert!(world.ask("stats web").ends_with(&format!("CD drive cd0 holds {}.\n", here.display())));
    world.ask("disk web plug b.img,serial=B");
    let here = std::path::absolute("b.img").unwrap();
    assert!(world.ask("stats web").contains(&format!("{}  ", here.display())));
    let output = world.skep("disk web plug c.img");
    assert_eq!((output.status.code(), stderr(&output).contains("Unplug a disk first")), (Some(4), true));
    world.ask(&format!("disk web unplug {}", here.display()));
    world.ask("pause web");
    assert!(world.ask("list").contains("paused"));
    world.ask("resume web");
    world.ask("stop web");
    assert_eq!(world.ask("events web --after 1").lines().count(), 2);
}

#[test]
fn pictures_are_written_in_the_language_of_their_names() {
    let world = world();
    for (name, begin) in [("p.svg", "<svg "), ("p.dot", "digraph \"web\" {")] {
        let path = world.place.path().join(name);
        world.ask(&format!("dma web --graph {}", path.display()));
        assert!(fs::read_to_string(path).unwrap().starts_with(begin));
    }
    let output = world.skep("dma web --graph p.png");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("ends with .svg"), "{}", stderr(&output));
}

#[test]
fn ram_is_read_and_dumped_from_outside() {
    let world = world();
    world.vm.write_ram(0x20_0010, b"In the guest's RAM");
    let text = world.ask("memory web read 0x200010 18");
    assert!(
        text.starts_with("00200010: 496e 2074 6865 2067 7565 7374 2773 2052  In the guest's R\n"),
        "{text}"
    );
    assert_eq!(world.ask("memory web read 2097168 18 --raw"), "In the guest's RAM");
    let path = world.place.path().join("ram");
    world.ask(&format!("memory web dump {}", path.display()));
    let dump = fs::read(path).unwrap();
    assert_eq!((dump.len(), &dump[0x20_0010..0x20_0022]), (0x28_0000, &b"In the guest's RAM"[..]));
    let output = world.skep("memory web read 0xfffff 2");
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(
        stderr(&output),
        "skep: 0x100000 is not RAM of the VM. Its RAM is at 0x0-0xfffff, 0x200000-0x27ffff.\n"
    );
}

#[test]
fn a_vm_that_does_not_run_is_said_to_and_what_it_left_harms_nobody() {
    let mut world = world();
    let socket = world.place.path().join("web.sock");
    for stale in [false, true] {
        world.server = None;
        if stale {
            drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        }
        for command in ["dma", "events", "stats", "pause", "resume", "stop", "cd", "disk"] {
            let more = match command {
                "cd" => " cd0 eject",
                "disk" => " unplug /dev/sda",
                _ => "",
            };
            let output = world.skep(&format!("{command} web{more}"));
            assert_eq!(output.status.code(), Some(1), "{command}");
            let text = stderr(&output);
            assert!(text.starts_with("skep: no VM called web runs: "), "{text}");
        }
        assert_eq!(world.ask("list").lines().count(), 1);
    }
    let output = world.skep("dma we/b");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("is not a VM name"), "{}", stderr(&output));
}

#[test]
fn a_vm_that_refuses_is_quoted() {
    let world = world();
    world.ask("stop web --now");
    let output = world.skep("resume web");
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(stderr(&output), "skep: the VM web refused: the VM web is ending. Start it again\n");
}

#[test]
fn a_disk_that_is_described_wrongly_is_refused_before_the_vm_is_asked() {
    let world = world();
    for (spec, said) in [
        ("/dev/sdb,sreial=A", "Did you mean `serial`?"),
        ("serial=A", "path=/dev/sda"),
        ("/dev/sdb,packed=on", "model=ahci"),
    ] {
        let output = world.skep(&format!("disk web plug {spec}"));
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
}
