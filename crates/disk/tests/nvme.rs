//! The NVMe host driver over a model of a controller that fails in every way it is told to.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::nvme::model::{Defects, Fault, Model, Namespace};
use disk::nvme::{Direction, NvmeController, NvmeError, NvmeOptions, NvmeTrouble, TroubleKind};
use disk::{Disk, DiskError, DiskQueue, Durability, Event, Operation, Poll, Request, Sectors};
use dma::fake::FakeIommu;
use dma::{Domain, Kind};
use memory::{Buffers, Gpa, GpaRange, MemoryMap, Mirror, Ram};
use proptest::prelude::*;

const SIZE: u64 = 8 << 20;
/// The admin command that aborts another (NVM Express, opcodes for admin commands).
const ABORT: u8 = 0x08;

/// A host with one controller, and a VM's memory.
struct Host {
    iommu: FakeIommu,
    domain: Arc<Domain>,
    map: MemoryMap,
    model: Model,
    troubles: Arc<Mutex<Vec<NvmeTrouble>>>,
}

impl Host {
    fn new() -> Host {
        let iommu = FakeIommu::new();
        let domain = iommu.domain("host", Kind::Host);
        let ram = Ram::new(&[GpaRange::new(Gpa(0), 4 << 20).unwrap()]).unwrap();
        let map = MemoryMap::new(Arc::new(ram));
        map.attach(domain.clone()).unwrap();
        let model = Model::new(&iommu, vec![Namespace { bytes: SIZE, block: 512 }]);
        Host { iommu, domain, map, model, troubles: Arc::default() }
    }

    fn options(&self) -> NvmeOptions {
        let troubles = self.troubles.clone();
        NvmeOptions {
            admin_timeout: Duration::from_millis(300),
            io_timeout: Duration::from_millis(40),
            ..NvmeOptions::new(Arc::new(move |trouble| troubles.lock().unwrap().push(trouble.clone())))
        }
    }

    fn controller(&self) -> Result<NvmeController, NvmeError> {
        NvmeController::over(self.model.function(), &self.domain, self.options())
    }

    fn queue(&self) -> (Disk, DiskQueue) {
        self.polled_queue(Poll::Adaptive)
    }

    fn polled_queue(&self, poll: Poll) -> (Disk, DiskQueue) {
        let controller = self.controller().unwrap();
        let disk = Disk::new("nvme", Box::new(controller.namespace(1).unwrap().polled(poll)));
        let queue = disk.prepare_queue(16).unwrap().start().unwrap();
        (disk, queue)
    }

    fn buffers(&self, gpa: u64, len: u64) -> Buffers {
        let mut buffers = Buffers::new(self.map.ram());
        buffers.push(Gpa(gpa), len).unwrap();
        buffers
    }

    fn submit(&self, queue: &mut DiskQueue, tag: u64, operation: Operation, gpa: u64, len: u64) {
        queue.submit(Request { tag, operation, buffers: self.buffers(gpa, len) }).unwrap();
    }

    fn run(&self, queue: &mut DiskQueue, operation: Operation) -> Result<(), DiskError> {
        self.submit(queue, 0, operation, 0x3000, 4096);
        results(queue, 1).pop().unwrap().1
    }

    /// Kinds of trouble so far, and forgets them.
    fn troubles(&self) -> Vec<TroubleKind> {
        self.troubles.lock().unwrap().drain(..).map(|trouble| trouble.kind).collect()
    }
}

/// Waits for so many results, but not for ever.
fn results(queue: &mut DiskQueue, count: usize) -> Vec<(u64, Result<(), DiskError>)> {
    let (begin, mut events, mut results) = (Instant::now(), Vec::new(), Vec::new());
    while results.len() < count {
        assert!(begin.elapsed() < Duration::from_secs(20), "it hangs");
        queue.wait(&mut events).unwrap();
        results.extend(events.drain(..).filter_map(|event| match event {
            Event::Done { tag, result, .. } => Some((tag, result)),
            Event::Wake => None,
        }));
    }
    results
}

fn read(at: u64) -> Operation {
    Operation::Read { at: Sectors(at) }
}

fn write(at: u64) -> Operation {
    Operation::Write { at: Sectors(at), durability: Durability::Cached }
}

#[test]
fn many_requests_ring_one_doorbell_and_data_is_not_copied() {
    let host = Host::new();
    let (disk, mut queue) = host.queue();
    host.map.ram().write(Gpa(0x10000), &[0xa5; 0x10000]).unwrap();
    let before = host.model.seen();
    (0..16).for_each(|tag| host.submit(&mut queue, tag, write(tag * 8), 0x10000 + tag * 4096, 4096));
    results(&mut queue, 16);
    let seen = host.model.seen();
    assert_eq!((seen.commands - before.commands, seen.doorbells - before.doorbells), (16, 1));
    assert!(host.model.contents(1)[..0x10000].iter().all(|byte| *byte == 0xa5));
    assert_eq!((disk.counters().bytes_direct, disk.counters().bytes_bounced()), (0x10000, 0));
    assert_eq!(host.iommu.refused(), []);
}

#[test]
fn interrupts_are_enabled_before_the_controller_is_and_it_is_shut_down_in_order() {
    let host = Host::new();
    for time in 1..=12 {
        // The model's interrupts do not come when they were enabled after the controller.
        let (disk, mut queue) = host.polled_queue(Poll::Off);
        host.run(&mut queue, write(0)).unwrap();
        assert_eq!(host.model.seen().queues, 1);
        drop((queue, disk));
        let seen = host.model.seen();
        assert_eq!((seen.enabled, seen.shutdowns, seen.queues), (time, time, 0));
    }
    assert_eq!(host.domain.mappings().len(), 1, "the queues' memory is unmapped");
    assert_eq!(host.troubles(), []);
}

#[test]
fn every_way_of_polling_brings_the_completion_even_without_interrupts() {
    for poll in [Poll::Off, Poll::Adaptive, Poll::On] {
        let host = Host::new();
        host.model.set_defects(Defects { mute: true, ..Defects::default() });
        let (_disk, mut queue) = host.polled_queue(poll);
        host.run(&mut queue, write(8)).unwrap();
    }
}

#[test]
fn more_queues_than_vectors_work_and_more_than_all_are_refused_with_a_hint() {
    let host = Host::new();
    let options = NvmeOptions { queues: 6, ..host.options() };
    let controller = NvmeController::over(host.model.function(), &host.domain, options).unwrap();
    assert_eq!(controller.namespaces().unwrap(), [1]);
    let disk = Disk::new("nvme", Box::new(controller.namespace(1).unwrap().polled(Poll::Off)));
    let mut queues: Vec<DiskQueue> =
        (0..6).map(|_| disk.prepare_queue(4).unwrap().start().unwrap()).collect();
    for queue in &mut queues {
        host.run(queue, write(0)).unwrap();
    }
    let error = disk.prepare_queue(4).err().unwrap().to_string();
    assert!(
        error.contains("all its 6 I/O queues are in use")
            && error.contains("fewer or shorter queues (`queues`)"),
        "{error}"
    );
    queues.pop();
    disk.prepare_queue(4).unwrap();
}

#[test]
fn a_silent_command_is_aborted_and_asked_for_again() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    host.model.inject([Fault::Silence]);
    assert_eq!(host.run(&mut queue, write(8)), Ok(()));
    let seen = host.model.seen();
    assert_eq!((seen.aborts, seen.enabled), (1, 1));
    assert!(matches!(host.troubles()[..], [TroubleKind::TimedOut { queue: 1, .. }]));
}

#[test]
fn an_abortion_that_is_not_answered_keeps_no_other_request_waiting() {
    let host = Host::new();
    let (io_timeout, admin_timeout) = (Duration::from_secs(2), Duration::from_secs(120));
    let options = NvmeOptions { io_timeout, admin_timeout, ..host.options() };
    let controller = NvmeController::over(host.model.function(), &host.domain, options).unwrap();
    let disk = Disk::new("nvme", Box::new(controller.namespace(1).unwrap().polled(Poll::Off)));
    let mut queue = disk.prepare_queue(4).unwrap().start().unwrap();
    host.model.inject([Fault::Silence]);
    host.model.set_defects(Defects { ignores: Some(ABORT), ..Defects::default() });
    let begin = Instant::now();
    host.submit(&mut queue, 0, write(0), 0, 4096);
    while !host.troubles().iter().any(|trouble| matches!(trouble, TroubleKind::TimedOut { .. })) {
        queue.poll(&mut Vec::new()).unwrap();
    }
    host.submit(&mut queue, 1, write(8), 0, 4096);
    assert_eq!(results(&mut queue, 1), [(1, Ok(()))]);
    assert_eq!(results(&mut queue, 1), [(0, Ok(()))]);
    assert!(begin.elapsed() < admin_timeout, "{:?}", begin.elapsed());
}

#[test]
fn a_controller_that_aborts_and_does_not_say_so_is_reset_before_the_command_is_sent_again() {
    let host = Host::new();
    let options = NvmeOptions { admin_timeout: Duration::from_millis(500), ..host.options() };
    let controller = NvmeController::over(host.model.function(), &host.domain, options).unwrap();
    let disk = Disk::new("nvme", Box::new(controller.namespace(1).unwrap()));
    let mut queue = disk.prepare_queue(4).unwrap().start().unwrap();
    host.model.inject([Fault::Silence]);
    host.model.set_defects(Defects { conceals: Some(ABORT), ..Defects::default() });
    assert_eq!(host.run(&mut queue, write(8)), Ok(()));
    assert_eq!((host.model.seen().aborts, host.model.seen().enabled), (1, 2));
    let reset =
        |trouble: &TroubleKind| matches!(trouble, TroubleKind::Reset { why } if why.contains("abortion"));
    assert!(host.troubles().iter().any(reset), "{:?}", host.troubles());
    assert_eq!(host.run(&mut queue, write(16)), Ok(()));
}

#[test]
fn what_cannot_be_aborted_is_asked_for_again_after_a_reset_with_all_else() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    host.model.inject([Fault::None, Fault::Deafness, Fault::Silence]);
    for tag in 0..8 {
        host.map.ram().write(Gpa(tag * 4096), &[tag as u8 + 1; 4096]).unwrap();
        host.submit(&mut queue, tag, write(tag * 8), tag * 4096, 4096);
    }
    assert!(results(&mut queue, 8).iter().all(|(_, result)| result.is_ok()));
    for tag in 0..8 {
        assert!(host.model.contents(1)[tag * 4096..][..4096].iter().all(|byte| *byte == tag as u8 + 1));
    }
    assert!(host.model.seen().enabled >= 2);
    assert!(host.troubles().iter().any(|trouble| matches!(trouble, TroubleKind::Reset { .. })));
}

#[test]
fn a_command_that_is_never_answered_fails_in_the_end_and_the_next_works() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    host.model.inject([Fault::Deafness; 3]);
    assert_eq!(host.run(&mut queue, read(0)), Err(DiskError::TimedOut));
    assert_eq!(host.run(&mut queue, read(0)), Ok(()));
}

#[test]
fn a_reset_by_one_queue_is_noticed_by_the_others() {
    let host = Host::new();
    let (disk, mut queue) = host.queue();
    let mut other = disk.prepare_queue(4).unwrap().start().unwrap();
    host.run(&mut other, write(0)).unwrap();
    host.model.inject([Fault::Deafness]);
    host.run(&mut queue, write(8)).unwrap();
    assert_eq!(host.run(&mut other, write(16)), Ok(()));
    drop((queue, other));
    assert_eq!(host.model.seen().queues, 0);
}

#[test]
fn a_controller_that_does_not_stop_is_reset_as_a_function() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    host.model.set_defects(Defects { never_stops: true, ..Defects::default() });
    host.model.inject([Fault::Deafness]);
    assert_eq!(host.run(&mut queue, write(8)), Ok(()));
    assert_eq!(host.model.seen().resets, 1);
    host.model.set_defects(Defects::default());
}

#[test]
fn a_removed_controller_fails_everything_and_says_so_once() {
    let host = Host::new();
    let (disk, mut queue) = host.queue();
    host.model.inject([Fault::None, Fault::Removal]);
    (0..4).for_each(|tag| host.submit(&mut queue, tag, write(tag * 8), 0, 4096));
    let results = results(&mut queue, 4);
    assert_eq!(results.iter().filter(|(_, result)| *result == Err(DiskError::Gone)).count(), 3);
    assert_eq!(host.run(&mut queue, read(0)), Err(DiskError::Gone));
    let troubles = host.troubles();
    assert_eq!(troubles.iter().filter(|trouble| matches!(trouble, TroubleKind::Lost { .. })).count(), 1);
    assert!(disk.prepare_queue(4).is_err());
}

#[test]
fn a_controller_that_was_given_up_is_told_of_nothing_any_more() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    host.model.inject([Fault::Deafness]);
    host.model.set_defects(Defects { never_ready: true, ..Defects::default() });
    assert_eq!(host.run(&mut queue, write(0)), Err(DiskError::Gone));
    let before = host.model.seen().doorbells;
    assert_eq!(host.run(&mut queue, write(8)), Err(DiskError::Gone));
    assert_eq!(host.model.seen().doorbells, before);
}

#[test]
fn an_announced_removal_fails_what_is_under_way() {
    let host = Host::new();
    let (_disk, mut queue) = host.polled_queue(Poll::Off);
    host.model.inject([Fault::Silence]);
    host.submit(&mut queue, 0, write(0), 0, 4096);
    queue.poll(&mut Vec::new()).unwrap();
    host.model.ask_back();
    assert_eq!(results(&mut queue, 1), [(0, Err(DiskError::Gone))]);
}

#[test]
fn blocked_dma_is_an_error_and_a_report_with_place_and_direction() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    let mirror: Arc<dyn Mirror> = host.domain.clone();
    // What bhyve did: guest RAM leaves the host domain while a driver of the host uses it.
    host.map.detach(&mirror).unwrap();
    assert_eq!(host.run(&mut queue, read(8)), Err(DiskError::DmaBlocked));
    let troubles = host.troubles.lock().unwrap().clone();
    let [trouble] = &troubles[..] else { panic!("{troubles:?}") };
    assert!(matches!(
        trouble.kind,
        TroubleKind::BlockedDma { iova: dma::Iova(0x3000), bytes: 4096, direction: Direction::ToMemory, .. }
    ));
    let text = trouble.to_string();
    assert!(
        text.contains("0000:aa:00.0") && text.contains("0x3000") && text.contains("domain host"),
        "{text}"
    );
    assert_eq!(host.iommu.refused().len(), 0, "nothing is tried that would fail");
    host.map.attach(mirror).unwrap();
    assert_eq!(host.run(&mut queue, read(8)), Ok(()));
}

#[test]
fn a_controller_that_says_that_its_dma_was_blocked_is_believed() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    // Data Transfer Error.
    host.model.inject([Fault::Status(0x004)]);
    assert_eq!(host.run(&mut queue, read(8)), Err(DiskError::DmaBlocked));
    assert!(matches!(host.troubles()[..], [TroubleKind::BlockedDma { bytes: 4096, .. }]));
}

#[test]
fn a_passing_error_is_tried_again_and_a_final_one_is_not() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    host.model.inject([Fault::Status(0x281), Fault::Status(0x006)]);
    assert_eq!(host.run(&mut queue, read(8)), Ok(()));
    host.model.inject([Fault::Status(0x4281)]);
    assert_eq!(host.run(&mut queue, read(8)), Err(DiskError::Media));
    assert_eq!(host.run(&mut queue, read(8)), Ok(()));
}

#[test]
fn a_controller_that_never_answers_is_an_error_in_time_that_names_it() {
    let defects = [
        (Defects { never_ready: true, ..Defects::default() }, "become ready"),
        (Defects { ignores: Some(9), ..Defects::default() }, "set its number of queues"),
        (Defects { ignores: Some(6), ..Defects::default() }, "identify itself"),
    ];
    for (defects, what) in defects {
        let host = Host::new();
        host.model.set_defects(defects);
        let begin = Instant::now();
        let error = host.controller().unwrap_err().to_string();
        assert!(error.contains("0000:aa:00.0") && error.contains(what), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert_eq!(host.domain.mappings().len(), 1);
    }
}

#[test]
fn a_namespace_that_is_not_there_is_refused() {
    let host = Host::new();
    let error = host.controller().unwrap().namespace(2).unwrap_err().to_string();
    assert!(error.contains("namespace 2") && error.contains("nvme list-ns"), "{error}");
}

#[test]
fn a_controller_whose_registers_read_as_gone_is_cut_off_from_the_bus_before_memory_goes_back() {
    let host = Host::new();
    let (disk, mut queue) = host.queue();
    assert!(host.model.seen().bus_master);
    host.model.inject([Fault::Blindness]);
    assert_eq!(host.run(&mut queue, read(0)), Err(DiskError::Gone));
    assert!(!host.model.seen().bus_master);
    drop((queue, disk));
    assert_eq!(host.domain.mappings().len(), 1);
}

#[test]
fn memory_of_a_controller_that_may_still_reach_it_is_never_used_again() {
    for (fault, kept) in [(Fault::Blindness, true), (Fault::Removal, false)] {
        let host = Host::new();
        let (disk, mut queue) = host.queue();
        host.model.set_defects(Defects { keeps_bus_master: true, ..Defects::default() });
        host.model.inject([fault]);
        assert_eq!(host.run(&mut queue, read(0)), Err(DiskError::Gone));
        drop((queue, disk));
        assert_eq!(host.domain.mappings().len() > 1, kept, "{fault:?}");
        let told = host.troubles();
        assert_eq!(
            told.iter().any(
                |kind| matches!(kind, TroubleKind::NotShutDown { why } if why.contains("command register"))
            ),
            kept,
            "{told:?}"
        );
    }
}

#[test]
fn all_that_fails_at_the_end_is_told_and_the_rest_is_done() {
    let host = Host::new();
    let controller = host.controller().unwrap();
    host.model.set_defects(Defects { never_shuts_down: true, keeps_bus_master: true, ..Defects::default() });
    let error = controller.shut_down().unwrap_err().to_string();
    assert!(error.contains("did not shut down") && error.contains("command register"), "{error}");
    // It was stopped for all that, so that its memory is free again.
    drop(controller);
    assert_eq!((host.domain.mappings().len(), host.troubles()), (1, Vec::new()));
}

#[test]
fn a_controller_that_is_shut_down_under_its_users_fails_what_is_under_way() {
    let host = Host::new();
    let controller = host.controller().unwrap();
    let disk = Disk::new("nvme", Box::new(controller.namespace(1).unwrap()));
    let mut queue = disk.prepare_queue(4).unwrap().start().unwrap();
    host.model.inject([Fault::Silence]);
    host.submit(&mut queue, 0, write(0), 0, 4096);
    queue.poll(&mut Vec::new()).unwrap();
    controller.shut_down().unwrap();
    assert_eq!(results(&mut queue, 1), [(0, Err(DiskError::Gone))]);
    assert_eq!((host.model.seen().shutdowns, host.model.seen().bus_master), (1, false));
    controller.shut_down().unwrap();
}

#[test]
fn a_controller_that_was_given_up_does_not_end_well() {
    let host = Host::new();
    let controller = host.controller().unwrap();
    let disk = Disk::new("nvme", Box::new(controller.namespace(1).unwrap()));
    let mut queue = disk.prepare_queue(4).unwrap().start().unwrap();
    host.model.inject([Fault::Removal]);
    assert_eq!(host.run(&mut queue, read(0)), Err(DiskError::Gone));
    drop((queue, disk));
    let error = controller.shut_down().unwrap_err().to_string();
    assert!(error.contains("0000:aa:00.0") && error.contains("gone"), "{error}");
}

#[test]
fn a_removal_is_heard_without_a_queue_and_the_cache_is_written_out() {
    let host = Host::new();
    let controller = host.controller().unwrap();
    controller.heed_removal();
    assert_eq!(host.troubles(), []);
    host.model.ask_back();
    controller.heed_removal();
    assert!(matches!(host.troubles()[..], [TroubleKind::Lost { .. }]));
    assert_eq!(host.model.seen().shutdowns, 1);
    controller.shut_down().unwrap();
}

#[test]
fn fewer_queues_than_wanted_are_granted_and_said() {
    let host = Host::new();
    host.model.set_defects(Defects { grants: 2, ..Defects::default() });
    assert_eq!(host.controller().unwrap().queues(), 2);
}

#[test]
fn half_of_a_queue_pair_that_cannot_be_deleted_is_got_rid_of_by_a_reset() {
    let host = Host::new();
    let controller = host.controller().unwrap();
    let disk = Disk::new("nvme", Box::new(controller.namespace(1).unwrap()));
    // Create a submission queue, and delete a completion queue.
    host.model.set_defects(Defects { refuses: &[1, 4], ..Defects::default() });
    let error = disk.prepare_queue(4).err().unwrap().to_string();
    assert!(error.contains("create a submission queue"), "{error}");
    assert_eq!(host.model.seen().enabled, 2);
    host.model.set_defects(Defects::default());
    let mut queue = disk.prepare_queue(4).unwrap().start().unwrap();
    assert_eq!(host.run(&mut queue, write(0)), Ok(()));
}

#[test]
fn a_passing_error_is_not_asked_for_again_at_once() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    host.model.inject([Fault::Status(0x082), Fault::Status(0x082)]);
    let begin = Instant::now();
    assert_eq!(host.run(&mut queue, read(8)), Ok(()));
    // Twice a tick, of which the time a request has is eight.
    assert!(begin.elapsed() >= Duration::from_millis(10), "{:?}", begin.elapsed());
}

#[test]
fn access_denied_is_no_disk_that_is_read_only() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    host.model.inject([Fault::Status(0x286)]);
    assert_eq!(host.run(&mut queue, read(8)), Err(DiskError::Other(libc::EACCES)));
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        2 => (0u16..0x800).prop_map(Fault::Status),
        1 => Just(Fault::Silence),
        1 => Just(Fault::Deafness),
        3 => any::<[u8; 16]>().prop_map(Fault::Garbage),
        2 => (any::<[u8; 8]>(), 0u8..20, any::<u16>()).prop_map(|(head, id, status)| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&head);
            bytes[12] = id;
            bytes[14..].copy_from_slice(&status.to_le_bytes());
            Fault::Garbage(bytes)
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_controller_answers_every_request_ends_once(faults in prop::collection::vec(fault(), 0..24)) {
        let host = Host::new();
        let (disk, mut queue) = host.queue();
        host.model.inject(faults);
        for tag in 0..16 {
            let operation = if tag % 2 == 0 { write(tag * 64) } else { read(tag * 64) };
            host.submit(&mut queue, tag, operation, tag * 0x10000 + tag % 3, 0x8000);
        }
        let mut tags: Vec<u64> = results(&mut queue, 16).into_iter().map(|(tag, _)| tag).collect();
        tags.sort_unstable();
        prop_assert_eq!(tags, (0..16).collect::<Vec<_>>());
        drop((queue, disk));
        prop_assert_eq!(host.domain.mappings().len(), 1);
        prop_assert!(host.iommu.refused().is_empty());
    }

    #[test]
    fn any_identify_data_is_refused_or_used_without_harm(
        controller in prop::collection::vec(any::<u8>(), 0..4096), namespace in prop::collection::vec(any::<u8>(), 0..4096)
    ) {
        let host = Host::new();
        host.model.set_identify(None, &controller);
        host.model.set_identify(Some(1), &namespace);
        let Ok(controller) = host.controller() else { return Ok(()) };
        let Ok(namespace) = controller.namespace(1) else { return Ok(()) };
        let disk = Disk::new("nvme", Box::new(namespace));
        let mut queue = disk.prepare_queue(16).unwrap().start().unwrap();
        if queue.submit(Request { tag: 0, operation: read(0), buffers: host.buffers(0, 4096) }).is_ok() {
            results(&mut queue, 1);
        }
    }
}

#[test]
fn what_is_cancelled_ends_at_once_wherever_it_is_and_is_not_asked_for_again() {
    let host = Host::new();
    let options = NvmeOptions { io_timeout: Duration::from_secs(60), ..host.options() };
    let controller = NvmeController::over(host.model.function(), &host.domain, options).unwrap();
    let disk = Disk::new("nvme", Box::new(controller.namespace(1).unwrap()));
    let mut queue = disk.prepare_queue(16).unwrap().start().unwrap();
    // Two that the controller keeps, and one that it fails for the moment.
    host.model.inject([Fault::Silence, Fault::Silence, Fault::Status(0x281)]);
    (0..3).for_each(|tag| host.submit(&mut queue, tag, write(tag * 8), 0, 4096));
    queue.poll(&mut Vec::new()).unwrap();
    // And some that it has not been told of.
    (3..8).for_each(|tag| host.submit(&mut queue, tag, write(tag * 8), 0, 4096));
    let begin = Instant::now();
    queue.cancel().unwrap();
    let mut ended = results(&mut queue, 8);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    ended.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(ended, (0..8).map(|tag| (tag, Err(DiskError::Cancelled))).collect::<Vec<_>>());
    assert_eq!((host.model.seen().commands, host.model.seen().aborts), (3, 2));
    host.map.ram().write(Gpa(0x3000), &[0x77; 4096]).unwrap();
    for at in 0..40 {
        assert_eq!(host.run(&mut queue, write(at * 8)), Ok(()));
    }
    assert_eq!((host.model.seen().commands, host.troubles()), (43, vec![]));
    assert!(host.model.contents(1)[..40 * 4096].iter().all(|byte| *byte == 0x77));
}

#[test]
fn what_a_controller_does_not_abort_ends_with_its_reset_and_leaves_the_queue_in_order() {
    let host = Host::new();
    let (_disk, mut queue) = host.queue();
    host.model.inject([Fault::Deafness, Fault::Silence]);
    (0..2).for_each(|tag| host.submit(&mut queue, tag, write(tag * 8), 0, 4096));
    queue.poll(&mut Vec::new()).unwrap();
    queue.cancel().unwrap();
    assert!(results(&mut queue, 2).iter().all(|(_, result)| *result == Err(DiskError::Cancelled)));
    assert_eq!(host.model.seen().commands, 2);
    assert_eq!(host.run(&mut queue, write(8)), Ok(()));
}

#[test]
fn a_long_request_of_which_a_part_waits_ends_whole_when_it_is_cancelled() {
    let host = Host::new();
    let options = NvmeOptions { io_timeout: Duration::from_secs(60), ..host.options() };
    let controller = NvmeController::over(host.model.function(), &host.domain, options).unwrap();
    let disk = Disk::new("nvme", Box::new(controller.namespace(1).unwrap()));
    let mut queue = disk.prepare_queue(4).unwrap().start().unwrap();
    // Each must be copied in pieces, for which there is little room.
    host.model.inject([Fault::Silence; 64]);
    for tag in 0..4 {
        let mut buffers = Buffers::new(host.map.ram());
        buffers.push(Gpa(0x10_0001), 512 << 10).unwrap();
        queue.submit(Request { tag, operation: read(0), buffers }).unwrap();
    }
    queue.poll(&mut Vec::new()).unwrap();
    let begun = host.model.seen().commands;
    queue.cancel().unwrap();
    let ended = results(&mut queue, 4);
    assert!(ended.iter().all(|(_, result)| *result == Err(DiskError::Cancelled)), "{ended:?}");
    assert_eq!((host.model.seen().commands, queue.under_way()), (begun, 0));
    assert!(begun > 0 && begun < 64);
}
