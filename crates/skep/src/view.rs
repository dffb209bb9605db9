//! What a VM is made of, in the words of the API.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use control::api;
use control::{Refused, rfc3339};
use disk::{Answer, DiskError, Failure, Operation, Reading, SectorRange};
use dma::{BackEnd, Domain, IovaRange, Kind, P2p, P2pWish, Permission, Target};
use faults::{Counts, Direction, Fault, Place, Source};
use memory::{Audited, Contents, Difference, GpaRange, MemoryMap, Mirror, Ram};

/// Guest addresses.
fn gpa(range: GpaRange) -> api::Range {
    api::Range { first: api::Address(range.start().0), last: api::Address(range.end().0 - 1) }
}

/// Addresses of devices.
fn iova(range: IovaRange) -> api::Range {
    api::Range { first: api::Address(range.first().0), last: api::Address(range.last().0) }
}

/// The memory map.
pub fn memory(map: &MemoryMap) -> api::Memory {
    memory_and_ram(map).0
}

/// The memory map and the files of its segments, both of the same moment.
pub fn memory_files(map: &MemoryMap) -> Result<api::MemoryFiles, Refused> {
    let (memory, ram) = memory_and_ram(map);
    let files = ram.segments().iter().map(|segment| Ok(segment.file().try_clone()?.into()));
    let files: io::Result<Vec<OwnedFd>> = files.collect();
    let files = files.map_err(|cause| Refused(format!("cannot hand out the segments' files: {cause}.")))?;
    Ok(api::MemoryFiles { memory, files })
}

fn memory_and_ram(map: &MemoryMap) -> (api::Memory, Arc<Ram>) {
    map.look(|contents, audit| (of_one_moment(contents, audit()), contents.ram.clone()))
}

fn of_one_moment(contents: &Contents, audited: Vec<Audited>) -> api::Memory {
    let segments = contents.ram.segments().iter().map(|segment| api::Segment {
        gpa: gpa(segment.range()),
        // A segment is the whole of its file.
        offset: api::Address(0),
        page_size: segment.page_size(),
        node: segment.node().map(|node| node.0),
    });
    let devices = contents
        .devices
        .iter()
        .map(|device| api::DeviceMemory { owner: device.owner().to_owned(), gpa: gpa(device.range()) });
    let mirrors = audited.into_iter().map(|(name, result)| api::Mirror { name, audit: audit(result) });
    let mut memory =
        api::Memory { segments: segments.collect(), devices: devices.collect(), mirrors: mirrors.collect() };
    memory.devices.sort_by_key(|device| device.gpa);
    memory
}

fn audit(result: Result<(), Difference>) -> api::Audit {
    match result {
        Ok(()) => api::Audit::Same,
        Err(difference) => api::Audit::Differs { how: difference.differences.join("; ") },
    }
}

/// The DMA domains, each compared with the memory map, which must not change meanwhile ([`MemoryMap::look`]).
pub fn dma(domains: &[Arc<Domain>], contents: &Contents, faults: &Counts) -> api::Dma {
    let others = count(faults.except(|name| domains.iter().any(|domain| domain.name() == name)));
    api::Dma {
        domains: domains.iter().map(|domain| one_domain(domain, contents, faults)).collect(),
        pinned: Domain::pinned_by_all(domains.iter().map(|domain| &**domain)),
        other_faults: others,
    }
}

fn one_domain(domain: &Domain, contents: &Contents, faults: &Counts) -> api::Domain {
    let (kind, required) = match domain.kind() {
        Kind::Guest(wish) => (api::DomainKind::Guest, wish == P2pWish::Required),
        Kind::Host => (api::DomainKind::Host, false),
    };
    let calls = domain.calls();
    api::Domain {
        name: domain.name().to_owned(),
        kind,
        back_end: match domain.back_end() {
            BackEnd::Type1 => api::BackEnd::Type1,
            BackEnd::Iommufd => api::BackEnd::Iommufd,
            BackEnd::Fake => api::BackEnd::Fake,
        },
        groups: domain.groups().iter().map(|group| group.number()).collect(),
        devices: domain.devices(),
        mappings: domain.mappings().iter().map(|row| mapping(row, contents)).collect(),
        map_calls: calls.maps,
        unmap_calls: calls.unmaps,
        pinned: domain.pinned(),
        p2p: match domain.p2p() {
            P2p::Off => api::P2p::Off,
            P2p::Asked => api::P2p::Asked { required },
            P2p::Working => api::P2p::Working { required },
            P2p::Failed(why) => api::P2p::Failed { why },
        },
        audit: audit(domain.audit(contents)),
        faults: count(faults.of(domain.name())),
    }
}

fn mapping(row: &dma::Mapping, contents: &Contents) -> api::Mapping {
    let (target, page_size) = match &row.target {
        Target::Ram(range) => {
            let segments = contents.ram.segments();
            let segment = segments.iter().position(|segment| segment.range() == *range);
            let pages = segment.map(|segment| segments[segment].page_size());
            (api::Target::Ram { gpa: gpa(*range), segment }, pages)
        }
        Target::Device { owner, range } => {
            (api::Target::Device { owner: owner.to_string(), gpa: gpa(*range) }, None)
        }
        Target::Own(what) => (api::Target::Own { what: what.to_string() }, Some(4096)),
    };
    api::Mapping {
        iova: iova(row.iova),
        target,
        offset: api::Address(row.offset),
        page_size,
        permission: match row.permission {
            Permission::Read => api::Permission::Read,
            Permission::ReadWrite => api::Permission::ReadWrite,
        },
    }
}

/// A fault, or a burst of them so far: for [`control::Journal::record_fault`], with its own words as text.
pub fn fault(fault: &Fault) -> api::Fault {
    let direction = fault.direction.map(|direction| match direction {
        Direction::Read => api::Direction::Read,
        Direction::Write => api::Direction::Write,
    });
    let place = fault.place.map(|place| match place {
        Place::Ram => api::Place::Ram,
        Place::Hole => api::Place::Hole,
        Place::Device => api::Place::Device,
        Place::Own => api::Place::Own,
        Place::Beyond => api::Place::Beyond,
    });
    api::Fault {
        burst: fault.burst,
        time: rfc3339(fault.time),
        device: fault.device.map(|device| device.to_string()),
        iova: fault.iova.map(|iova| api::Address(iova.0)),
        pasid: fault.pasid,
        direction,
        domain: fault.domain.clone(),
        place,
        reason: fault.reason.clone(),
        source: match fault.source {
            Source::Log => api::FaultSource::KernelLog,
            Source::Probe => api::FaultSource::FaultRecords,
            Source::Tracepoint => api::FaultSource::Tracepoint,
            Source::Interrupts => api::FaultSource::FaultInterrupts,
            Source::Vfio => api::FaultSource::Vfio,
            Source::HostDriver => api::FaultSource::HostDriver,
            Source::Ledger => api::FaultSource::Ledger,
        },
        count: count(fault.count),
    }
}

fn count(faults::Count { known, unattributed, complete }: faults::Count) -> api::Count {
    api::Count { known, unattributed, complete }
}

/// Disks by name, with their counters.
pub fn disks(disks: &[Reading]) -> Vec<api::Disk> {
    disks.iter().map(disk).collect()
}

fn disk(Reading { name, counters, waiting }: &Reading) -> api::Disk {
    api::Disk {
        name: name.clone(),
        reads: counters.reads,
        writes: counters.writes,
        flushes: counters.flushes,
        discards: counters.discards,
        errors: counters.errors,
        ignored: counters.ignored,
        held: waiting.as_ref().map_or(0, |waiting| waiting.count),
        held_since: waiting.as_ref().map(|waiting| waiting.first.what().to_string()),
        bytes_read: counters.bytes_read,
        bytes_written: counters.bytes_written,
        bytes_direct: counters.bytes_direct,
        bytes_registered: counters.bytes_registered,
        bytes_copied: api::Copied {
            alignment: counters.bytes_bounced_alignment,
            asked: counters.bytes_bounced_asked,
            page_cache: counters.bytes_bounced_page_cache,
            sector_emulation: counters.bytes_bounced_sector_emulation,
            image_format: counters.bytes_bounced_image_format,
            transport: counters.bytes_bounced_transport,
        },
        read_modify_writes: counters.read_modify_writes,
    }
}

/// A request of a disk that failed: for [`control::Journal::record_disk`], with the failure's own words as text.
pub fn disk_error(failure: &Failure) -> api::DiskError {
    let Failure { disk, operation, bytes, error, errno, cause: _, answer, more } = failure;
    let of_range = |range: &SectorRange| (Some(range.start.0), range.count.bytes().unwrap_or(u64::MAX));
    let (operation, (sector, bytes)) = match operation {
        Operation::Read { at } => (api::DiskOperation::Read, (Some(at.0), *bytes)),
        Operation::Write { at, .. } => (api::DiskOperation::Write, (Some(at.0), *bytes)),
        Operation::Flush => (api::DiskOperation::Flush, (None, 0)),
        Operation::Discard(range) => (api::DiskOperation::Discard, of_range(range)),
        Operation::WriteZeroes(range, _) => (api::DiskOperation::WriteZeroes, of_range(range)),
    };
    let error = match error {
        DiskError::OutOfRange => api::DiskErrorKind::OutOfRange,
        DiskError::Unaligned => api::DiskErrorKind::Unaligned,
        DiskError::TooLong => api::DiskErrorKind::TooLong,
        DiskError::ReadOnly => api::DiskErrorKind::ReadOnly,
        DiskError::Media => api::DiskErrorKind::Media,
        DiskError::NoSpace => api::DiskErrorKind::NoSpace,
        DiskError::Gone => api::DiskErrorKind::Gone,
        DiskError::TimedOut => api::DiskErrorKind::TimedOut,
        DiskError::DmaBlocked => api::DiskErrorKind::DmaBlocked,
        DiskError::Unsupported => api::DiskErrorKind::Unsupported,
        DiskError::Cancelled => api::DiskErrorKind::Cancelled,
        DiskError::QueueFull => api::DiskErrorKind::QueueFull,
        DiskError::Other(_) => api::DiskErrorKind::Other,
    };
    let answer = match answer {
        Answer::Reported => api::DiskAnswer::Reported,
        Answer::Held => api::DiskAnswer::Held,
        Answer::Ignored => api::DiskAnswer::Ignored,
    };
    api::DiskError {
        disk: disk.to_string(),
        operation,
        sector,
        bytes,
        error,
        errno: *errno,
        answer,
        more: *more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    use control::Journal;
    use dma::OwnMemory;
    use dma::fake::FakeIommu;
    use memory::Gpa;

    /// 1 MiB of RAM at 0 and 512 KiB at 2 MiB; a guest and a host domain, and a driver's queues in the latter.
    fn mapped() -> (MemoryMap, [Arc<Domain>; 2], OwnMemory) {
        let range = |start, len| GpaRange::new(Gpa(start), len).unwrap();
        let ram = Ram::new(&[range(0, 0x10_0000), range(0x20_0000, 0x8_0000)]).unwrap();
        let map = MemoryMap::new(Arc::new(ram));
        let guest = FakeIommu::new().domain("guest", Kind::Guest(P2pWish::Off));
        let host = FakeIommu::new().domain("host", Kind::Host);
        for domain in [&guest, &host] {
            map.attach(domain.clone()).unwrap();
        }
        let queues = host.map_own("NVMe queues", 0x2000).unwrap();
        (map, [guest, host], queues)
    }

    #[test]
    fn a_domain_is_shown_with_what_its_mappings_lead_to_and_how_it_compares() {
        let (map, domains, _queues) = mapped();
        let dma = dma(&domains, &map.contents(), &Counts::default());
        let [guest, host] = &dma.domains[..] else { panic!("{dma:?}") };
        let words = [guest.kind.to_string(), host.kind.to_string(), host.back_end.to_string()];
        assert_eq!(words, ["guest", "host", "fake"]);
        let low = api::Range { first: api::Address(0), last: api::Address(0xf_ffff) };
        assert_eq!((guest.mappings.len(), guest.mappings[0].iova), (2, low));
        assert_eq!(guest.mappings[0].target, api::Target::Ram { gpa: low, segment: Some(0) });
        assert!(guest.mappings[0].page_size.unwrap() >= 4096);
        let own = &host.mappings[2];
        assert_eq!(own.target, api::Target::Own { what: "NVMe queues".into() });
        assert_eq!((guest.map_calls, host.map_calls, host.pinned), (2, 3, 0x18_0000 + 0x2000));
        assert_eq!(dma.pinned, host.pinned, "they share the RAM");
        assert_eq!((&guest.audit, &host.audit), (&api::Audit::Same, &api::Audit::Same));
    }

    #[test]
    fn a_domain_that_holds_less_than_the_map_is_shown_to_differ() {
        let (map, _, _queues) = mapped();
        let empty = FakeIommu::new().domain("spare", Kind::Guest(P2pWish::Required));
        let dma = dma(&[empty], &map.contents(), &Counts::default());
        let api::Audit::Differs { how } = &dma.domains[0].audit else { panic!("{dma:?}") };
        assert!(how.contains("RAM 0x0-0xfffff is missing"), "{how}");
        assert_eq!(dma.domains[0].p2p, api::P2p::Asked { required: true });
    }

    #[test]
    fn faults_of_a_domain_that_is_gone_count_among_the_others() {
        let ((map, domains, _queues), tally) = (mapped(), faults::Tally::default());
        let count = api::Count { known: 3, unattributed: 0, complete: true };
        for domain in ["guest", "gone"] {
            tally.add(Some(domain), faults::Count { known: 3, unattributed: 0, complete: true });
        }
        let dma = dma(&domains, &map.contents(), &tally.read());
        assert_eq!((dma.domains[0].faults, dma.domains[1].faults.known, dma.other_faults), (count, 0, count));
    }

    #[test]
    fn a_fault_keeps_all_that_is_known_of_it() {
        let shown = fault(&Fault {
            time: SystemTime::UNIX_EPOCH,
            device: Some("0000:01:00.0".parse().unwrap()),
            direction: Some(Direction::Write),
            iova: Some(dma::Iova(0x20_0000)),
            domain: Some("guest".into()),
            place: Some(Place::Hole),
            ..Fault::new(Source::Log, "PTE Write access is not set")
        });
        let wanted = r#"{"burst":0,"time":"1970-01-01T00:00:00.000Z","device":"0000:01:00.0","iova":"0x200000","pasid":null,"direction":"write","domain":"guest","place":"hole","reason":"PTE Write access is not set","source":"kernel log","count":{"known":1,"unattributed":0,"complete":false}}"#;
        assert_eq!(serde_json::to_string(&shown).unwrap(), wanted);
    }

    #[test]
    fn dma_that_failed_is_told_in_its_own_words_and_with_its_parts() {
        let mut event = Fault {
            burst: 3,
            device: Some("0000:00:09.0".parse().unwrap()),
            direction: Some(Direction::Write),
            iova: Some(dma::Iova(0xf00_0000)),
            domain: Some("guest".into()),
            place: Some(Place::Beyond),
            ..Fault::new(Source::Log, "no")
        };
        let journal = Journal::new();
        for known in [1, 7, 7] {
            event.count.known = known;
            journal.record_fault(&event.to_string(), fault(&event));
        }
        let told = journal.after(0, Duration::ZERO).events;
        assert_eq!(told[2].text, event.to_string());
        let counts: Vec<u64> = told.iter().map(|event| event.fault.as_ref().unwrap().count.known).collect();
        assert_eq!(counts, [1, 7, 7]);
        assert_eq!(told[0].fault.as_ref().unwrap().device.as_deref(), Some("0000:00:09.0"));
    }

    #[test]
    fn a_disks_error_is_told_with_its_kind_and_place() {
        let failure = Failure {
            disk: "/dev/sda".into(),
            operation: Operation::Read { at: disk::Sectors(8) },
            bytes: 4096,
            error: disk::DiskError::NoSpace,
            errno: Some(28),
            cause: None,
            answer: Answer::Held,
            more: 2,
        };
        let wanted = r#"{"disk":"/dev/sda","operation":"read","sector":8,"bytes":4096,"error":"no-space","errno":28,"answer":"held","more":2}"#;
        assert_eq!(serde_json::to_string(&disk_error(&failure)).unwrap(), wanted);
        let waiting = Some(disk::Waiting { count: 3, first: failure });
        let shown =
            disks(&[Reading { name: "/dev/sda".to_owned(), counters: disk::Counters::default(), waiting }]);
        assert_eq!(shown[0].held, 3);
        assert!(shown[0].held_since.as_ref().unwrap().contains("no space left"));
    }

    #[test]
    fn the_memory_map_names_segments_in_order_and_every_mirror() {
        let (map, _, _queues) = mapped();
        let memory = memory(&map);
        assert_eq!(memory.segments[1].gpa.to_string(), "0x200000-0x27ffff");
        let mirrors: Vec<&str> = memory.mirrors.iter().map(|mirror| mirror.name.as_str()).collect();
        assert_eq!(mirrors, ["DMA domain guest", "DMA domain host"]);
    }
}
