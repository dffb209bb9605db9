//! What the plugin wrote (`crates/lab/count/count.c` says how), as counts of each start.

use anyhow::{Context, Result, bail, ensure};
use lab::count::{GUEST_LIVES, LOAD_BEGINS, LOAD_ENDS, PROGRAM_STARTS};

/// Counts between two marks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions of the emulated host's programs.
    pub host_user: u64,
    /// Instructions of its kernel.
    pub host_kernel: u64,
    /// Instructions of the guest's kernel.
    pub guest_kernel: u64,
    /// How often a vCPU was entered, which is how often it exits.
    pub entries: u64,
    /// System calls of the host's programs.
    pub system_calls: u64,
}

/// A block of code that the host's programs executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its address.
    pub at: u64,
    /// How many instructions.
    pub instructions: u64,
    /// How many system calls.
    pub system_calls: u64,
}

/// A start of a monitor.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Up to the guest's mark, if it came so far.
    pub life: Option<Counts>,
    /// Where the host's programs were meanwhile.
    pub places: Vec<Place>,
    /// The loads that ended.
    pub loads: Vec<Counts>,
}

/// Reads the plugin's file. What comes before the first start is no start's.
pub fn starts(text: &str) -> Result<Vec<Start>> {
    let mut starts: Vec<Start> = Vec::new();
    let (mut began, mut load) = (Counts::default(), None);
    for (number, line) in text.lines().enumerate() {
        let wrong = || format!("line {} of the plugin's record makes no sense: {line:?}", number + 1);
        let mut words = line.split(' ');
        match words.next() {
            Some("mark") => {
                let (mark, counts) = mark(words).with_context(wrong)?;
                match (mark, starts.last_mut()) {
                    (PROGRAM_STARTS, _) => {
                        starts.push(Start::default());
                        (began, load) = (counts, None);
                    }
                    // A guest that is reset sets its mark again.
                    (GUEST_LIVES, Some(start)) if start.life.is_none() => {
                        start.life = Some(counts.since(began)?);
                    }
                    (LOAD_BEGINS, Some(_)) => load = Some(counts),
                    (LOAD_ENDS, Some(start)) => {
                        let before = load.take().with_context(|| format!("{}: no load began", wrong()))?;
                        start.loads.push(counts.since(before)?);
                    }
                    (GUEST_LIVES, _) | (LOAD_BEGINS | LOAD_ENDS, None) => {}
                    (other, _) => bail!("{}: there is no mark {other}", wrong()),
                }
            }
            Some("at") => {
                let place = place(words).with_context(wrong)?;
                starts.last_mut().into_iter().for_each(|start| start.places.push(place));
            }
            _ => bail!(wrong()),
        }
    }
    Ok(starts)
}

fn mark<'a>(words: impl Iterator<Item = &'a str>) -> Result<(u8, Counts)> {
    let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>()?;
    let [mark, host_user, host_kernel, _, guest_kernel, entries, system_calls] = numbers[..] else {
        bail!("there are {} numbers, not 7", numbers.len());
    };
    Ok((u8::try_from(mark)?, Counts { host_user, host_kernel, guest_kernel, entries, system_calls }))
}

fn place<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Place> {
    let mut next =
        |radix| Ok::<_, anyhow::Error>(u64::from_str_radix(words.next().context("too short")?, radix)?);
    let place = Place { at: next(16)?, instructions: next(10)?, system_calls: next(10)? };
    ensure!(words.next().is_none(), "too long");
    Ok(place)
}

impl Counts {
    fn since(self, before: Counts) -> Result<Counts> {
        let less = |after: u64, before: u64| after.checked_sub(before).context("a count went down");
        Ok(Counts {
            host_user: less(self.host_user, before.host_user)?,
            host_kernel: less(self.host_kernel, before.host_kernel)?,
            guest_kernel: less(self.guest_kernel, before.guest_kernel)?,
            entries: less(self.entries, before.entries)?,
            system_calls: less(self.system_calls, before.system_calls)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_since_the_mark_of_the_start() {
        let text = "mark 2 1 1 1 1 1 1\nmark 1 10 20 0 30 4 5\nmark 2 110 220 7 330 44 55\nat 7f00 90 3\n\
                    mark 1 200 300 9 400 50 60\n";
        let starts = starts(text).unwrap();
        let life =
            Counts { host_user: 100, host_kernel: 200, guest_kernel: 300, entries: 40, system_calls: 50 };
        assert_eq!(starts.len(), 2);
        assert_eq!(starts[0].life, Some(life));
        assert_eq!(starts[0].places, [Place { at: 0x7f00, instructions: 90, system_calls: 3 }]);
        assert_eq!(starts[1], Start::default());
    }

    #[test]
    fn loads_lie_between_their_marks_and_one_that_does_not_end_is_none() {
        let text = "mark 1 0 0 0 0 0 0\nmark 16 10 0 0 0 3 0\nmark 17 15 0 0 0 7 0\nmark 16 20 0 0 0 9 0\n\
                    mark 1 30 0 0 0 9 0\nmark 16 40 0 0 0 9 0\nmark 17 41 0 0 0 9 1\n";
        let starts = starts(text).unwrap();
        assert_eq!(starts[0].loads, [Counts { host_user: 5, entries: 4, ..Counts::default() }]);
        assert_eq!(starts[1].loads, [Counts { host_user: 1, system_calls: 1, ..Counts::default() }]);
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_the_line() {
        for text in [
            "mark 1 0 0 0 0 0",
            "mark 300 0 0 0 0 0 0",
            "mark 1 0 0 0 0 0 0\nmark 99 0 0 0 0 0 0",
            "mark 1 0 0 0 0 0 0\nmark 17 0 0 0 0 0 0",
            "mark 1 5 0 0 0 0 0\nmark 2 4 0 0 0 0 0",
            "at zz 1 1",
            "at 1 1",
            "qemu: hello",
        ] {
            assert!(starts(text).is_err(), "{text}");
        }
        let error = format!("{:#}", starts("mark 1 0 0 0 0 0 0\nat 1").unwrap_err());
        assert!(error.contains("line 2"), "{error}");
    }
}
