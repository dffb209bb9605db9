//! How a VM ended, for programs.

use machine::{Counters, Ended, Outcome};
use serde_json::{Value, json};

/// A VM's end as JSON: `outcome`, `reason` where there is one, and `disks` with their counters, all in bytes or
/// requests.
pub fn json(ended: &Ended) -> String {
    let (outcome, reason) = match &ended.outcome {
        Outcome::PoweredOff => ("powered-off", None),
        Outcome::Stopped => ("stopped", None),
        Outcome::Crashed(reason) => ("crashed", Some(reason)),
        Outcome::Failed(reason) => ("failed", Some(reason)),
    };
    let disks: Vec<Value> = ended.disks.iter().map(|(name, counters)| disk(name, counters)).collect();
    format!("{:#}\n", json!({ "outcome": outcome, "reason": reason, "disks": disks }))
}

fn disk(name: &str, counters: &Counters) -> Value {
    json!({
        "name": name,
        "reads": counters.reads,
        "writes": counters.writes,
        "flushes": counters.flushes,
        "discards": counters.discards,
        "errors": counters.errors,
        "bytes_read": counters.bytes_read,
        "bytes_written": counters.bytes_written,
        "bytes_direct": counters.bytes_direct,
        "bytes_copied": {
            "alignment": counters.bytes_bounced_alignment,
            "asked": counters.bytes_bounced_asked,
            "page-cache": counters.bytes_bounced_page_cache,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_how_it_ended_and_what_was_copied_and_why() {
        let counters = Counters {
            bytes_read: 8192,
            bytes_direct: 4096,
            bytes_bounced_alignment: 4096,
            ..Counters::default()
        };
        let ended = Ended { outcome: Outcome::PoweredOff, disks: vec![("/dev/sda".to_owned(), counters)] };
        let report: Value = serde_json::from_str(&json(&ended)).unwrap();
        assert_eq!(report["outcome"], "powered-off");
        assert_eq!(report["disks"][0]["bytes_copied"]["alignment"], 4096);
        assert_eq!(report["disks"][0]["bytes_direct"], 4096);
    }
}
