//! Power: the ACPI fixed registers (PM1 event and control, PM timer) and the reset register
//! (ACPI 6.5, 4.8.3 and 4.8.4).

use std::time::Instant;

use crate::ports::PortDevice;
use parking_lot::Mutex;

/// PM1 status and enable: the power button.
const POWER_BUTTON: u16 = 1 << 8;
/// PM1 status and enable: the timer's top bit changed; never set here, but guests enable it.
const TIMER: u16 = 1 << 0;
/// PM1 enable: global lock released; likewise.
const GLOBAL: u16 = 1 << 5;
/// PM1 enable: the sleep button; likewise.
const SLEEP_BUTTON: u16 = 1 << 9;
/// PM1 enable: the clock's alarm; likewise.
const CLOCK: u16 = 1 << 10;
const ENABLES: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | CLOCK;
/// PM1 control: interrupts are SCIs. Always 1: there is no mode without ACPI.
const SCI_ENABLE: u16 = 1 << 0;
/// PM1 control: go to the sleep state in bits 12:10.
const SLEEP_ENABLE: u16 = 1 << 13;
/// The value of SLP_TYP that `\_S5` names; the DSDT of crate boot names the same
/// (`platform::SLEEP_TYPE_SOFT_OFF`).
pub(crate) const S5: u16 = 0;

/// What the guest asks of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PowerRequest {
    /// Power off (ACPI S5).
    Off,
    /// Start afresh.
    Reset,
}

/// What becomes of a press of the power button.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Press {
    /// The guest has enabled the button's event, and gets it now.
    Shown,
    /// The guest has not, and gets it when it does.
    Waits,
}

type Ask = Box<dyn Fn(PowerRequest) + Send + Sync>;
/// Told when a press that waited is shown.
type Heard = Box<dyn Fn() + Send + Sync>;
/// Asserts or releases the SCI.
type Sci = Box<dyn Fn(bool) + Send + Sync>;

/// PM1a: the event registers at offset 0 (status, enable) and the control register at offset 4.
pub struct Power {
    registers: Mutex<Registers>,
    sci: Sci,
    ask: Ask,
    heard: Heard,
}

#[derive(Default)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
    /// A press that the guest has not answered yet. Guests forget what happened before they enable the event (and over
    /// a reset), so the press is shown to them again then.
    press: Option<Press>,
}

impl Registers {
    fn listens(&self) -> bool {
        self.enable & POWER_BUTTON != 0
    }
}

impl Power {
    /// `sci` sets the level of the system control interrupt; `ask` is called from a vCPU when the guest powers
    /// off; `heard` from a vCPU when the guest gets a press that waited, once for each press at most.
    pub fn new(sci: Sci, ask: Ask, heard: Heard) -> Power {
        Power { registers: Mutex::default(), sci, ask, heard }
    }

    /// Presses the power button. A guest that has not enabled its event (ACPI 6.5, 4.8.3.1.2, PWRBTN_EN) gets it when it
    /// does.
    pub fn press_button(&self) -> Press {
        let mut registers = self.lock();
        let press = if registers.listens() { Press::Shown } else { Press::Waits };
        registers.press = Some(press);
        registers.status |= POWER_BUTTON;
        self.settle(&registers);
        press
    }

    /// Whether the guest has enabled the button's event. What in the guest acts on it may start later.
    pub fn guest_listens(&self) -> bool {
        self.lock().listens()
    }

    fn settle(&self, registers: &Registers) {
        (self.sci)(registers.status & registers.enable != 0);
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Registers> {
        self.registers.lock()
    }
}

impl PortDevice for Power {
    fn read(&self, offset: u16, data: &mut [u8]) {
        let registers = self.lock();
        let words = [registers.status, registers.enable, registers.control | SCI_ENABLE];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let mut registers = self.lock();
        let listened = registers.listens();
        let (mut off, mut heard) = (false, false);
        for (at, byte) in (offset..).zip(data) {
            let shift = at % 2 * 8;
            let bits = u16::from(*byte) << shift;
            match at / 2 {
                0 => {
                    registers.status &= !bits;
                    if listened && bits & POWER_BUTTON != 0 {
                        registers.press = None;
                    }
                }
                1 => {
                    registers.enable = registers.enable & !(0xff << shift) | bits & ENABLES;
                }
                2 => {
                    off |= at == 5 && bits & SLEEP_ENABLE != 0 && bits >> 10 & 7 == S5;
                    registers.control = registers.control & !(0xff << shift) | bits & !SLEEP_ENABLE;
                }
                _ => {}
            }
        }
        if let Some(press) = registers.press
            && !listened
            && registers.listens()
        {
            registers.status |= POWER_BUTTON;
            registers.press = Some(Press::Shown);
            heard = press == Press::Waits;
        }
        self.settle(&registers);
        drop(registers);
        if heard {
            (self.heard)();
        }
        if off {
            (self.ask)(PowerRequest::Off);
        }
    }

    fn reset(&self) {
        let mut registers = self.lock();
        *registers = Registers { press: registers.press, ..Registers::default() };
        self.settle(&registers);
    }
}

/// The PM timer: 24 bits at 3.579545 MHz.
pub struct PmTimer(Instant);

impl PmTimer {
    /// A timer that counts from now.
    pub fn new() -> PmTimer {
        PmTimer(Instant::now())
    }
}

impl Default for PmTimer {
    fn default() -> PmTimer {
        PmTimer::new()
    }
}

impl PortDevice for PmTimer {
    fn read(&self, offset: u16, data: &mut [u8]) {
        let ticks = (self.0.elapsed().as_nanos() * 3_579_545 / 1_000_000_000) as u32 & 0xff_ffff;
        for (byte, value) in data.iter_mut().zip(ticks.to_le_bytes().into_iter().skip(offset.into())) {
            *byte = value;
        }
    }

    fn write(&self, _: u16, _: &[u8]) {}

    fn reset(&self) {}
}

/// A port of one byte to which writing a certain bit pattern starts the machine afresh: 0xCF9 (bit 2, the
/// ACPI reset register), the keyboard controller's 0x64 (0xFE) or system control port A, 0x92 (bit 0).
pub struct ResetPort {
    means_reset: fn(u8) -> bool,
    reads: u8,
    ask: Ask,
}

/// What reads of a port give where there is nothing.
const NOTHING: u8 = 0xff;

impl ResetPort {
    /// The reset control register of PC chipsets, at port 0xCF9.
    pub fn cf9(ask: Ask) -> ResetPort {
        ResetPort { means_reset: |value| value & 4 != 0, reads: NOTHING, ask }
    }

    /// The keyboard controller's command port, 0x64, of which only "pulse the reset line" is there.
    pub fn keyboard(ask: Ask) -> ResetPort {
        ResetPort { means_reset: |value| value == 0xfe, reads: NOTHING, ask }
    }

    /// System control port A, 0x92 (82371AB data sheet, "Port 92 register"): bit 0 resets, and bit 1 says that address line 20 is
    /// let through, which it always is.
    pub fn port_92(ask: Ask) -> ResetPort {
        ResetPort { means_reset: |value| value & 1 != 0, reads: 1 << 1, ask }
    }
}

impl PortDevice for ResetPort {
    fn read(&self, _: u16, data: &mut [u8]) {
        data.fill(self.reads);
    }

    fn write(&self, _: u16, data: &[u8]) {
        if data.first().is_some_and(|value| (self.means_reset)(*value)) {
            (self.ask)(PowerRequest::Reset);
        }
    }

    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    /// What the guest asked for.
    type Asked = Arc<Mutex<Vec<PowerRequest>>>;

    fn power() -> (Power, Arc<AtomicBool>, Asked) {
        let (power, sci, asked, _) = power_with_ear();
        (power, sci, asked)
    }

    /// The last counts the presses that waited and were heard.
    fn power_with_ear() -> (Power, Arc<AtomicBool>, Asked, Arc<AtomicU32>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let sci = Arc::new(AtomicBool::new(false));
        let level = sci.clone();
        let log = asked.clone();
        let ask = Box::new(move |request| log.lock().push(request));
        let sci_line = Box::new(move |asserted| level.store(asserted, Ordering::SeqCst));
        let heard = Arc::new(AtomicU32::new(0));
        let count = heard.clone();
        let hear = Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        (Power::new(sci_line, ask, hear), sci, asked, heard)
    }

    #[test]
    fn the_power_button_asserts_the_sci_once_the_guest_listens_until_the_guest_acknowledges() {
        let (power, sci, _) = power();
        power.press_button();
        assert!(!sci.load(Ordering::SeqCst), "not enabled yet");
        power.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(sci.load(Ordering::SeqCst));
        power.write(0, &POWER_BUTTON.to_le_bytes());
        let mut status = [0; 2];
        power.read(0, &mut status);
        assert_eq!(status, [0, 0]);
        assert!(!sci.load(Ordering::SeqCst));
    }

    #[test]
    fn a_press_before_the_guest_listens_survives_its_clearing_of_old_events_and_a_reset() {
        let (power, sci, _) = power();
        power.press_button();
        power.write(0, &0xffffu16.to_le_bytes());
        PortDevice::reset(&power);
        power.write(0, &0xffffu16.to_le_bytes());
        assert!(!sci.load(Ordering::SeqCst));
        power.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(sci.load(Ordering::SeqCst));
        power.write(0, &POWER_BUTTON.to_le_bytes());
        power.write(2, &[0, 0]);
        power.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(!sci.load(Ordering::SeqCst), "it was answered");
    }

    #[test]
    fn a_press_that_waited_is_said_to_be_heard_once_however_often_the_guest_enables_the_event() {
        let (power, _, _, heard) = power_with_ear();
        let (on, off) = (POWER_BUTTON.to_le_bytes(), [0; 2]);
        assert_eq!((power.press_button(), power.guest_listens()), (Press::Waits, false));
        power.write(2, &TIMER.to_le_bytes());
        assert_eq!(heard.load(Ordering::SeqCst), 0, "that is another event");
        for _ in 0..1000 {
            power.write(2, &on);
            power.write(2, &off);
        }
        PortDevice::reset(&power);
        power.write(2, &on);
        assert_eq!((heard.load(Ordering::SeqCst), power.guest_listens()), (1, true));
        power.write(0, &on);
        assert_eq!(power.press_button(), Press::Shown);
        power.write(2, &off);
        power.write(2, &on);
        assert_eq!(heard.load(Ordering::SeqCst), 1, "it did not wait");
    }

    #[test]
    fn only_sleep_state_5_powers_off() {
        let (power, _, asked) = power();
        power.write(4, &(SLEEP_ENABLE | 3 << 10).to_le_bytes());
        power.write(4, &(S5 << 10).to_le_bytes());
        assert!(asked.lock().is_empty());
        power.write(4, &(SLEEP_ENABLE | S5 << 10).to_le_bytes());
        assert_eq!(*asked.lock(), [PowerRequest::Off]);
    }

    #[test]
    fn system_control_port_a_lets_address_line_20_through_and_resets() {
        let asked = Asked::default();
        let log = asked.clone();
        let port = ResetPort::port_92(Box::new(move |request| log.lock().push(request)));
        let mut read = [0];
        port.read(0, &mut read);
        port.write(0, &[read[0] & !2]);
        assert_eq!((read, asked.lock().len()), ([2], 0));
        port.write(0, &[read[0] | 1]);
        assert_eq!(*asked.lock(), [PowerRequest::Reset]);
    }

    #[test]
    fn the_timer_counts_at_its_own_rate() {
        let timer = PmTimer::new();
        let ticks = || {
            let mut data = [0; 4];
            timer.read(0, &mut data);
            u32::from_le_bytes(data)
        };
        let first = ticks();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(ticks() - first >= 71_590);
    }
}
