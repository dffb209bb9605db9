use super::*;
use proptest::prelude::*;

/// Half past a second: 29 February 2024, 23:59:59.5.
const START: Nanos = 1_709_251_199 * SECOND + SECOND / 2;
const MILLI: Nanos = SECOND / 1000;

struct Guest {
    state: State,
    now: Nanos,
}

impl Guest {
    fn new() -> Guest {
        Guest { state: State::new(RamSizes { low: 1 << 30, high: 3 << 30 }, START), now: START }
    }

    fn later(&mut self, by: Nanos) {
        self.now += by;
        self.state.advance(self.now);
    }

    fn read(&mut self, register: u8) -> u8 {
        self.state.select(register);
        self.state.read(self.now)
    }

    fn write(&mut self, register: u8, value: u8) {
        self.state.select(register);
        self.state.write(value, self.now);
    }

    /// Century, year, month, day, hour, minute, second as they are written.
    fn date(&mut self) -> [u8; 7] {
        [CENTURY, 9, 8, 7, 4, 2, 0].map(|register| self.read(register))
    }
}

#[test]
fn the_guest_reads_the_time_in_bcd_and_can_set_it() {
    let mut guest = Guest::new();
    assert_eq!(guest.date(), [0x20, 0x24, 2, 0x29, 0x23, 0x59, 0x59]);
    assert_eq!(guest.read(6), 5, "a Thursday");
    guest.write(9, 0x30);
    assert_eq!([9, 8].map(|at| guest.read(at)), [0x30, 3], "29 February 2030 is 1 March");
}

#[test]
fn a_date_that_is_set_field_by_field_is_what_was_set_whatever_it_was_before() {
    let mut guest = Guest::new();
    for (month, day) in [(1, 0x31), (2, 0x15), (3, 0x31)] {
        guest.write(REGISTER_B, SET | HOURS_24);
        guest.write(8, month);
        guest.write(7, day);
        guest.write(REGISTER_B, HOURS_24);
        assert_eq!([8, 7].map(|at| guest.read(at)), [month, day]);
    }
}

#[test]
fn the_time_stands_still_while_it_is_set_and_the_divider_goes_on() {
    let mut guest = Guest::new();
    guest.write(REGISTER_B, SET | UPDATED | HOURS_24);
    assert_eq!(guest.read(REGISTER_B), SET | HOURS_24, "no update ends");
    guest.write(0, 0x10);
    guest.later(5 * SECOND + 300 * MILLI);
    assert_eq!((guest.read(0), guest.read(REGISTER_C)), (0x10, PERIODIC));
    guest.write(REGISTER_B, HOURS_24);
    guest.later(199 * MILLI);
    assert_eq!(guest.read(0), 0x10);
    guest.later(MILLI);
    assert_eq!(guest.read(0), 0x11);
}

#[test]
fn the_first_update_comes_half_a_second_after_the_divider_is_let_go() {
    let mut guest = Guest::new();
    guest.later(400 * MILLI);
    guest.write(REGISTER_A, 0x70);
    guest.read(REGISTER_C);
    guest.later(10 * SECOND);
    assert_eq!((guest.read(0), guest.read(REGISTER_C)), (0x59, 0), "nothing ticks");
    guest.write(REGISTER_A, 0x26);
    guest.later(499 * MILLI);
    assert_eq!(guest.read(0), 0x59);
    guest.later(MILLI);
    assert_eq!(guest.read(0), 0);
}

#[test]
fn hours_of_twelve_begin_with_twelve_and_the_afternoon_has_its_bit() {
    let mut guest = Guest::new();
    let shown: Vec<u8> = (0..24)
        .map(|hour: u8| {
            guest.write(REGISTER_B, HOURS_24 | BINARY);
            guest.write(4, hour);
            guest.write(REGISTER_B, 0);
            let shown = guest.read(4);
            guest.write(4, shown);
            guest.write(REGISTER_B, HOURS_24 | BINARY);
            assert_eq!(guest.read(4), hour, "written as it was read");
            shown
        })
        .collect();
    assert_eq!(shown[..13], [0x12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x10, 0x11, 0x92]);
    assert_eq!((shown[13], shown[23]), (0x81, 0x91));
}

#[test]
fn an_update_is_announced_and_its_end_is_a_flag_that_reading_takes_away() {
    let mut guest = Guest::new();
    guest.later(499 * MILLI + 755_999);
    assert_eq!(guest.read(REGISTER_A) & UPDATES, 0);
    guest.later(1);
    assert_eq!((guest.read(REGISTER_A) & UPDATES, guest.read(REGISTER_C) & UPDATED), (UPDATES, 0));
    guest.later(244_000);
    assert_eq!((guest.read(REGISTER_A) & UPDATES, guest.read(REGISTER_C) & UPDATED), (0, UPDATED));
    assert_eq!(guest.read(REGISTER_C), 0);
}

#[test]
fn a_flag_interrupts_only_if_it_may_and_then_also_afterwards() {
    let mut guest = Guest::new();
    guest.write(1, 0x30);
    guest.later(SECOND);
    assert!(!guest.state.interrupts());
    guest.write(REGISTER_B, HOURS_24 | UPDATED);
    assert!(guest.state.interrupts(), "the flag was set already");
    assert_eq!(guest.read(REGISTER_C), ASSERTED | PERIODIC | UPDATED);
    assert!(!guest.state.interrupts());
}

#[test]
fn an_alarm_comes_at_its_time_and_any_is_any() {
    let mut guest = Guest::new();
    for (register, value) in [(5, 0), (3, 1), (1, 0xff)] {
        guest.write(register, value);
    }
    guest.write(REGISTER_B, HOURS_24 | ALARM);
    // From 23:59:59.5 to 00:01:00, and then in each second of that minute.
    assert_eq!(guest.state.next_interrupt(), Some(START + 60 * SECOND + SECOND / 2));
    guest.later(60 * SECOND);
    assert_eq!(guest.read(REGISTER_C) & ALARM, 0);
    for _ in 0..60 {
        guest.later(SECOND);
        assert_eq!(guest.read(REGISTER_C) & (ASSERTED | ALARM), ASSERTED | ALARM);
    }
    guest.later(SECOND);
    assert_eq!(guest.read(REGISTER_C) & ALARM, 0);
    let tomorrow = START + 60 * SECOND + SECOND / 2 + 86_400 * SECOND;
    assert_eq!(guest.state.next_interrupt(), Some(tomorrow));
}

#[test]
fn an_alarm_of_the_afternoon_is_told_from_one_of_the_morning() {
    let mut guest = Guest::new();
    for (register, value) in [(REGISTER_B, ALARM), (5, 0x81), (3, 0), (1, 0)] {
        guest.write(register, value);
    }
    assert_eq!(guest.state.next_interrupt(), Some(START + 13 * 3600 * SECOND + SECOND / 2));
}

#[test]
fn periodic_interrupts_come_as_often_as_the_data_sheet_says() {
    let rates = [0, 256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2];
    for (select, expected) in (0u8..).zip(rates) {
        let mut guest = Guest::new();
        guest.write(REGISTER_A, 0x20 | select);
        guest.write(REGISTER_B, HOURS_24 | PERIODIC);
        let mut came = 0;
        while let Some(next) = guest.state.next_interrupt().filter(|next| *next <= START + SECOND) {
            guest.later(next - guest.now);
            assert_eq!(guest.read(REGISTER_C) & (ASSERTED | PERIODIC), ASSERTED | PERIODIC);
            came += 1;
        }
        assert_eq!(came, expected, "rate {select}");
    }
}

#[test]
fn a_host_whose_clock_is_set_back_makes_no_events() {
    let mut guest = Guest::new();
    guest.later(-3600 * SECOND);
    assert_eq!((guest.read(REGISTER_C), guest.read(4)), (0, 0x22));
}

#[test]
fn firmware_left_the_size_of_ram_and_its_sum() {
    let mut guest = Guest::new();
    let mut word = |at| u16::from_le_bytes([guest.read(at), guest.read(at + 1)]);
    assert_eq!([0x15, 0x17, 0x30, 0x34].map(&mut word), [640, 0xffff, 0xffff, 0x3f00]);
    assert_eq!([0x5b, 0x5c].map(&mut word), [0xc000, 0xc0]);
    let sum: u16 = (0x10..=0x2d).map(|at| u16::from(guest.read(at))).sum();
    assert_eq!([0x2e, 0x2f].map(|at| guest.read(at)), sum.to_be_bytes());
}

proptest! {
    /// Whatever a guest does, the interrupt comes when it was said to come, and not before.
    #[test]
    fn what_is_said_of_the_next_interrupt_is_so(writes in proptest::collection::vec((0u8..0x40, any::<u8>(), 0i64..3_000_000_000), 0..40)) {
        let mut guest = Guest::new();
        for (register, value, then) in writes {
            guest.write(register, value);
            guest.later(Nanos::from(then));
            if let Some(next) = guest.state.next_interrupt() {
                prop_assert!(next > guest.now);
                let mut state = guest.state.clone();
                state.advance(next - 1);
                prop_assert!(!state.interrupts());
                state.advance(next);
                prop_assert!(state.interrupts());
            }
            guest.read(4);
            guest.read(REGISTER_C);
            prop_assert!(!guest.state.interrupts());
        }
    }
}

#[test]
fn a_reset_takes_flags_and_interrupts_away_and_the_divider_sets_the_periodic_flag_again() {
    let mut guest = Guest::new();
    guest.write(REGISTER_B, HOURS_24 | 0x40);
    guest.later(MILLI);
    assert!(guest.state.interrupts());
    guest.state.reset(guest.now);
    assert_eq!((guest.state.interrupts(), guest.read(0x0c)), (false, 0));
    guest.later(MILLI);
    assert_eq!((guest.state.interrupts(), guest.read(0x0c)), (false, 0x40));
}
