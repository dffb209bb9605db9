//! Which request gets which answer.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use memory::{MemoryMap, Ram};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{Done, Events, Failed, State, Stats};
use crate::http::{Method, Request};
use crate::source::{Refused, Source};
use crate::unix::MAX_FDS;
use crate::view;

/// Seconds that a request may wait for events at most.
pub const LONGEST_WAIT: u64 = 60;
/// How often somebody who waits is asked whether he is still there.
const LOOK_UP: Duration = Duration::from_millis(500);

/// An answer: status, body, and file descriptors that go with it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u16,
    pub allow: Option<&'static str>,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Reply {
    /// An answer in JSON, with a line feed behind it for those who read it on a terminal.
    fn json(status: u16, body: &impl Serialize) -> Reply {
        let mut text = serde_json::to_vec(body).expect("types of the API are JSON by construction");
        text.push(b'\n');
        Reply { status, allow: None, body: text, fds: Vec::new() }
    }

    /// An answer that says what is wrong.
    pub fn error(status: u16, error: impl Into<String>) -> Reply {
        Reply::json(status, &Failed { error: error.into() })
    }
}

/// The paths there are, with the one method of each.
const PATHS: [(&str, Method); 14] = [
    ("/v1", Method::Get),
    ("/v1/dma", Method::Get),
    ("/v1/memory", Method::Get),
    ("/v1/memory/fds", Method::Get),
    ("/v1/events", Method::Get),
    ("/v1/stats", Method::Get),
    ("/v1/pause", Method::Post),
    ("/v1/resume", Method::Post),
    ("/v1/insert", Method::Post),
    ("/v1/eject", Method::Post),
    ("/v1/plug", Method::Post),
    ("/v1/unplug", Method::Post),
    ("/v1/power", Method::Post),
    ("/v1/stop", Method::Post),
];

/// Whether the answer needs nothing of the VM but its state and its journal, so that it is given to the very end.
pub(crate) fn outlives_the_vm(request: &Request) -> bool {
    matches!(request.path.as_str(), "/v1" | "/v1/events")
}

/// Answers a request. `None` when nobody wants the answer any more: `is_gone` says so while it waits.
pub(crate) fn answer(source: &dyn Source, request: &Request, is_gone: impl Fn() -> bool) -> Option<Reply> {
    let path = request.path.as_str();
    let Some((_, method)) = PATHS.into_iter().find(|(known, _)| *known == path) else {
        let known = PATHS.map(|(path, _)| path).join(", ");
        return Some(Reply::error(404, format!("there is no {path:?} here. There are: {known}")));
    };
    if method != request.method {
        let (allow, what) =
            if method == Method::Get { ("GET", "only be read") } else { ("POST", "only be done") };
        let reply = Reply::error(405, format!("{path} can {what}. Use the method {allow}"));
        return Some(Reply { allow: Some(allow), ..reply });
    }
    let has_a_body = matches!(path, "/v1/insert" | "/v1/eject" | "/v1/plug" | "/v1/unplug");
    if !has_a_body && !matches!(request.body.trim_ascii(), b"" | b"{}") {
        return Some(Reply::error(400, format!("{path} takes no body. Send none, or {{}}")));
    }
    let query = match Query::of(request) {
        Ok(query) => query,
        Err(wrong) => return Some(Reply::error(400, wrong)),
    };
    Some(match path {
        "/v1" => Reply::json(200, &source.info()),
        "/v1/dma" => with_map(source, |map| {
            let (domains, faults) = (source.domains(), source.journal().faults());
            let dma = map.look(|contents, _| view::dma(&domains, contents, &faults));
            Reply::json(200, &dma)
        }),
        "/v1/memory" => with_map(source, |map| Reply::json(200, &view::memory(map))),
        "/v1/memory/fds" => with_map(source, fds),
        "/v1/events" => Reply::json(200, &events(source, query, is_gone)?),
        "/v1/stats" => {
            let (disks, drives) = (view::disks(&source.disks()), source.drives());
            Reply::json(200, &Stats { disks, drives })
        }
        "/v1/insert" => with_body(request, DISC, |insert| source.insert(&insert)),
        "/v1/eject" => with_body(request, DRIVE, |eject| source.eject(&eject)),
        "/v1/plug" => with_body(request, DISK, |plug| source.plug(&plug)),
        "/v1/unplug" => with_body(request, NAME, |unplug| source.unplug(&unplug)),
        "/v1/pause" => done(200, source.pause()),
        "/v1/resume" => done(200, source.resume()),
        "/v1/power" => done(202, source.press_power_button()),
        _ => done(202, source.stop()),
    })
}

/// What bodies look like, for those who sent another.
const DISC: &str = r#"{"drive":"cd0","disc":"/a/path","force":false}"#;
const DRIVE: &str = r#"{"drive":"cd0","force":false}"#;
const DISK: &str = r#"{"disk":"path=/dev/sdb,serial=A"}"#;
const NAME: &str = r#"{"disk":"/dev/sdb"}"#;

/// Changes something as the body says, which looks `like` this.
fn with_body<T: DeserializeOwned, A: Serialize>(
    request: &Request,
    like: &str,
    change: impl FnOnce(T) -> Result<A, Refused>,
) -> Reply {
    match serde_json::from_slice(&request.body).map(change) {
        Ok(Ok(answer)) => Reply::json(200, &answer),
        Ok(Err(Refused(why))) => Reply::error(409, why),
        Err(wrong) => Reply::error(
            400,
            format!("{} cannot take this body: {wrong}. Send JSON like {like}", request.path),
        ),
    }
}

fn done(status: u16, result: Result<State, Refused>) -> Reply {
    match result {
        Ok(state) => Reply::json(status, &Done { state }),
        Err(Refused(why)) => Reply::error(409, why),
    }
}

fn with_map(source: &dyn Source, answer: impl FnOnce(&MemoryMap) -> Reply) -> Reply {
    match source.memory() {
        Some(map) => answer(&map),
        None => Reply::error(409, "the VM is ending and has no memory now"),
    }
}

/// The memory map and the files of its segments, both of the same moment.
fn fds(map: &MemoryMap) -> Reply {
    let (memory, ram) = view::memory_and_ram(map);
    match files(&ram) {
        Ok(fds) => Reply { fds, ..Reply::json(200, &memory) },
        Err(cause) => Reply::error(500, format!("cannot hand out the segments' files: {cause}.")),
    }
}

fn files(ram: &Ram) -> std::io::Result<Vec<OwnedFd>> {
    if ram.segments().len() > MAX_FDS {
        let count = ram.segments().len();
        return Err(std::io::Error::other(format!(
            "the VM has {count} segments, and a message carries {MAX_FDS}"
        )));
    }
    ram.segments().iter().map(|segment| Ok(segment.file().try_clone()?.into())).collect()
}

fn events(source: &dyn Source, query: Query, is_gone: impl Fn() -> bool) -> Option<Events> {
    let (journal, until) = (source.journal(), Instant::now() + query.wait);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let events = journal.after(query.after, left.min(LOOK_UP));
        if !events.events.is_empty() || events.ended || left.is_zero() {
            return Some(events);
        }
        if is_gone() {
            return None;
        }
    }
}

/// What `/v1/events` is asked.
#[derive(Clone, Copy)]
struct Query {
    after: u64,
    wait: Duration,
}

impl Query {
    fn of(request: &Request) -> Result<Query, String> {
        let known = if request.path == "/v1/events" { "after, wait" } else { "none" };
        let mut query = Query { after: 0, wait: Duration::ZERO };
        for (key, value) in &request.query {
            let number = || {
                let number =
                    value.parse::<u64>().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit()));
                number.ok_or_else(|| format!("{key}={value:?} is not a number. Write decimal digits"))
            };
            match (known, key.as_str()) {
                ("after, wait", "after") => query.after = number()?,
                ("after, wait", "wait") => query.wait = Duration::from_secs(number()?.min(LONGEST_WAIT)),
                _ => {
                    return Err(format!("{} knows no {key:?} in its query. It knows: {known}", request.path));
                }
            }
        }
        Ok(query)
    }
}
