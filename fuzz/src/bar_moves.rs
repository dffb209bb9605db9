//! BARs that move while they are used: every access arrives where the registers say, and nowhere else.

use crate::board::{Board, Space, windows};
use crate::steps::Steps;

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let board = Board::new(vec![0; 4096]);
    while let Some(step) = steps.next_step() {
        match step % 8 {
            0..4 => board.reprogram(&mut steps),
            4 => access(&board, Space::Ports, &mut steps),
            5 if step == 0xfd => board.reset(),
            _ => access(&board, Space::Memory, &mut steps),
        }
        board.check();
    }
    board.reset();
    board.check();
}

fn access(board: &Board, space: Space, steps: &mut Steps<'_>) {
    let offset = u64::from(steps.u16());
    let windows = windows();
    let at = match (space, steps.u8() % 8) {
        (Space::Ports, _) => u64::from(windows.ports.0) + (offset & 0x1ff),
        (_, 0..4) => windows.memory32.start().0 + offset,
        (_, 4..7) => windows.memory64.map_or(0, |high| high.start().0) + offset,
        _ => steps.u64(),
    };
    let write = steps.u8() & 1 != 0;
    let data = steps.access();
    board.access(space, at, write.then_some(data), data.len());
}
