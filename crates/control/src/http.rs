//! As much HTTP/1.1 as the control socket speaks: requests with small bodies, answers with a known length.
//!
//! A client that may connect can still be faulty, so everything that is read has a limit, and parsing is a function of
//! bytes alone.

use std::io::Write;

/// Bytes of a request's head at most.
pub const MAX_HEAD: usize = 8 << 10;
/// Header lines of a message at most.
pub const MAX_HEADERS: usize = 32;
/// Bytes of a request's body at most.
pub const MAX_BODY: usize = 64 << 10;

/// What a request wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET: ask for something.
    Get,
    /// Do.
    Post,
    /// Anything else; nothing answers to it.
    Other,
}

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it wants done.
    pub method: Method,
    /// To what, without the query: `/v1/dma`.
    pub path: String,
    /// The pieces of its query, `key=value` or `key`, as they came.
    pub query: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
    /// Whether the connection stays open for another one.
    pub keep_alive: bool,
}

/// How far the bytes of a request go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// They are the beginning of one.
    Partial,
    /// They are one, and perhaps more.
    Whole {
        /// The request.
        request: Request,
        /// How many of the bytes it took; what follows belongs to the next one.
        used: usize,
    },
}

/// Bytes that will never be a request that is answered. The connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// Not HTTP.
    #[error(
        "this is not an HTTP/1.1 request ({0}). Speak HTTP/1.1 to this socket: curl --unix-socket PATH http://vm/v1"
    )]
    Syntax(httparse::Error),
    /// The head is larger than [`MAX_HEAD`].
    #[error("the request's head is larger than {MAX_HEAD} bytes. Send fewer or shorter headers")]
    LongHead,
    /// The body is larger than [`MAX_BODY`].
    #[error("the request's body is larger than {MAX_BODY} bytes. No request here needs that much")]
    LongBody,
    /// A length that is not a number, or two different ones.
    #[error(
        "the request does not say clearly how long its body is. Send one Content-Length, in decimal digits"
    )]
    Length,
    /// A body of unknown length.
    #[error("the request has a Transfer-Encoding, which this socket does not support. Send a Content-Length")]
    Encoding,
    /// The target is not a plain path.
    #[error("the request's target is not a path of plain ASCII that begins with /, such as /v1/dma")]
    Target,
}

impl Bad {
    /// The status that says so.
    pub fn status(self) -> u16 {
        match self {
            Bad::Syntax(_) | Bad::Length | Bad::Target => 400,
            Bad::LongHead => 431,
            Bad::LongBody => 413,
            Bad::Encoding => 501,
        }
    }
}

/// Reads a request from the beginning of `bytes`.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Bad> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let used = match head.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(Parsed::Partial),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(Bad::LongHead),
        Err(wrong) => return Err(Bad::Syntax(wrong)),
    };
    if headers_named(head.headers, "transfer-encoding").next().is_some() {
        return Err(Bad::Encoding);
    }
    let length = content_length(head.headers)?.unwrap_or(0);
    if length > MAX_BODY {
        return Err(Bad::LongBody);
    }
    let Some(body) = bytes.get(used..used + length) else { return Ok(Parsed::Partial) };
    let method = match head.method {
        Some("GET") => Method::Get,
        Some("POST") => Method::Post,
        _ => Method::Other,
    };
    let target = head.path.filter(|path| path.starts_with('/') && path.is_ascii()).ok_or(Bad::Target)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter(|piece| !piece.is_empty()).map(|piece| {
        let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
        (key.to_owned(), value.to_owned())
    });
    let says = |word: &str| {
        headers_named(head.headers, "connection")
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    };
    let keep_alive = if head.version == Some(1) { !says("close") } else { says("keep-alive") };
    let request =
        Request { method, path: path.to_owned(), query: query.collect(), body: body.to_vec(), keep_alive };
    Ok(Parsed::Whole { request, used: used + length })
}

/// The values of all headers of this name (in lower case).
fn headers_named<'a>(headers: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// The length of the body as the headers say it, if they do.
fn content_length(headers: &[httparse::Header<'_>]) -> Result<Option<usize>, Bad> {
    let mut lengths = headers_named(headers, "content-length");
    let Some(first) = lengths.next() else { return Ok(None) };
    if lengths.any(|other| other != first) || first.is_empty() || !first.iter().all(u8::is_ascii_digit) {
        return Err(Bad::Length);
    }
    // Digits are text; what does not fit is too long in any case.
    let text = std::str::from_utf8(first).map_err(|_| Bad::Length)?;
    Ok(Some(text.parse().unwrap_or(usize::MAX)))
}

/// The bytes of an answer with this body, which is JSON.
pub(crate) fn answer(status: u16, allow: Option<&str>, body: &[u8], keep_alive: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 160);
    let reason = reason(status);
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let allow = allow.map_or(String::new(), |methods| format!("Allow: {methods}\r\n"));
    write!(
        bytes,
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: {connection}\r\n{allow}\r\n",
        body.len()
    )
    .expect("a Vec takes all bytes");
    bytes.extend_from_slice(body);
    bytes
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

/// An answer's head: its status, the length of its body, and how many bytes the head took. `None` while it is
/// not there in whole.
pub(crate) fn parse_answer(bytes: &[u8]) -> Result<Option<(u16, usize, usize)>, Bad> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(bytes).map_err(Bad::Syntax)? {
        httparse::Status::Complete(used) => {
            let length = content_length(head.headers)?.ok_or(Bad::Length)?;
            Ok(Some((head.code.unwrap_or(0), length, used)))
        }
        httparse::Status::Partial if bytes.len() < MAX_HEAD => Ok(None),
        httparse::Status::Partial => Err(Bad::LongHead),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(text: &str) -> (Request, usize) {
        match parse(text.as_bytes()) {
            Ok(Parsed::Whole { request, used }) => (request, used),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_read_with_its_query_and_what_follows_is_left() {
        let text = "GET /v1/events?after=7&wait=30&x HTTP/1.1\r\nHost: vm\r\n\r\n";
        let (request, used) = whole(&format!("{text}GET /"));
        assert_eq!((request.method, request.path.as_str(), used), (Method::Get, "/v1/events", text.len()));
        let query: Vec<_> = request.query.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(query, [("after", "7"), ("wait", "30"), ("x", "")]);
        assert!(request.keep_alive);
    }

    #[test]
    fn a_body_is_waited_for() {
        let text = "POST /v1/stop HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
        assert_eq!(parse(&text.as_bytes()[..text.len() - 1]), Ok(Parsed::Partial));
        let (request, used) = whole(text);
        assert_eq!((request.body.as_slice(), used, request.keep_alive), (&b"{}"[..], text.len(), false));
    }

    #[test]
    fn what_is_too_long_unclear_or_no_http_is_refused_with_its_status() {
        let status = |text: &str| parse(text.as_bytes()).map_err(Bad::status).unwrap_err();
        assert_eq!(status("\x16\x03\x01\x02\x00"), 400);
        assert_eq!(status("GET http://vm/ HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MAX_HEAD))), 431);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1))), 431);
        let post = |headers: &str| status(&format!("POST / HTTP/1.1\r\n{headers}\r\n\r\n"));
        assert_eq!(post("Content-Length: 65537"), 413);
        assert_eq!(post("Content-Length: 99999999999999999999999"), 413);
        assert_eq!(post("Content-Length: +1"), 400);
        assert_eq!(post("Content-Length: 1\r\nContent-Length: 2"), 400);
        assert_eq!(post("Content-Length: 1\r\nTransfer-Encoding: chunked"), 501);
    }

    #[test]
    fn an_answer_is_read_back() {
        let bytes = answer(405, Some("GET"), b"{}", true);
        let (status, length, used) = parse_answer(&bytes).unwrap().unwrap();
        assert_eq!((status, length, &bytes[used..]), (405, 2, &b"{}"[..]));
        assert!(String::from_utf8(bytes.clone()).unwrap().contains("\r\nAllow: GET\r\n"));
        assert_eq!(parse_answer(&bytes[..20]).unwrap(), None);
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_what_was_read(text in "(GET|POST) /[a-z?=&]{0,9} HTTP/1.[01]\r\n(Content-Length: [0-9]\r\n)?\r\n[a-z]{0,12}") {
            if let Ok(Parsed::Whole { request, used }) = parse(text.as_bytes()) {
                prop_assert_eq!(parse(&text.as_bytes()[..used]), Ok(Parsed::Whole { request, used }));
                for len in 0..used {
                    prop_assert_eq!(parse(&text.as_bytes()[..len]), Ok(Parsed::Partial));
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (_, _) = (parse(&bytes), parse_answer(&bytes));
        }
    }
}
