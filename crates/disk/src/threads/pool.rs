//! The threads of one disk.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::mailbox::{Done, Mailbox};
use super::work::{Moved, Work};
use crate::contract::{DiskError, Request};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// A request, and where to put it when it is done.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// What the threads share.
struct Shared {
    work: Arc<dyn Work>,
    jobs: Mutex<Jobs>,
    news: Condvar,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// The threads are to end.
    over: bool,
}

/// Threads that carry out requests, the first come first. They end with the value; queues hold it while they
/// have anything under way.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// So many threads; their names begin with `name`.
    pub(crate) fn new(name: &str, threads: usize, work: Arc<dyn Work>) -> io::Result<Pool> {
        let shared = Arc::new(Shared { work, jobs: Mutex::default(), news: Condvar::new() });
        let mut pool = Pool { shared, threads: Vec::new() };
        for number in 0..threads {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new().name(format!("{name}-{number}"));
            pool.threads.push(thread.spawn(move || shared.serve())?);
        }
        Ok(pool)
    }

    pub(crate) fn work(&self) -> &Arc<dyn Work> {
        &self.shared.work
    }

    pub(crate) fn add(&self, job: Job) {
        self.shared.lock().waiting.push_back(job);
        self.shared.news.notify_one();
    }

    /// Ends what nobody has begun yet of a queue's requests.
    pub(crate) fn cancel(&self, mailbox: &Arc<Mailbox>) {
        let mut cancelled = Vec::new();
        let mut jobs = self.shared.lock();
        let (ours, others) = std::mem::take(&mut jobs.waiting)
            .into_iter()
            .partition::<VecDeque<Job>, _>(|job| Arc::ptr_eq(&job.mailbox, mailbox));
        jobs.waiting = others;
        cancelled.extend(ours);
        drop(jobs);
        for Job { request, mailbox } in cancelled {
            mailbox.put(Done { request, result: Err(DiskError::Cancelled), tally: Moved::default() });
        }
    }
}

impl Shared {
    fn serve(&self) {
        loop {
            let mut jobs = self.lock();
            self.news.wait_while(&mut jobs, |jobs| jobs.waiting.is_empty() && !jobs.over);
            let Some(Job { request, mailbox }) = jobs.waiting.pop_front() else { return };
            drop(jobs);
            let mut tally = Moved::default();
            let result = self.work.execute(request.operation, &request.buffers, &mut tally);
            mailbox.put(Done { request, result, tally });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.news.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on its own.
            thread.join().unwrap_or_default();
        }
    }
}
