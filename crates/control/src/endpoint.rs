//! An endpoint of the API: one row of the table in [`crate::api`]. What the server routes, what a VM has to answer, what the
//! client can ask, the table in docs/control.md and docs/openapi.json all follow from the rows.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::Source;
use crate::http::{Method, Request};
use crate::reply::Reply;

/// A request that a VM did not carry out: why, in a sentence with a hint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Until when an endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until the VM is taken apart ([`crate::Server::retire`]), because the answer can hold parts of it.
    Retired,
    /// To the very end, because the answer needs nothing of the VM but its state and its journal.
    End,
}

/// What a request says: the body of a POST, the query of a GET.
pub trait Ask: Serialize + DeserializeOwned {
    /// One that could be sent, for people who sent something else. Of a GET it has every key.
    fn example() -> Self;

    /// How long the answer may take because the request says so.
    fn wait(&self) -> Duration {
        Duration::ZERO
    }
}

/// What an answer says: JSON, and for some answers files that go with it.
pub trait Answer: Sized {
    /// The JSON.
    type Body: Serialize + DeserializeOwned;

    /// The JSON and the files.
    fn into_parts(self) -> (Self::Body, Vec<OwnedFd>);

    /// Put together again at the other end; an error if the two do not belong together.
    fn from_parts(body: Self::Body, files: Vec<OwnedFd>) -> Result<Self, String>;
}

/// An answer without files.
impl<T: Serialize + DeserializeOwned> Answer for T {
    type Body = T;

    fn into_parts(self) -> (T, Vec<OwnedFd>) {
        (self, Vec::new())
    }

    fn from_parts(body: T, _: Vec<OwnedFd>) -> Result<T, String> {
        Ok(body)
    }
}

/// A row of the table, as the server uses it.
pub(crate) struct Endpoint {
    pub method: Method,
    pub path: &'static str,
    pub until: Until,
    /// Answers a request; `None` when the client is gone, which the function says while an answer waits.
    pub handler: fn(&dyn Source, &Request, &dyn Fn() -> bool) -> Option<Reply>,
    #[cfg(test)]
    pub described: crate::openapi::Described,
}

/// The table of endpoints. A row is
///
/// ```text
/// /// What it does, in a sentence or two.
/// METHOD "/v1/path" vm.name(Request) -> Answer, STATUS, until UNTIL;
/// ```
///
/// `vm.name` makes `name` a method of [`Source`], which answers; with `server.name` the function `server::name` of
/// [`crate::routes`] does. In both cases [`crate::Client`] gets a method of that name.
macro_rules! endpoints {
    ($(
        $(#[doc = $doc:literal])+
        $method:ident $path:literal $by:ident.$name:ident($($request:ty)?) -> $answer:ty, $status:literal, until $until:ident;
    )+) => {
        /// All endpoints.
        pub(crate) static ENDPOINTS: &[crate::endpoint::Endpoint] = &[$(crate::endpoint::Endpoint {
            method: crate::http::Method::$method,
            path: $path,
            until: crate::endpoint::Until::$until,
            handler: crate::endpoint::handler!($by.$name($($request)?), $status),
            #[cfg(test)]
            described: crate::openapi::Described {
                name: stringify!($name),
                text: concat!($($doc, "\n"),+),
                status: $status,
                request: crate::openapi::request::<crate::endpoint::asked!($($request)?)>,
                answer: crate::openapi::answer::<$answer>,
            },
        }),+];

        /// A running VM, as the API sees it. Called on several threads at a time; every call should return within a second
        /// or so, also while the VM ends, because the end of the [`crate::Server`] waits some seconds for calls that are
        /// under way.
        pub trait Source: Send + Sync {
            /// What happened to it.
            fn journal(&self) -> std::sync::Arc<crate::Journal>;

            $(crate::endpoint::method!($by $(#[doc = $doc])+ $name($($request)?) -> $answer);)+
        }

        impl crate::Client {$(
            $(#[doc = $doc])+
            pub fn $name(&mut self $(, request: &$request)?) -> Result<$answer, crate::ClientError> {
                self.ask(crate::http::Method::$method, $path, crate::endpoint::sent!($(request: $request)?))
            }
        )+}
    };
}

/// What a request of this row says.
#[cfg(test)]
macro_rules! asked {
    () => {
        crate::api::Nothing
    };
    ($request:ty) => {
        $request
    };
}

macro_rules! sent {
    () => {
        &crate::api::Nothing {}
    };
    ($request:ident: $type:ty) => {
        $request
    };
}

macro_rules! method {
    (vm $(#[doc = $doc:literal])+ $name:ident($($request:ty)?) -> $answer:ty) => {
        $(#[doc = $doc])+
        fn $name(&self $(, request: &$request)?) -> Result<$answer, crate::Refused>;
    };
    (server $($row:tt)*) => {};
}

macro_rules! handler {
    (vm.$name:ident(), $status:literal) => {
        |vm, request, _| {
            Some(crate::routes::answer_with($status, request, |_: crate::api::Nothing| vm.$name()))
        }
    };
    (vm.$name:ident($request:ty), $status:literal) => {
        |vm, request, _| Some(crate::routes::answer_with($status, request, |said: $request| vm.$name(&said)))
    };
    (server.$name:ident($($request:ty)?), $status:literal) => {
        crate::routes::$name
    };
}

#[cfg(test)]
pub(crate) use asked;
pub(crate) use {endpoints, handler, method, sent};
