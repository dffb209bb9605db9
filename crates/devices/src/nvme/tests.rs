//! A controller over disks that do not answer.

use std::io;
use std::sync::atomic::AtomicUsize;

use disk::{
    Access, Backend, Disk, Engine, Event as DiskEvent, Geometry, Patience, QueueCounters, QueueError,
    Request, Sectors, WriteCache,
};
use memory::{Gpa, GpaRange};
use vmm_sys_util::eventfd::EventFd;

use super::driver::{Guest, io as command};
use super::spec::{self, register};
use super::*;

/// What disks are told to do, and what they have.
#[derive(Default)]
struct Orders {
    /// Requests stay under way while this is set.
    hold: AtomicBool,
    under_way: AtomicUsize,
}

struct Hanging(Geometry, Arc<Orders>);

impl Backend for Hanging {
    fn geometry(&self) -> &Geometry {
        &self.0
    }

    fn engine(&self, _: u16, _: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        Ok(Box::new(HangingEngine { orders: self.1.clone(), requests: Vec::new() }))
    }
}

struct HangingEngine {
    orders: Arc<Orders>,
    requests: Vec<Request>,
}

impl HangingEngine {
    fn hangs(&self) -> bool {
        self.orders.hold.load(Ordering::SeqCst)
    }
}

impl Engine for HangingEngine {
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        self.orders.under_way.fetch_add(1, Ordering::SeqCst);
        self.requests.push(request);
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<DiskEvent>) -> io::Result<()> {
        if !self.hangs() {
            for Request { tag, operation, buffers } in self.requests.drain(..) {
                self.orders.under_way.fetch_sub(1, Ordering::SeqCst);
                events.push(DiskEvent::Done { tag, operation, result: Ok(()), buffers });
            }
        }
        if patience == Patience::Wait && events.is_empty() {
            thread::sleep(Duration::from_micros(200));
            events.push(DiskEvent::Wake);
        }
        Ok(())
    }
}

/// As a queue that waits for its requests when it goes.
impl Drop for HangingEngine {
    fn drop(&mut self) {
        while self.hangs() && !self.requests.is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        self.orders.under_way.fetch_sub(self.requests.len(), Ordering::SeqCst);
    }
}

/// A guest that has a read under way in each of three queues, to each of two disks, and none of them answers.
fn hung() -> (Guest, Arc<Orders>) {
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
        rotational: false,
        discard: None,
        write_zeroes: None,
        model: None,
        serial: None,
    };
    let orders = Arc::<Orders>::default();
    let namespaces = (0..2).map(|number| {
        let backend = Hanging(geometry.clone(), orders.clone());
        Namespace::new(Arc::new(Disk::new(format!("hanging{number}"), Box::new(backend))))
    });
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 4 << 20).unwrap()]).unwrap());
    let options = NvmeOptions { queues: 3, ..NvmeOptions::new("disk0") };
    let guest = Guest::new(namespaces.collect(), &options, ram);
    let mut admin = guest.enable();
    orders.hold.store(true, Ordering::SeqCst);
    for id in 1..=3 {
        let mut queue = guest.create_pair(&mut admin, id, 8, None).unwrap();
        for nsid in [1, 2] {
            guest.submit(&mut queue, command(spec::io::READ, nsid, 0, 1, [Guest::DATA.0, 0]));
        }
    }
    until("all reads", || orders.under_way.load(Ordering::SeqCst) == 6);
    (guest, orders)
}

fn until(what: &str, ready: impl Fn() -> bool) {
    let begin = Instant::now();
    while !ready() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{what} did not come");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn disks_that_do_not_answer_hold_up_the_controllers_end_for_seconds_all_together() {
    let (guest, orders) = hung();
    let ram = Arc::downgrade(&guest.ram);
    let reports = Arc::clone(guest.told());
    let begin = Instant::now();
    drop(guest);
    let took = begin.elapsed();
    assert!((REMOVAL_LIMIT..REMOVAL_LIMIT * 3 / 2).contains(&took), "{took:?}");
    assert!(ram.upgrade().is_some(), "what is left behind has its share in RAM");
    let told = reports.lock().clone();
    assert!(told.len() == 1 && told[0].starts_with("nvme disk0: a disk has not ended in 5 s"), "{told:?}");
    orders.hold.store(false, Ordering::SeqCst);
    until("the end of what was left behind", || ram.upgrade().is_none());
    assert_eq!(orders.under_way.load(Ordering::SeqCst), 0);
}

#[test]
fn a_machine_whose_disk_does_not_answer_is_not_reset_and_says_why() {
    let (guest, orders) = hung();
    let begin = Instant::now();
    let why = guest.nvme.reset_within(Duration::from_millis(50)).unwrap_err().to_string();
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(why.starts_with("nvme disk0") && why.contains("a disk has not ended"), "{why}");
    orders.hold.store(false, Ordering::SeqCst);
    guest.nvme.reset_within(Duration::from_secs(10)).unwrap();
    assert_eq!((guest.get(register::CSTS), orders.under_way.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn a_disabled_controller_reads_as_ready_until_its_disks_have_let_go_and_no_vcpu_waits() {
    let (guest, orders) = hung();
    let begin = Instant::now();
    guest.set(register::CC, 0);
    for id in 1..=3 {
        guest.set(register::DOORBELLS + 8 * id, 3);
        assert_eq!(guest.get(register::CSTS) & 1, 1);
    }
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert_eq!(orders.under_way.load(Ordering::SeqCst), 6, "nothing more is taken");
    orders.hold.store(false, Ordering::SeqCst);
    guest.await_bits(register::CSTS, 1, 0);
    assert_eq!(orders.under_way.load(Ordering::SeqCst), 0);
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 8, None).unwrap();
    assert_eq!(guest.run(&mut queue, command(spec::io::READ, 1, 0, 1, [Guest::DATA.0, 0])).0, 0);
}
