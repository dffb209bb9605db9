//! How a VM is asked to stop.

/// What a wish to stop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Press the power button (ACPI); the guest shuts down by itself.
    PowerButton,
    /// Stop the VM at once.
    Now,
}

/// The wishes so far, whether they came by signal or by key: the first is polite, the others are not.
#[derive(Debug)]
pub struct Wishes {
    next: Stop,
}

impl Wishes {
    /// No wish so far.
    pub fn none() -> Wishes {
        Wishes { next: Stop::PowerButton }
    }

    /// What one more wish does.
    pub fn one_more(&mut self) -> Stop {
        std::mem::replace(&mut self.next, Stop::Now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wish_presses_the_button_and_the_others_stop() {
        let mut wishes = Wishes::none();
        let three = [wishes.one_more(), wishes.one_more(), wishes.one_more()];
        assert_eq!(three, [Stop::PowerButton, Stop::Now, Stop::Now]);
    }
}
