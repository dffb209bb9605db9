//! Random traffic and random memory.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// A step of driver or device.
#[derive(Clone, Debug)]
enum Step {
    Add(Vec<(u16, u8)>, Vec<(u16, u8)>, bool),
    Pop,
    Complete(usize),
    Publish,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pieces = || prop::collection::vec((any::<u16>(), 1u8..), 0..4);
    let step = prop_oneof![
        4 => (pieces(), pieces(), any::<bool>()).prop_map(|(r, w, i)| Step::Add(r, w, i)),
        4 => Just(Step::Pop),
        4 => any::<usize>().prop_map(Step::Complete),
        2 => Just(Step::Publish),
    ];
    prop::collection::vec(step, 1..400)
}
/// A chain: its pieces to read and those to write.
type Pieces = (Vec<Piece>, Vec<Piece>);

/// What was seen of a queue, without the numbers of chains, which kinds of queues choose in their own ways.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    /// A chain was made available, or descriptors were short.
    Added(bool),
    Popped(Option<Pieces>),
    /// These lengths came back.
    Used(Vec<u32>),
}

/// Runs the steps and compares with what should be: chains arrive in order with their pieces, and come back with
/// their lengths.
fn traffic(steps: &[Step], size: u16, warm: u32, features: Features) -> Vec<Seen> {
    let (mut driver, mut queue) = pair(size, features);
    let mut chain = Chain::new();
    for _ in 0..warm {
        driver.add(&[piece(0x4000, 1)], &[], Layout::Direct).unwrap();
        let head = queue.pop(&mut chain).unwrap().unwrap();
        queue.push_used(head, 7);
        let _ = queue.publish();
        driver.take_used().unwrap();
    }
    let mut waiting: VecDeque<(u16, Pieces)> = VecDeque::new();
    let mut taken: Vec<Head> = Vec::new();
    let mut done: VecDeque<(u16, u32)> = VecDeque::new();
    let mut seen = Vec::new();
    for (number, step) in (1u32..).zip(steps) {
        match step {
            Step::Add(readable, writable, indirect) if !(readable.is_empty() && writable.is_empty()) => {
                let place = |(at, len): &(u16, u8)| piece(0x10000 + u64::from(*at), u32::from(*len));
                let readable: Vec<Piece> = readable.iter().map(place).collect();
                let writable: Vec<Piece> = writable.iter().map(place).collect();
                let table = Gpa(0x40000 + 0x100 * u64::from(number));
                let layout = if *indirect { Layout::Indirect(table) } else { Layout::Direct };
                let head = driver.add(&readable, &writable, layout);
                seen.push(Seen::Added(head.is_some()));
                waiting.extend(head.map(|head| (head, (readable, writable))));
            }
            Step::Pop => {
                assert_eq!(queue.has_more(), !waiting.is_empty());
                let popped = queue.pop(&mut chain).unwrap();
                let expected = waiting.pop_front();
                assert_eq!(popped.as_ref().map(Head::id), expected.as_ref().map(|(head, _)| *head));
                let all = |mut cursor: Cursor<'_>| cursor.take(cursor.bytes()).unwrap().collect::<Vec<_>>();
                let pieces = popped.is_some().then(|| (all(chain.readable()), all(chain.writable())));
                assert_eq!(pieces, expected.map(|(_, pieces)| pieces));
                taken.extend(popped);
                seen.push(Seen::Popped(pieces));
            }
            Step::Complete(which) if !taken.is_empty() => {
                let head = taken.swap_remove(which % taken.len());
                let written = number % 3 * number;
                done.push_back((head.id(), written));
                queue.push_used(head, written);
                assert_eq!(driver.take_used(), None, "not published yet");
            }
            Step::Add(..) | Step::Complete(_) => {}
            Step::Publish => {
                let _ = queue.publish();
                let used: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
                assert_eq!(used, done.drain(..).collect::<Vec<_>>());
                seen.push(Seen::Used(used.into_iter().map(|(_, written)| written).collect()));
            }
        }
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Also across the wrap of the 16-bit indices of split queues.
    #[test]
    fn every_chain_arrives_whole_and_in_order_and_comes_back_once_and_alike_in_both_rings(
        steps in steps(),
        size_bits in 1u32..5,
        wrap in any::<bool>(),
    ) {
        let warm = if wrap { 65530 } else { 0 };
        let split = traffic(&steps, 1 << size_bits, warm, EVENTS);
        let packed = traffic(&steps, 1 << size_bits, warm % 1000, EVENTS | Features::RING_PACKED);
        prop_assert_eq!(split, packed);
    }

    #[test]
    fn packed_rings_of_any_size_pass_every_chain(steps in steps(), size in 1u16..70, warm in 0u32..200) {
        traffic(&steps, size, warm, EVENTS | Features::RING_PACKED);
    }

    #[test]
    fn arbitrary_memory_is_survived(seed in prop::collection::vec(any::<u64>(), 1024), features in 0u64..8) {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 8192).unwrap()]).unwrap());
        // Small numbers are more interesting than large ones.
        let bytes: Vec<u8> = seed.iter().flat_map(|word| (word >> (word % 61)).to_le_bytes()).collect();
        ram.write(Gpa(0), &bytes).unwrap();
        let at = QueueAddresses { size: 64, descriptors: Gpa(0), driver: Gpa(1024), device: Gpa(2048) };
        ram.write_obj(Gpa(1026), &64u16).unwrap();
        let mut queue = Queue::new(ram.clone(), &at, Features((features & 3) << 28 | features >> 2 << 34)).unwrap();
        let mut chain = Chain::new();
        while let Ok(Some(head)) = queue.pop(&mut chain) {
            prop_assert!(chain.readable().bytes() + chain.writable().bytes() <= 1024 * 8192);
            queue.push_used(head, 0);
            let _ = queue.publish();
        }
    }
}
