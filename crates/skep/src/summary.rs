//! How a VM ended, for programs.

use machine::{Ended, Outcome};
use serde_json::json;

use crate::view;

/// A VM's end as JSON: `outcome`, `reason` where there is one, and `disks` with their counters, all in bytes or
/// requests.
pub fn json(ended: &Ended) -> String {
    let (outcome, reason) = match &ended.outcome {
        Outcome::PoweredOff => ("powered-off", None),
        Outcome::Stopped => ("stopped", None),
        Outcome::Crashed(reason) => ("crashed", Some(reason)),
        Outcome::Failed(reason) => ("failed", Some(reason)),
    };
    let disks = view::disks(&ended.disks);
    format!("{:#}\n", json!({ "outcome": outcome, "reason": reason, "disks": disks }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::{Counters, Reading};
    use serde_json::Value;

    #[test]
    fn the_report_says_how_it_ended_and_what_was_copied_and_why() {
        let counters = Counters {
            bytes_read: 8192,
            bytes_direct: 4096,
            bytes_bounced_alignment: 4096,
            ..Counters::default()
        };
        let disk = Reading { name: "/dev/sda".to_owned(), counters, waiting: None };
        let ended = Ended { outcome: Outcome::PoweredOff, disks: vec![disk] };
        let report: Value = serde_json::from_str(&json(&ended)).unwrap();
        assert_eq!(report["outcome"], "powered-off");
        assert_eq!(report["disks"][0]["bytes_copied"]["alignment"], 4096);
        assert_eq!(report["disks"][0]["bytes_direct"], 4096);
    }
}
