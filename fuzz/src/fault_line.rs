//! Lines of the kernel's log about DMA faults: any bytes are allowed, and what is kept of them is bounded.

use faults::{Line, Report, parse_line};

/// Runs one input: a line.
pub fn run(input: &[u8]) {
    let seen = parse_line(input);
    if let Some(Line::Intel(report) | Line::Amd(report)) = &seen {
        check(report);
    }
    // The log's own end of a line, and blanks around it, change nothing.
    let padded = [b"  ", input, b" \n"].concat();
    assert_eq!(parse_line(&padded), seen);
}

fn check(report: &Report) {
    assert!(report.reason.chars().count() <= 200, "a reason is cut");
    // Who is named can be named again.
    assert_eq!(report.device.to_string().parse(), Ok(report.device));
}
