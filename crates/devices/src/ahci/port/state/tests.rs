use super::*;
use proptest::prelude::*;

fn running() -> PortState {
    let mut port = PortState::new();
    port.plug(Some(Signature::Ata), None);
    port.write(reg::CMD, reg::CMD_START | reg::CMD_RECEIVE, None);
    port
}

#[test]
fn a_device_reports_once_the_link_is_up() {
    let mut port = PortState::new();
    assert_eq!((port.read(reg::SSTS), port.read(reg::TFD), port.read(reg::SIG)), (0, 0x7f, u32::MAX));
    port.plug(Some(Signature::Atapi), None);
    assert_eq!((port.read(reg::SSTS), port.read(reg::TFD)), (0x133, 0x100));
    assert_eq!(port.read(reg::SIG), 0xeb14_0101);
    assert_eq!(port.read(reg::IS), reg::IS_CONNECT | reg::IS_PHY);
    port.write(reg::IS, u32::MAX, None);
    assert_eq!(port.read(reg::IS), reg::IS_CONNECT | reg::IS_PHY, "they mirror SERR");
    port.write(reg::SERR, u32::MAX, None);
    assert_eq!(port.read(reg::IS), 0);
    port.write(reg::SCTL, 0x321, None);
    assert_eq!(port.read(reg::SSTS), 0);
    port.write(reg::SCTL, 0x320, None);
    assert_eq!(port.read(reg::SSTS), 0x123, "the speed is limited to 3 Gb/s");
    port.write(reg::SCTL, 4, None);
    assert_eq!(port.read(reg::SSTS), 4);
    port.plug(None, None);
    port.write(reg::SCTL, 0, None);
    assert_eq!((port.read(reg::SSTS), port.read(reg::TFD)), (0, 0x7f));
}

#[test]
fn a_stopped_port_runs_until_the_last_command_has_ended() {
    let mut port = running();
    port.write(reg::CI, 0b11, None);
    let (first, second) = (port.take().unwrap(), port.take().unwrap());
    assert_eq!((first.slot, second.slot, port.take()), (0, 1, None));
    port.write(reg::CMD, 0, None);
    assert_eq!((port.read(reg::CI), port.read(reg::CMD) & reg::CMD_RUNNING), (0, reg::CMD_RUNNING));
    port.complete(0, Ending::Registers(Taskfile::good()), 0, None);
    port.write(reg::CMD, reg::CMD_START, None);
    port.write(reg::CI, 1, None);
    assert_eq!(port.take(), None, "the other command still runs");
    port.complete(1, Ending::Registers(Taskfile::aborted()), 0, None);
    assert_eq!(port.read(reg::CI), 1, "nobody hears of stale commands");
    assert_eq!(port.read(reg::IS) & reg::IS_D2H, 0);
    assert_eq!(port.take().map(|taken| taken.slot), Some(0));
    port.write(reg::CMD, 0, None);
    port.complete(0, Ending::Registers(Taskfile::good()), 0, None);
    assert_eq!(port.read(reg::CMD) & reg::CMD_RUNNING, 0);
}

#[test]
fn a_device_is_busy_after_a_reset_until_its_commands_have_ended() {
    let mut port = running();
    port.write(reg::CI, 1, None);
    port.take().unwrap();
    port.write(reg::SCTL, 1, None);
    port.write(reg::SCTL, 0, None);
    assert_eq!((port.read(reg::TFD) as u8, port.read(reg::SIG)), (status::BUSY, u32::MAX));
    port.complete_queued(1, None);
    assert_eq!((port.read(reg::TFD) as u8, port.read(reg::SIG)), (status::GOOD, 0x101));
}

#[test]
fn an_error_halts_the_port_until_it_is_started_again() {
    let mut port = running();
    port.write(reg::SACT, 0b110, None);
    port.write(reg::CI, 0b110, None);
    for _ in 0..2 {
        let taken = port.take().unwrap();
        port.accept(taken.slot, None);
    }
    assert_eq!(port.read(reg::CI), 0);
    port.fail_queued(2, Taskfile::failed(0x40), 0, None);
    port.complete_queued(0b10, None);
    assert_eq!(port.read(reg::SACT), 0b110, "the device has given up all of them");
    assert_eq!(port.read(reg::TFD), 0x4051);
    assert!(port.read(reg::IS) & reg::IS_TASK_FILE != 0);
    port.write(reg::CI, 1, None);
    assert_eq!(port.take(), None);
    port.write(reg::CMD, 0, None);
    assert_eq!((port.read(reg::SACT), port.read(reg::CI)), (0, 0));
    port.write(reg::CMD, reg::CMD_START, None);
    port.write(reg::CI, 1, None);
    assert!(port.take().is_some());
}

proptest! {
    #[test]
    fn no_sequence_makes_the_state_inconsistent(
        steps in prop::collection::vec((0u8..12, any::<u32>(), 0u64..0x80), 0..200)
    ) {
        let mut port = PortState::new();
        let mut held = 0u32;
        for (what, value, register) in steps {
            let slot = (value & 31) as u8;
            let mine = held & 1 << slot;
            match what {
                0..5 => port.write(register & !3, value, None),
                5 => if let Some(taken) = port.take() {
                    prop_assert_eq!(held & 1 << taken.slot, 0, "taken twice");
                    held |= 1 << taken.slot;
                },
                6 => port.complete_queued(held & value, None),
                7 if mine != 0 => port.complete(slot, Ending::Registers(Taskfile::good()), 0, None),
                8 if mine != 0 => port.fail_queued(slot, Taskfile::aborted(), 0, None),
                9 => port.plug((value & 1 != 0).then_some(Signature::Ata), None),
                10 => port.reset(None),
                11 => port.accept(slot, None),
                _ => {}
            }
            match what {
                6 => held &= !value,
                7 | 8 => held &= !mine,
                _ => {}
            }
            prop_assert_eq!(port.is_idle(), held == 0);
            prop_assert_eq!(port.stale & !port.held | port.in_reset & !port.stale, 0);
            let command = port.read(reg::CMD);
            prop_assert!(command & reg::CMD_START == 0 || command & reg::CMD_RUNNING != 0);
            prop_assert!(held == 0 || command & reg::CMD_RUNNING != 0);
            prop_assert!(command & reg::CMD_START != 0 || port.read(reg::CI) | port.read(reg::SACT) == 0);
        }
    }
}
