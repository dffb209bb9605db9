//! Stories that share a boot of the emulated host. Each is an ordinary function that makes a [`Scenario`](super::Scenario)
//! and runs it once. Its script waits until all have given theirs; those for the same host are then played there, one after
//! the other, and each gets what was seen of its own.
//!
//! The host is tidied up after each story (`tidy` in `host.sh`), and its disks get back what they held at first. After a
//! story that failed, or left the host other than it was, the next ones are played in another host.
//!
//! Each is a test of its own as well, which is ignored: `cargo xtask test --only STORY` plays it in a host of its own, and
//! so does `cargo nextest run --run-ignored only STORY`.

use std::cell::RefCell;
use std::panic::catch_unwind;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use lab::{Builder, LabError, Outcome};

use super::silence::Tries;

/// How long each story may take, on a bad day.
const PATIENCE: Duration = Duration::from_secs(600);

/// The line with which a story begins, and the one with which it ends, before its number and its status.
const BEGINS: &str = "host: story begins ";
const ENDS: &str = "host: story ended with ";

/// `together!(NAME: STORY, STORY ...)`: a test that plays these stories; and ignored ones that play each alone.
macro_rules! together {
    ($name:ident: $($story:ident),+ $(,)?) => {
        #[test]
        fn $name() {
            $crate::scenario::together::play(&[$((stringify!($story), $story as fn())),+]);
        }

        mod $name {
            $(
                #[test]
                #[ignore = "is played in one host with others"]
                fn $story() {
                    super::$story();
                }
            )+
        }
    };
}
pub(crate) use together;

thread_local! {
    /// Where this thread's story asks for its script to be played.
    static DESK: RefCell<Option<(usize, Sender<Step>)>> = const { RefCell::new(None) };
}

/// What a story does that others wait for.
enum Step {
    Asks(Box<Ask>),
    /// Whether it went well. What it panicked with was printed then.
    Over(&'static str, bool),
}

/// What a story is to see of blocked DMA. The emulator tells of it for a host's whole life.
#[derive(Debug, Clone, Copy)]
pub enum Faults {
    /// None.
    Forbidden,
    /// Some, on purpose.
    Wanted,
}

/// A script, the host it wants, and who waits for what is seen.
struct Ask {
    /// The story's place among the others.
    place: usize,
    lab: Builder,
    faults: Faults,
    script: String,
    tries: Tries,
    answer: Sender<Result<Outcome, String>>,
}

impl Ask {
    /// Hosts that are described alike are the same host.
    fn host(&self) -> String {
        format!("{:?} {:?}", self.faults, self.lab.clone().own_time(PATIENCE).build())
    }

    fn answer(self, seen: Result<Outcome, String>) {
        // A story that is gone needs no answer.
        let _unheard = self.answer.send(seen);
    }
}

/// Plays the script together with those of other stories. `None` when this story is alone.
pub fn shared(lab: &Builder, faults: Faults, script: &str) -> Option<Outcome> {
    let (place, desk) = DESK.with_borrow(Clone::clone)?;
    let (answer, seen) = channel();
    let ask = Box::new(Ask {
        place,
        lab: lab.clone(),
        faults,
        script: script.to_owned(),
        tries: Tries::default(),
        answer,
    });
    desk.send(Step::Asks(ask)).expect("the desk is open while there are stories");
    let seen = seen.recv().expect("every story gets an answer");
    Some(seen.unwrap_or_else(|error| panic!("{error}")))
}

/// Plays these stories; a panic that names each that failed.
pub fn play(stories: &[(&'static str, fn())]) {
    let mut failed = Vec::new();
    thread::scope(|scope| {
        let (desk, steps) = channel();
        for (place, (name, story)) in stories.iter().enumerate() {
            let desk = desk.clone();
            scope.spawn(move || {
                DESK.set(Some((place, desk.clone())));
                let how = catch_unwind(story);
                desk.send(Step::Over(name, how.is_ok())).expect("the desk is open while there are stories");
            });
        }
        direct(stories.len(), &steps, &mut failed);
    });
    assert!(failed.is_empty(), "these stories failed; each can be played alone by its name: {failed:#?}");
}

/// Plays what stories ask for, until all `left` of them are over. All that do not wait for an answer are heard first.
fn direct(mut left: usize, steps: &Receiver<Step>, failed: &mut Vec<&'static str>) {
    let mut asks: Vec<Ask> = Vec::new();
    while left > 0 {
        while asks.len() < left {
            match steps.recv().expect("stories say how they end") {
                Step::Asks(ask) => asks.push(*ask),
                Step::Over(name, well) => {
                    left -= 1;
                    note(name, well, failed);
                }
            }
        }
        asks.sort_by_key(|ask| ask.place);
        if let Some(first) = asks.first() {
            let host = first.host();
            let (now, later) = asks.into_iter().partition(|ask| ask.host() == host);
            asks = later;
            asks.extend(in_one_host(now));
        }
    }
}

fn note(name: &'static str, well: bool, failed: &mut Vec<&'static str>) {
    println!("story {name} ... {}", if well { "ok" } else { "FAILED" });
    if !well {
        failed.push(name);
    }
}

/// Plays these in one host, as far as it lasts, and returns those that were not played.
fn in_one_host(asks: Vec<Ask>) -> Vec<Ask> {
    let scripts: Vec<&str> = asks.iter().map(|ask| ask.script.as_str()).collect();
    let whole = super::whole_of_all(&scripts);
    let lab = asks[0].lab.clone().own_time(PATIENCE * asks.len() as u32).build();
    let (mut output, mut errors, mut log) = (String::new(), String::new(), false);
    let outcome = lab.run(&["sh", "-c", &whole], |line| {
        log = (log || line.text == super::LOG) && !line.text.starts_with(ENDS);
        if !log {
            println!("{}", line.text);
        }
        let all = if line.stream == lab::Stream::Stdout { &mut output } else { &mut errors };
        all.push_str(&line.text);
        all.push('\n');
    });
    hand_out(asks, &outcome, &output, &errors)
}

/// Gives each story what was seen of it, and returns those of which nothing was.
fn hand_out(asks: Vec<Ask>, outcome: &Result<Outcome, LabError>, output: &str, errors: &str) -> Vec<Ask> {
    let (output, errors) = (sections(output), sections(errors));
    let mut unplayed = Vec::new();
    for (number, mut ask) in asks.into_iter().enumerate() {
        let ended = output.get(number).and_then(|section| section.rsplit_once(ENDS));
        let status = ended.and_then(|(_, status)| status.lines().next()?.parse().ok());
        // In the host, where it was up at all.
        let begun = number < output.len().max(1);
        match (ended, status, outcome) {
            (Some((output, _)), Some(status), Ok(outcome)) => ask.answer(Ok(Outcome {
                status,
                output: output.to_owned(),
                errors: errors.get(number).copied().unwrap_or_default().to_owned(),
                ..outcome.clone()
            })),
            (None, _, Err(error)) if begun && ask.tries.another(error) => unplayed.push(ask),
            (None, _, Err(error)) if begun => ask.answer(Err(error.to_string())),
            (None, _, Ok(outcome)) if begun => {
                ask.answer(Err(format!("the story came to no end\n{}", super::Seen(outcome.clone()))));
            }
            // Not played yet; or it is to be played once more; or the host died after it, and nobody knows what its emulator had to say.
            _ => unplayed.push(ask),
        }
    }
    unplayed
}

/// What lies behind each beginning of a story, up to the next.
fn sections(text: &str) -> Vec<&str> {
    let at = |text: &str| text.find('\n').map_or(text.len(), |end| end + 1);
    text.split(BEGINS).skip(1).map(|section| &section[at(section)..]).collect()
}
