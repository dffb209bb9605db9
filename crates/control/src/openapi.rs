//! docs/openapi.json and the table in docs/control.md, made from the table of endpoints; tests compare both with what is
//! there, and a server with the file. With `BLESS=1` in the environment they are written instead.

use std::borrow::Cow;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use crate::api::{Address, ENDPOINTS, Eject, EventKind, Failed, Source, VERSION, Word};
use crate::endpoint::{Answer, Ask, Endpoint, Until};
use crate::fake::FakeVm;
use crate::folder::Folder;
use crate::http::Method;
use crate::server::Server;

/// What else a row says.
pub(crate) struct Described {
    /// The name of the endpoint's method.
    pub name: &'static str,
    /// What it does; lines as in a doc comment.
    pub text: &'static str,
    /// The status of an answer.
    pub status: u16,
    /// What a request says, and an example.
    pub request: fn(&mut Generators) -> (Schema, Value),
    /// What an answer says.
    pub answer: fn(&mut Generators) -> Schema,
}

impl Described {
    fn sentences(&self) -> String {
        self.text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
    }
}

/// What is read may leave out what is written always, so each has schemas of its own.
pub(crate) struct Generators {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Generators {
    fn new() -> Generators {
        let settings = || {
            SchemaSettings::draft2020_12()
                .with(|settings| settings.definitions_path = "/components/schemas".into())
        };
        Generators {
            requests: settings().for_deserialize().into_generator(),
            answers: settings().for_serialize().into_generator(),
        }
    }

    fn into_schemas(mut self) -> Map<String, Value> {
        let mut schemas = self.requests.take_definitions(true);
        for (name, schema) in self.answers.take_definitions(true) {
            let other = schemas.insert(name.clone(), schema.clone());
            assert!(
                other.is_none_or(|other| other == schema),
                "{name} is asked in one form and answered in another"
            );
        }
        schemas
    }
}

pub(crate) fn request<Q: Ask + JsonSchema>(generators: &mut Generators) -> (Schema, Value) {
    let example = serde_json::to_value(Q::example()).unwrap();
    let none = example.as_object().unwrap().is_empty();
    let generator = &mut generators.requests;
    let schema = if none { json_schema!({}) } else { generator.subschema_for::<Q>() };
    (schema, example)
}

pub(crate) fn answer<A: Answer<Body: JsonSchema>>(generators: &mut Generators) -> Schema {
    generators.answers.subschema_for::<A::Body>()
}

impl JsonSchema for Address {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An address: of the guest (GPA), of a device (IOVA), or in a file.",
            "type": "string",
            "pattern": "^0x[0-9a-f]{1,16}$",
        })
    }
}

macro_rules! word_schemas {
    ($($name:ident),+) => {$(
        impl JsonSchema for Word<config::$name> {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "enum": config::$name::NAMES })
            }
        }
    )+};
}

word_schemas!(ModelName, Format, Bounce, Buffers, Poll, OnError);

/// The document.
fn document() -> Value {
    let mut generators = Generators::new();
    let failed = generators.answers.subschema_for::<Failed>();
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let method = if endpoint.method == Method::Get { "get" } else { "post" };
        let operation = operation(endpoint, &failed, &mut generators);
        paths.insert(endpoint.path.to_owned(), json!({ method: operation }));
    }
    let mut schemas = generators.into_schemas();
    // Their keys are parameters.
    for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.method == Method::Get) {
        let (schema, _) = (endpoint.described.request)(&mut Generators::new());
        if let Some(name) = name_of(&schema) {
            schemas.remove(&name);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "The control socket of a VM of skep",
            "version": VERSION.to_string(),
            "description": "HTTP/1.1 on a Unix socket; docs/control.md says where it is and what its answers mean.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "http://vm", "description": "curl --unix-socket /run/skep/vm/NAME.sock" }],
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn operation(endpoint: &Endpoint, failed: &Schema, generators: &mut Generators) -> Value {
    let Described { name, status, request, answer, .. } = &endpoint.described;
    let mut text = endpoint.described.sentences();
    if endpoint.until == Until::End {
        text.push_str(" It answers to the VM's very end.");
    }
    let said = |what: &str, schema: &Schema| json!({ "description": what, "content": { "application/json": { "schema": schema } } });
    let mut operation = json!({
        "operationId": name,
        "description": text,
        "responses": {
            status.to_string(): said(if *status == 202 { "It was passed on." } else { "It is done." }, &answer(generators)),
            "default": said("It is not done; the answer says why.", failed),
        },
    });
    let (schema, example) = request(generators);
    match name_of(&schema) {
        None => {}
        Some(name) if endpoint.method == Method::Get => {
            let definition = &generators.requests.definitions()[&name];
            let parameter = |(key, example): (&String, &Value)| {
                let mut schema = definition["properties"][key].clone();
                let text = schema.as_object_mut().unwrap().remove("description");
                json!({ "name": key, "in": "query", "description": text, "schema": schema, "example": example })
            };
            operation["parameters"] = example.as_object().unwrap().iter().map(parameter).collect();
        }
        Some(_) => {
            let body = json!({ "application/json": { "schema": schema, "example": example } });
            operation["requestBody"] = json!({ "required": true, "content": body });
        }
    }
    operation
}

/// The name of the schema to which this one refers.
fn name_of(schema: &Schema) -> Option<String> {
    let reference = schema.get("$ref")?.as_str()?;
    reference.rsplit('/').next().map(str::to_owned)
}

/// The table for people.
fn table() -> String {
    let mut text =
        "| request | what it does | it takes | it answers |\n| --- | --- | --- | --- |\n".to_owned();
    for Endpoint { method, path, described, .. } in ENDPOINTS {
        let mut generators = Generators::new();
        let (schema, example) = (described.request)(&mut generators);
        let answer = name_of(&(described.answer)(&mut generators)).unwrap();
        let (method, takes) = match (method, name_of(&schema)) {
            (Method::Get, None) => ("GET", "nothing".to_owned()),
            (Method::Get, Some(_)) => ("GET", format!("the query `{}`", crate::client::query(&example))),
            (_, None) => ("POST", "nothing".to_owned()),
            (_, Some(_)) => ("POST", format!("a body like `{example}`")),
        };
        let status = described.status;
        let what = described.sentences();
        text += &format!("| `{method} {path}` | {what} | {takes} | {status}, `{answer}` |\n");
    }
    text
}

fn docs(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../docs", name].iter().collect()
}

/// Compares a file's text with what is to be there.
fn compare(name: &str, wanted: impl FnOnce(&str) -> String) {
    let there = fs::read_to_string(docs(name)).unwrap_or_default();
    let wanted = wanted(&there);
    if std::env::var_os("BLESS").is_some() {
        fs::write(docs(name), &wanted).unwrap();
    } else {
        let same = there.lines().zip(wanted.lines()).position(|(there, wanted)| there != wanted);
        assert!(
            there == wanted,
            "docs/{name} is not what the table of endpoints says, from line {:?} on. Write it anew: \
             BLESS=1 cargo nextest run -p control openapi",
            same.map(|line| line + 1)
        );
    }
}

#[test]
fn the_openapi_document_is_what_the_table_of_endpoints_says() {
    compare("openapi.json", |_| format!("{:#}\n", document()));
}

#[test]
fn the_table_for_people_is_what_the_table_of_endpoints_says() {
    compare("control.md", |there| {
        let (begin, end) =
            ("<!-- endpoints: made from crates/control/src/api.rs -->\n", "<!-- end of endpoints -->");
        let (before, rest) = there.split_once(begin).expect("the table's begin");
        let (_, after) = rest.split_once(end).expect("the table's end");
        format!("{before}{begin}{}{end}{after}", table())
    });
}

/// Sends one request; the status and the body of the answer.
fn ask(socket: &std::path::Path, line: &str, body: &str) -> (u64, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = body.len();
    write!(stream, "{line} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

/// What of a value is not as a schema says. An object has no keys but those that are named. Of JSON Schema it knows what is in
/// the document, and nothing else.
fn difference(value: &Value, schema: &Value, document: &Value) -> Option<String> {
    let fits = |schema: &Value| difference(value, schema, document).is_none();
    let number = |number: &Value| number.as_number().unwrap().as_i128().unwrap();
    schema.as_object().unwrap().iter().find_map(|(keyword, wanted)| {
        let right = match (keyword.as_str(), value) {
            ("$ref", _) => {
                let place = wanted.as_str().unwrap().strip_prefix('#').unwrap();
                return difference(value, document.pointer(place).unwrap(), document);
            }
            ("properties", Value::Object(map)) => {
                return map.iter().find_map(|(key, value)| match wanted.get(key) {
                    Some(schema) => difference(value, schema, document),
                    None => Some(format!("{key} is not described")),
                });
            }
            ("items", Value::Array(values)) => {
                return values.iter().find_map(|value| difference(value, wanted, document));
            }
            ("type", _) => match wanted {
                Value::Array(kinds) => kinds.iter().any(|kind| is_a(value, kind)),
                kind => is_a(value, kind),
            },
            ("required", _) => {
                wanted.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some())
            }
            ("const", _) => value == wanted,
            ("enum", _) => wanted.as_array().unwrap().contains(value),
            ("oneOf", _) => wanted.as_array().unwrap().iter().filter(|schema| fits(schema)).count() == 1,
            ("anyOf", _) => wanted.as_array().unwrap().iter().any(fits),
            ("minimum", Value::Number(_)) => number(value) >= number(wanted),
            ("maximum", Value::Number(_)) => number(value) <= number(wanted),
            // That of an address.
            ("pattern", _) => serde_json::from_value::<Address>(value.clone()).is_ok(),
            // Of another type than this value's, which is its own keyword's matter; or no limit at all.
            ("items" | "properties" | "minimum" | "maximum" | "default" | "description" | "format", _) => {
                true
            }
            ("additionalProperties", _) => *wanted == false,
            (other, _) => panic!("the keyword {other}"),
        };
        (!right).then(|| format!("{value} has another {keyword} than {wanted}"))
    })
}

fn is_a(value: &Value, kind: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the type {other}"),
    }
}

#[test]
fn a_running_server_answers_every_operation_of_the_document_as_it_says() {
    let place = tempfile::tempdir().unwrap();
    let (folder, name) = (Folder::at(place.path().join("vm")), "web".parse().unwrap());
    let vm = Arc::new(FakeVm::new("web"));
    let _server = Server::start(folder.claim(&name).unwrap(), vm.clone()).unwrap();
    let socket = folder.socket(&name);
    // So that the requests of the examples succeed.
    vm.eject(&Eject { drive: "cd0".to_owned(), force: true }).unwrap();
    for _ in 0..10 {
        vm.journal().record(EventKind::Trouble, "again");
    }
    let document: Value = serde_json::from_str(&fs::read_to_string(docs("openapi.json")).unwrap()).unwrap();
    let check = |status: u64, answer: &Value, responses: &Value, what: &str| {
        let response = responses.get(status.to_string()).unwrap_or(&responses["default"]);
        let schema = &response["content"]["application/json"]["schema"];
        assert_eq!(difference(answer, schema, &document), None, "{what}: {answer}");
    };
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths {
        let (method, operation) = methods.as_object().unwrap().iter().next().unwrap();
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let query: Map<String, Value> = parameters
            .map(|parameter| (parameter["name"].as_str().unwrap().to_owned(), parameter["example"].clone()))
            .collect();
        let query = crate::client::query(&Value::Object(query));
        let body = &operation["requestBody"]["content"]["application/json"];
        let line = |query: &str| format!("{} {path}{query}", method.to_uppercase());
        let text = body.get("example").map_or(String::new(), Value::to_string);
        if let Some(example) = body.get("example") {
            assert_eq!(difference(example, &body["schema"], &document), None, "{path}: {example}");
        }
        let (status, answer) = ask(&socket, &line(&query), &text);
        let responses = &operation["responses"];
        assert!(responses.get(status.to_string()).is_some(), "{path}: {status} {answer}");
        check(status, &answer, responses, path);
        let (status, answer) = ask(&socket, &line("?no=1"), &text);
        assert_eq!(status, 400, "{path}");
        check(status, &answer, responses, path);
        let other = if method == "get" { "POST" } else { "GET" };
        assert_eq!(ask(&socket, &format!("{other} {path}"), "").0, 405, "{path}");
    }
    // It knows no others.
    let (_, Value::Object(answer)) = ask(&socket, "GET /", "") else { panic!() };
    let known = answer["error"].as_str().unwrap().rsplit(": ").next().unwrap();
    let mut known: Vec<&str> = known.split(", ").collect();
    known.sort_unstable();
    assert_eq!(known, paths.keys().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_value_that_is_not_as_the_document_says_is_noticed() {
    let document: Value = serde_json::from_str(&fs::read_to_string(docs("openapi.json")).unwrap()).unwrap();
    let differs = |name: &str, value: Value| {
        difference(&value, &json!({ "$ref": format!("#/components/schemas/{name}") }), &document).is_some()
    };
    assert!(!differs("Range", json!({ "first": "0x0", "last": "0xfff" })));
    for wrong in [
        json!({ "first": "0x0" }),
        json!({ "first": "0x0", "last": 4095 }),
        json!({ "first": "0", "last": "0x1" }),
    ] {
        assert!(differs("Range", wrong.clone()), "{wrong}");
    }
    assert!(!differs("P2p", json!({ "state": "off" })) && differs("P2p", json!({ "state": "on" })));
    assert!(!differs("Count", json!({ "known": 1, "unattributed": 0, "complete": true })));
    assert!(differs("Count", json!({ "known": -1, "unattributed": 0, "complete": true })));
    assert!(
        differs("Done", json!({ "state": "paused", "since": 7 }))
            && differs("Done", json!({ "state": "asleep" }))
    );
    assert!(differs("NewDisk", json!({ "path": "/a", "bootindex": 65536 })));
    assert!(!differs("Poll", json!("off")) && differs("Poll", json!("often")));
}
