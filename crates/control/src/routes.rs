//! Which request gets which answer.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::api::{After, ENDPOINTS, Events, Source};
use crate::endpoint::{Answer, Ask, Endpoint, Refused, Until};
use crate::http::{Method, Request};
use crate::reply::Reply;
use crate::unix::MAX_FDS;

/// How often somebody who waits is asked whether he is still there.
const LOOK_UP: Duration = Duration::from_millis(500);

fn endpoint(path: &str) -> Option<&'static Endpoint> {
    ENDPOINTS.iter().find(|endpoint| endpoint.path == path)
}

/// Whether this is answered to the very end.
pub(crate) fn outlives_the_vm(request: &Request) -> bool {
    endpoint(&request.path).is_some_and(|endpoint| endpoint.until == Until::End)
}

/// Answers a request. `None` when nobody wants the answer any more: `is_gone` says so while it waits.
pub(crate) fn answer(source: &dyn Source, request: &Request, is_gone: &dyn Fn() -> bool) -> Option<Reply> {
    let path = request.path.as_str();
    let Some(endpoint) = endpoint(path) else {
        let known: Vec<&str> = ENDPOINTS.iter().map(|endpoint| endpoint.path).collect();
        let known = known.join(", ");
        return Some(Reply::error(404, format!("there is no {path:?} here. There are: {known}")));
    };
    if endpoint.method != request.method {
        let (allow, what) =
            if endpoint.method == Method::Get { ("GET", "only be read") } else { ("POST", "only be done") };
        let reply = Reply::error(405, format!("{path} can {what}. Use the method {allow}"));
        return Some(Reply { allow: Some(allow), ..reply });
    }
    (endpoint.handler)(source, request, is_gone)
}

/// Answers with what `vm` says to a request that can be read.
pub(crate) fn answer_with<Q: Ask, A: Answer>(
    status: u16,
    request: &Request,
    vm: impl FnOnce(Q) -> Result<A, Refused>,
) -> Reply {
    match read(request).map(vm) {
        Ok(Ok(answer)) => {
            let (body, fds) = answer.into_parts();
            if fds.len() > MAX_FDS {
                let count = fds.len();
                let why = format!("the answer has {count} files, and a message carries {MAX_FDS}");
                return Reply::error(500, why);
            }
            Reply { fds, ..Reply::json(status, &body) }
        }
        Ok(Err(Refused(why))) => Reply::error(409, why),
        Err(wrong) => Reply::error(400, wrong),
    }
}

/// What a request says, or what is wrong with it.
fn read<Q: Ask>(request: &Request) -> Result<Q, String> {
    let path = &request.path;
    let example = serde_json::to_value(Q::example()).expect("types of the API are JSON by construction");
    let keys: Vec<&str> = example.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
    let (in_query, in_body): (&[&str], &[&str]) =
        if request.method == Method::Get { (&keys, &[]) } else { (&[], &keys) };
    let query = query(request, in_query)?;
    let body = request.body.trim_ascii();
    if !in_body.is_empty() {
        return serde_json::from_slice(body)
            .map_err(|wrong| format!("{path} cannot take this body: {wrong}. Send JSON like {example}"));
    }
    if !matches!(body, b"" | b"{}") {
        return Err(format!("{path} takes no body. Send none, or {{}}"));
    }
    serde_json::from_value(Value::Object(query)).map_err(|wrong| format!("{path} cannot take this: {wrong}"))
}

/// The query, in which every value is a number.
fn query(request: &Request, keys: &[&str]) -> Result<Map<String, Value>, String> {
    let number = |(key, value): &(String, String)| {
        if !keys.contains(&key.as_str()) {
            let known = if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
            return Err(format!("{} knows no {key:?} in its query. It knows: {known}", request.path));
        }
        let number = value.parse::<u64>().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit()));
        let number =
            number.ok_or_else(|| format!("{key}={value:?} is not a number. Write decimal digits"))?;
        Ok((key.clone(), Value::from(number)))
    };
    request.query.iter().map(number).collect()
}

/// Answers with events, and waits for the first if there is none yet.
pub(crate) fn events(source: &dyn Source, request: &Request, is_gone: &dyn Fn() -> bool) -> Option<Reply> {
    let asked: After = match read(request) {
        Ok(asked) => asked,
        Err(wrong) => return Some(Reply::error(400, wrong)),
    };
    let events = wait(source, asked, is_gone)?;
    Some(Reply::json(200, &events))
}

fn wait(source: &dyn Source, asked: After, is_gone: &dyn Fn() -> bool) -> Option<Events> {
    let (journal, until) = (source.journal(), Instant::now() + asked.wait());
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let events = journal.after(asked.after, left.min(LOOK_UP));
        if !events.events.is_empty() || events.ended || left.is_zero() {
            return Some(events);
        }
        if is_gone() {
            return None;
        }
    }
}
