//! What becomes of requests that the host fails: over a back end that fails when it is told to.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use disk::{
    Access, Answer, Backend, Disk, DiskError, DiskQueue, Durability, Engine, ErrorPolicy, Event, Failure,
    Geometry, OnError, Operation, Patience, QueueCounters, QueueError, Request, Sectors, WriteCache,
};
use memory::{Buffers, Gpa, GpaRange, Ram};
use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The disk behind the disk.
#[derive(Default)]
struct Behind {
    queues: Mutex<Vec<Arc<Inside>>>,
    /// Everything ends at once, like this.
    at_once: Mutex<Option<Result<(), DiskError>>>,
    deceptive: AtomicBool,
}

/// What is inside one of its queues.
#[derive(Default)]
struct Inside {
    /// Requests under way.
    requests: Mutex<Vec<Request>>,
    /// Those that have ended and are not told yet.
    ended: Mutex<Vec<(Request, Result<(), DiskError>)>>,
}

impl Inside {
    fn end(&self, index: usize, result: Result<(), DiskError>) {
        let mut requests = self.requests.lock().unwrap();
        if !requests.is_empty() {
            let index = index % requests.len();
            self.ended.lock().unwrap().push((requests.remove(index), result));
        }
    }

    fn end_all(&self, result: Result<(), DiskError>) {
        while !self.requests.lock().unwrap().is_empty() {
            self.end(0, result);
        }
    }

    fn under_way(&self) -> usize {
        self.requests.lock().unwrap().len() + self.ended.lock().unwrap().len()
    }
}

impl Behind {
    fn everything_ends(&self, result: Result<(), DiskError>) {
        *self.at_once.lock().unwrap() = Some(result);
    }
}

struct Fake(Geometry, Arc<Behind>);

struct FakeEngine {
    behind: Arc<Behind>,
    inside: Arc<Inside>,
    watched: Option<EventFd>,
}

impl Backend for Fake {
    fn geometry(&self) -> &Geometry {
        &self.0
    }

    fn flush_can_be_repeated(&self) -> bool {
        !self.1.deceptive.load(Ordering::SeqCst)
    }

    fn engine(&self, _: u16, _: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        let inside = Arc::<Inside>::default();
        self.1.queues.lock().unwrap().push(inside.clone());
        Ok(Box::new(FakeEngine { behind: self.1.clone(), inside, watched: None }))
    }
}

impl Engine for FakeEngine {
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, eventfd: &EventFd) -> io::Result<()> {
        self.watched = Some(eventfd.try_clone()?);
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        self.inside.requests.lock().unwrap().push(request);
    }

    fn cancel(&mut self) -> io::Result<()> {
        self.inside.end_all(Err(DiskError::Cancelled));
        Ok(())
    }

    fn errno(&self, _: u64) -> Option<i32> {
        Some(libc::ENOSPC)
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        loop {
            if let Some(result) = *self.behind.at_once.lock().unwrap() {
                self.inside.end_all(result);
            }
            for (Request { tag, operation, buffers }, result) in self.inside.ended.lock().unwrap().drain(..) {
                events.push(Event::Done { tag, operation, result, buffers });
            }
            if self.watched.as_ref().is_some_and(|eventfd| eventfd.read().is_ok()) {
                events.push(Event::Wake);
            }
            if patience == Patience::Poll || events.len() > before {
                return Ok(());
            }
            sleep(Duration::from_micros(50));
        }
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.inside.requests.lock().unwrap().clear();
        self.inside.ended.lock().unwrap().clear();
    }
}

struct Bench {
    disk: Disk,
    behind: Arc<Behind>,
    told: Arc<Mutex<Vec<Failure>>>,
    ram: Arc<Ram>,
    kick: EventFd,
}

const DEPTH: u16 = 8;

impl Bench {
    fn new(policy: impl Into<ErrorPolicy>) -> Bench {
        let geometry = Geometry {
            capacity: Sectors(1 << 20),
            logical_block: 512,
            physical_block: 512,
            alignment_offset: 0,
            minimum_io: 512,
            optimal_io: 0,
            access: Access::ReadWrite,
            write_cache: WriteCache::WriteBack,
            fua: false,
            rotational: true,
            discard: None,
            write_zeroes: None,
            model: None,
            serial: None,
        };
        let behind = Arc::<Behind>::default();
        let disk = Disk::new("fake", Box::new(Fake(geometry, behind.clone())));
        let told = Arc::<Mutex<Vec<Failure>>>::default();
        let to = told.clone();
        disk.answer_failures(policy.into(), Box::new(move |failure| to.lock().unwrap().push(failure)));
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
        Bench { disk, behind, told, ram, kick: EventFd::new(EFD_NONBLOCK).unwrap() }
    }

    fn queue(&self) -> DiskQueue {
        let mut queue = self.disk.prepare_queue(DEPTH).unwrap().start().unwrap();
        queue.watch(&self.kick).unwrap();
        queue
    }

    fn request(&self, tag: u64, operation: Operation) -> Request {
        let mut buffers = Buffers::new(self.ram.clone());
        buffers.push(Gpa(tag % 16 * 4096), 4096).unwrap();
        Request { tag, operation, buffers }
    }

    fn told(&self) -> Vec<Failure> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    fn waiting(&self) -> u64 {
        self.disk.failures().waiting().map_or(0, |waiting| waiting.count)
    }
}

fn write(at: u64) -> Operation {
    Operation::Write { at: Sectors(at), durability: Durability::Cached }
}

fn read(at: u64) -> Operation {
    Operation::Read { at: Sectors(at) }
}

/// What has come back: tags with results.
fn poll(queue: &mut DiskQueue) -> Vec<(u64, Result<(), DiskError>)> {
    let mut events = Vec::new();
    queue.poll(&mut events).unwrap();
    let done = |event| if let Event::Done { tag, result, .. } = event { Some((tag, result)) } else { None };
    events.into_iter().filter_map(done).collect()
}

#[test]
fn a_write_without_space_waits_until_there_is_some_and_goes_well_then() {
    let bench = Bench::new(ErrorPolicy::default());
    let mut queue = bench.queue();
    bench.behind.everything_ends(Err(DiskError::NoSpace));
    queue.submit(bench.request(1, write(8))).unwrap();
    queue.submit(bench.request(2, write(16))).unwrap();
    assert_eq!(poll(&mut queue), []);
    let [failure] = &bench.told()[..] else { panic!("a pause is asked for once") };
    assert_eq!((failure.answer, failure.operation, failure.bytes), (Answer::Held, write(8), 4096));
    assert!(failure.to_string().contains("(No space left on device (os error 28))"), "{failure}");
    assert_eq!((bench.waiting(), queue.under_way()), (2, 2));
    // In vain, and it asks again, once.
    bench.disk.failures().retry();
    assert_eq!(poll(&mut queue), []);
    assert_eq!((bench.told().len(), bench.waiting()), (1, 2));
    bench.behind.everything_ends(Ok(()));
    bench.disk.failures().retry();
    assert_eq!(bench.waiting(), 0);
    assert_eq!(poll(&mut queue), [(1, Ok(())), (2, Ok(()))]);
    assert!(bench.disk.failures().settle(Instant::now()));
    assert_eq!((bench.told().len(), queue.under_way(), bench.disk.counters().errors), (0, 0, 0));
}

#[test]
fn a_queue_that_sleeps_is_woken_to_try_again() {
    let bench = Bench::new(OnError::Pause);
    bench.behind.everything_ends(Err(DiskError::Media));
    let mut outcome = (false, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut queue, mut events) = (bench.queue(), Vec::new());
            queue.submit(bench.request(1, read(8))).unwrap();
            while !events.iter().any(|event| matches!(event, Event::Done { tag: 1, result: Ok(()), .. })) {
                queue.wait(&mut events).unwrap();
            }
        });
        while bench.waiting() == 0 {
            sleep(Duration::from_micros(50));
        }
        bench.disk.failures().retry();
        // Nothing is asserted while the queue sleeps, which would be waited for.
        let settled = bench.disk.failures().settle(Instant::now() + Duration::from_secs(10));
        outcome = (settled, bench.waiting());
        bench.behind.everything_ends(Ok(()));
        bench.disk.failures().retry();
    });
    // Whoever waited for that sees that it has failed again.
    assert_eq!((outcome, bench.told().len()), ((true, 1), 2));
}

#[test]
fn what_is_held_ends_with_its_error_when_it_is_given_up_and_nothing_is_held_then() {
    let bench = Bench::new(OnError::Pause);
    let mut queue = bench.queue();
    bench.behind.everything_ends(Err(DiskError::Gone));
    queue.submit(bench.request(1, write(0))).unwrap();
    assert_eq!(poll(&mut queue), []);
    bench.disk.failures().give_up();
    assert!(!bench.disk.failures().settle(Instant::now()), "the queue has not heard it");
    queue.submit(bench.request(2, write(0))).unwrap();
    assert_eq!(poll(&mut queue), [(1, Err(DiskError::Gone)), (2, Err(DiskError::Gone))]);
    assert!(bench.disk.failures().settle(Instant::now()));
    bench.disk.failures().hold_again();
    queue.submit(bench.request(3, write(0))).unwrap();
    assert_eq!((poll(&mut queue), bench.waiting()), (vec![], 1));
    // A queue that ends takes along what it holds.
    drop(queue);
    assert_eq!((bench.waiting(), Arc::strong_count(&bench.ram)), (0, 1));
}

#[test]
fn ignored_failures_are_told_and_counted_and_a_read_fails_all_the_same() {
    let bench = Bench::new(OnError::Ignore);
    let mut queue = bench.queue();
    bench.behind.everything_ends(Err(DiskError::Media));
    for (tag, operation) in [(1, write(0)), (2, Operation::Flush), (3, read(0))] {
        queue.submit(bench.request(tag, operation)).unwrap();
    }
    assert_eq!(poll(&mut queue), [(1, Ok(())), (2, Ok(())), (3, Err(DiskError::Media))]);
    let counters = bench.disk.counters();
    assert_eq!((counters.ignored, counters.errors, counters.writes, counters.flushes), (2, 1, 1, 1));
    assert_eq!(bench.told()[0].answer, Answer::Ignored);
    bench.disk.failures().tell_rest();
    let rest = bench.told();
    assert_eq!((rest[0].answer, rest[0].more), (Answer::Reported, 1));
}

#[test]
fn nothing_is_held_that_could_not_be_tried_again_truthfully_or_at_all() {
    let bench = Bench::new(OnError::Pause);
    bench.behind.deceptive.store(true, Ordering::SeqCst);
    let mut queue = bench.queue();
    bench.behind.everything_ends(Err(DiskError::Media));
    queue.submit(bench.request(1, Operation::Flush)).unwrap();
    assert_eq!(poll(&mut queue), [(1, Err(DiskError::Media))], "the host has forgotten what it is for");
    let stable = Operation::Write { at: Sectors(0), durability: Durability::Stable };
    queue.submit(bench.request(1, stable)).unwrap();
    assert_eq!(poll(&mut queue), [(1, Err(DiskError::Media))], "its error may be that of a write before it");
    // Nobody could wake this one.
    let mut unwatched = bench.disk.prepare_queue(1).unwrap().start().unwrap();
    unwatched.submit(bench.request(1, write(0))).unwrap();
    assert_eq!(poll(&mut unwatched), [(1, Err(DiskError::Media))]);
    bench.behind.everything_ends(Err(DiskError::Unsupported));
    queue.submit(bench.request(2, write(0))).unwrap();
    assert_eq!(poll(&mut queue), [(2, Err(DiskError::Unsupported))]);
    assert_eq!(bench.waiting(), 0);
}

/// A step of a story.
#[derive(Clone, Copy, Debug)]
enum Step {
    Submit { queue: usize },
    End { queue: usize, index: usize, how: Result<(), DiskError> },
    Poll { queue: usize },
    Cancel { queue: usize },
    Replace { queue: usize },
    Retry,
    GiveUp,
    HoldAgain,
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        2 => Just(Ok(())),
        2 => Just(Err(DiskError::NoSpace)),
        2 => Just(Err(DiskError::Media)),
        1 => Just(Err(DiskError::Unsupported)),
    ];
    prop_oneof![
        4 => (0usize..2).prop_map(|queue| Step::Submit { queue }),
        6 => (0usize..2, 0usize..8, how).prop_map(|(queue, index, how)| Step::End { queue, index, how }),
        4 => (0usize..2).prop_map(|queue| Step::Poll { queue }),
        1 => (0usize..2).prop_map(|queue| Step::Cancel { queue }),
        1 => (0usize..2).prop_map(|queue| Step::Replace { queue }),
        2 => Just(Step::Retry),
        1 => Just(Step::GiveUp),
        1 => Just(Step::HoldAgain),
    ]
}

/// A queue, what is inside it, and the requests that have not come back.
struct Side {
    queue: DiskQueue,
    inside: Arc<Inside>,
    pending: BTreeSet<u64>,
}

impl Side {
    fn of(bench: &Bench) -> Side {
        let queue = bench.queue();
        let inside = bench.behind.queues.lock().unwrap().last().unwrap().clone();
        Side { queue, inside, pending: BTreeSet::new() }
    }

    fn poll(&mut self) {
        for (tag, _) in poll(&mut self.queue) {
            assert!(self.pending.remove(&tag), "request {tag} was answered twice, or never made");
        }
        assert_eq!(usize::from(self.queue.under_way()), self.pending.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_request_is_lost_or_answered_twice_whatever_fails_and_is_tried_again_or_given_up(
        on_error in prop::sample::select(vec![OnError::Report, OnError::Pause, OnError::Ignore]),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let bench = Bench::new(on_error);
        let mut sides = [(); 2].map(|()| Side::of(&bench));
        let (mut next, mut asked) = (0, 0);
        for step in steps {
            match step {
                Step::Submit { queue } => {
                    next += 1;
                    if sides[queue].queue.submit(bench.request(next, write(next % 64))).is_ok() {
                        sides[queue].pending.insert(next);
                    }
                }
                Step::End { queue, index, how } => sides[queue].inside.end(index, how),
                Step::Poll { queue } => sides[queue].poll(),
                Step::Cancel { queue } => sides[queue].queue.cancel().unwrap(),
                Step::Replace { queue } => sides[queue] = Side::of(&bench),
                Step::Retry => bench.disk.failures().retry(),
                Step::GiveUp => bench.disk.failures().give_up(),
                Step::HoldAgain => bench.disk.failures().hold_again(),
            }
            asked += bench.told().iter().filter(|failure| failure.answer == Answer::Held).count();
            if bench.waiting() == 0 {
                asked = 0;
            } else {
                prop_assert_eq!(asked, 1, "a pause is asked for once, and only while something waits");
            }
        }
        // All queues have followed the last call: what has not come back is inside, or waits.
        sides.iter_mut().for_each(Side::poll);
        let inside: usize = sides.iter().map(|side| side.inside.under_way()).sum();
        let pending: usize = sides.iter().map(|side| side.pending.len()).sum();
        prop_assert_eq!(pending as u64, inside as u64 + bench.waiting());
        bench.disk.failures().give_up();
        for side in &mut sides {
            side.inside.end_all(Ok(()));
            side.poll();
            prop_assert!(side.pending.is_empty(), "{:?} were lost", side.pending);
        }
        prop_assert!(bench.disk.failures().settle(Instant::now()));
        prop_assert_eq!((bench.waiting(), Arc::strong_count(&bench.ram)), (0, 1));
    }
}
