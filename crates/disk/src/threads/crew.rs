//! The threads of one disk.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::mailbox::{Done, Mailbox};
use super::{Moved, Work};
use crate::request::{DiskError, Request};

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
    /// The crew is going home.
    over: bool,
}

/// Threads that carry out requests, the first come first. They end with the value; queues hold it while they
/// have anything under way.
pub(crate) struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// So many threads; their names begin with `name`.
    pub(crate) fn new(name: &str, threads: usize, work: Arc<dyn Work>) -> io::Result<Crew> {
        let shared = Arc::new(Shared { work, jobs: Mutex::default(), news: Condvar::new() });
        let mut crew = Crew { shared, threads: Vec::new() };
        for number in 0..threads {
            let shared = crew.shared.clone();
            let thread = std::thread::Builder::new().name(format!("{name}-{number}"));
            crew.threads.push(thread.spawn(move || shared.serve())?);
        }
        Ok(crew)
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
            let jobs = self.news.wait_while(self.lock(), |jobs| jobs.waiting.is_empty() && !jobs.over);
            let mut jobs = jobs.unwrap_or_else(PoisonError::into_inner);
            let Some(Job { request, mailbox }) = jobs.waiting.pop_front() else { return };
            drop(jobs);
            let mut tally = Moved::default();
            let result = self.work.execute(request.operation, &request.buffers, &mut tally);
            mailbox.put(Done { request, result, tally });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.news.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on its own.
            thread.join().unwrap_or_default();
        }
    }
}
