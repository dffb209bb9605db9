//! Where a server is, and which of its disks is meant.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Port of the protocol, where none is given.
const PORT: u16 = 10809;
/// Bytes of the longest name that the protocol has ("Conventions").
const LONGEST_NAME: usize = 4096;
/// How long a server may take for a request, where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How a server is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NbdServer {
    /// By TCP: a name or address, and a port.
    Tcp(String, u16),
    /// By a socket in the file system.
    Unix(PathBuf),
}

/// The address of a disk that a server offers: `nbd://HOST:PORT/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`, as
/// the NBD project's URI specification has it. The parameter `timeout=SECONDS` is ours: how long the server may take for
/// a request (30).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NbdUrl {
    /// The server.
    pub server: NbdServer,
    /// The disk's name there; empty for the server's default.
    pub export: String,
    /// How long the server may take for a request.
    pub timeout: Duration,
}

/// Why a text is no such address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{url:?} is no address of an NBD server: {why}. Write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH."
)]
pub struct BadNbdUrl {
    /// The text.
    pub url: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl FromStr for NbdUrl {
    type Err = BadNbdUrl;

    fn from_str(text: &str) -> Result<NbdUrl, BadNbdUrl> {
        parse(text).map_err(|why| BadNbdUrl { url: text.to_owned(), why })
    }
}

fn parse(text: &str) -> Result<NbdUrl, &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let (mut socket, mut timeout) = (None, TIMEOUT);
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("socket", path)) => socket = Some(decode(path)?),
            Some(("timeout", seconds)) => {
                let seconds: u16 = seconds.parse().map_err(|_| "the timeout is no number of seconds")?;
                timeout = Duration::from_secs(u64::from(seconds.max(1)));
            }
            _ => return Err("it has a parameter other than socket= and timeout="),
        }
    }
    let server = match (scheme, socket) {
        ("nbd", None) => tcp(authority)?,
        ("nbd", Some(_)) => return Err("only nbd+unix has a socket="),
        ("nbd+unix", Some(path)) if authority.is_empty() && !path.is_empty() => NbdServer::Unix(path.into()),
        ("nbd+unix", Some(_)) => return Err("nbd+unix has no host, and a path after socket="),
        ("nbd+unix", None) => return Err("nbd+unix needs socket=PATH"),
        ("nbds" | "nbds+unix", _) => return Err("encrypted connections (nbds) are not supported"),
        _ => return Err("the scheme is not nbd or nbd+unix"),
    };
    let export = decode(export)?;
    if export.len() > LONGEST_NAME || export.contains('\0') {
        return Err("the export's name is longer than 4096 bytes, or holds a zero");
    }
    Ok(NbdUrl { server, export, timeout })
}

fn tcp(authority: &str) -> Result<NbdServer, &'static str> {
    let port = |text: &str| {
        text.parse::<u16>().ok().filter(|port| *port > 0).ok_or("the port is no number from 1 to 65535")
    };
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("the address has no closing bracket")?;
        match after.strip_prefix(':') {
            Some(text) => (host, port(text)?),
            None if after.is_empty() => (host, PORT),
            None => return Err("something other than a port follows the address"),
        }
    } else {
        match authority.split_once(':') {
            Some((host, text)) => (host, port(text)?),
            None => (authority, PORT),
        }
    };
    if host.is_empty() { Err("it has no host") } else { Ok(NbdServer::Tcp(host.to_owned(), port)) }
}

/// Undoes `%20` and the like (RFC 3986, 2.1).
fn decode(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = (digit(), digit());
                let (Some(high), Some(low)) = (high, low) else {
                    return Err("a % is not followed by two hex digits");
                };
                (high << 4 | low) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8")
}

impl fmt::Display for NbdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            NbdServer::Tcp(host, port) if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{}", self.export)
            }
            NbdServer::Tcp(host, port) => write!(f, "nbd://{host}:{port}/{}", self.export),
            NbdServer::Unix(path) => write!(f, "nbd+unix:///{}?socket={}", self.export, path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_ports_sockets_and_exports_are_found() {
        let url = |text: &str| text.parse::<NbdUrl>().unwrap();
        assert_eq!(url("nbd://store").server, NbdServer::Tcp("store".into(), 10809));
        assert_eq!(url("nbd://store:99/vm%201").export, "vm 1");
        assert_eq!(url("nbd://[::1]:99/x").server, NbdServer::Tcp("::1".into(), 99));
        assert_eq!(url("nbd://[::1]:99/x").to_string(), "nbd://[::1]:99/x");
        let unix = url("nbd+unix:///a/b?socket=/run/x%20y&timeout=5");
        assert_eq!((unix.server, unix.export.as_str()), (NbdServer::Unix("/run/x y".into()), "a/b"));
        assert_eq!(unix.timeout, Duration::from_secs(5));
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said() {
        for (text, why) in [
            ("store:99", "no scheme"),
            ("http://store", "scheme is not nbd"),
            ("nbds://store", "encrypted"),
            ("nbd:///x", "no host"),
            ("nbd://store:0/x", "port"),
            ("nbd+unix:///x", "needs socket"),
            ("nbd+unix://host/x?socket=/a", "no host"),
            ("nbd://store/x?tls=1", "parameter other"),
            ("nbd://store/%g0", "hex digits"),
            ("nbd://store/a%00", "holds a zero"),
            (&format!("nbd://store/{}", "a".repeat(4097)), "longer than 4096"),
        ] {
            let error = text.parse::<NbdUrl>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
