//! Fuzz targets. Each is a module with one function, `run`, which takes hostile bytes and panics when skep does
//! not keep its word. `targets/` hands them to libFuzzer, `tests/seeds.rs` replays the inputs in `seeds/`.
//!
//! The bytes are a little program: each step is an opcode and its operands (see [`steps`]), so that an input can be
//! shortened, spliced and written by hand.

pub mod ahci;
pub mod assign_config;
pub mod atapi;
pub mod bar_moves;
mod board;
pub mod config_space;
pub mod control_request;
pub mod fault_line;
pub mod flash;
pub mod fw_cfg;
pub mod image_headers;
pub mod kernel_image;
pub mod nbd_session;
pub mod nvme;
pub mod nvme_data;
pub mod nvme_driver;
pub mod rtc;
pub mod steps;
pub mod tpm;
pub mod virtio_blk;
pub mod virtio_queue;
pub mod vm_toml;

/// A target: takes hostile bytes, panics when a promise is broken.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 20] = [
    ("virtio_queue", virtio_queue::run),
    ("virtio_blk", virtio_blk::run),
    ("config_space", config_space::run),
    ("bar_moves", bar_moves::run),
    ("kernel_image", kernel_image::run),
    ("vm_toml", vm_toml::run),
    ("assign_config", assign_config::run),
    ("ahci", ahci::run),
    ("nvme", nvme::run),
    ("nvme_data", nvme_data::run),
    ("control_request", control_request::run),
    ("nvme_driver", nvme_driver::run),
    ("fault_line", fault_line::run),
    ("atapi", atapi::run),
    ("image_headers", image_headers::run),
    ("nbd_session", nbd_session::run),
    ("rtc", rtc::run),
    ("fw_cfg", fw_cfg::run),
    ("flash", flash::run),
    ("tpm", tpm::run),
];
