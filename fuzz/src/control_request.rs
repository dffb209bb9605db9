//! Requests to the control socket: each is read, waited for or refused, the same however its bytes arrive.

use control::http::{Bad, MAX_BODY, MAX_HEAD, Parsed, Request, parse};

/// Runs one input: what a client sends before it is done.
pub fn run(input: &[u8]) {
    let mut rest = input;
    loop {
        let at_once = parse(rest);
        // Every prefix is looked at, which is a lot of work for inputs that are long; those are sampled.
        assert_eq!(at_once, piecemeal(rest, rest.len() / 256 + 1), "it depends on how the bytes arrive");
        match at_once {
            Ok(Parsed::Whole { request, used }) => {
                assert!(used > 0 && used <= rest.len());
                check(&request);
                rest = &rest[used..];
            }
            Ok(Parsed::Partial) => {
                assert!(rest.len() < MAX_HEAD + MAX_BODY, "what waits is bounded");
                return;
            }
            Err(bad) => return assert!((400..600).contains(&bad.status()) && !bad.to_string().is_empty()),
        }
    }
}

/// What a connection makes of the bytes when they come in pieces: it looks whenever there are more.
fn piecemeal(bytes: &[u8], step: usize) -> Result<Parsed, Bad> {
    let ends = (0..bytes.len()).step_by(step);
    let early = ends.map(|end| parse(&bytes[..end])).find(|parsed| *parsed != Ok(Parsed::Partial));
    early.unwrap_or_else(|| parse(bytes))
}

fn check(request: &Request) {
    assert!(request.path.starts_with('/') && !request.path.contains('?') && request.path.is_ascii());
    assert!(request.body.len() <= MAX_BODY);
    assert!(request.query.iter().all(|(key, value)| !key.contains(['&', '=']) && !value.contains('&')));
}
