//! Replays the committed inputs, among them everything that once broke something.

use std::fs;
use std::path::Path;

fn replay(name: &str) {
    let (_, run) = fuzz::TARGETS.into_iter().find(|(other, _)| *other == name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut count = 0;
    for file in fs::read_dir(&folder).expect("the target has seeds") {
        let path = file.expect("a readable folder").path();
        println!("{}", path.display());
        run(&fs::read(&path).expect("a readable file"));
        count += 1;
    }
    assert!(count > 0, "no seeds in {}", folder.display());
}

#[test]
fn hostile_queues_are_refused() {
    replay("virtio_queue");
}

#[test]
fn hostile_block_requests_are_refused() {
    replay("virtio_blk");
}

#[test]
fn configuration_space_keeps_its_word() {
    replay("config_space");
}

#[test]
fn accesses_follow_bars() {
    replay("bar_moves");
}

#[test]
fn damaged_kernels_are_refused() {
    replay("kernel_image");
}

#[test]
fn descriptions_are_read_or_refused() {
    replay("vm_toml");
}

#[test]
fn lying_hardware_is_contained() {
    replay("assign_config");
}

#[test]
fn hostile_nvme_drivers_are_survived() {
    replay("nvme");
}

#[test]
fn hostile_lists_of_data_are_refused() {
    replay("nvme_data");
}

#[test]
fn hostile_sata_commands_are_refused() {
    replay("ahci");
}

#[test]
fn requests_to_the_control_socket_are_read_or_refused() {
    replay("control_request");
}

#[test]
fn lying_controllers_are_contained() {
    replay("nvme_driver");
}

#[test]
fn lines_of_the_kernels_log_are_read_or_passed_over() {
    replay("fault_line");
}

#[test]
fn hostile_packets_are_refused() {
    replay("atapi");
}

#[test]
fn lying_images_are_refused_or_end_their_requests() {
    replay("image_headers");
}

#[test]
fn lying_servers_reach_live_requests_only() {
    replay("nbd_session");
}

#[test]
fn every_target_has_its_seeds_replayed() {
    let mut folders: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds"))
        .expect("there are seeds")
        .map(|entry| entry.expect("a readable folder").file_name().into_string().expect("plain names"))
        .collect();
    folders.sort();
    let mut names: Vec<_> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.sort();
    assert_eq!(folders, names);
}

#[test]
fn the_clock_keeps_time_whatever_is_written_to_it() {
    replay("rtc");
}

#[test]
fn commands_for_the_firmwares_configuration_stay_in_their_place() {
    replay("fw_cfg");
}

#[test]
fn flash_memory_shows_what_is_stored() {
    replay("flash");
}

#[test]
fn a_tpm_executes_one_whole_command_at_a_time() {
    replay("tpm");
}
