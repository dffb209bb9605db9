//! What a running VM says of its domains and its memory.

mod scenario;

use lab::Size;
use scenario::{Scenario, Seen, together};
use serde_json::Value;

/// A VM of 1.5 GiB with one assigned controller and one that skep drives, and what is asked of it while it runs.
fn asked(flags: &str) -> Seen {
    let host = Scenario::quick().memory(Size::mib(3 << 10)).disk("nvme:64M").disk("nvme:64M");
    host.run(&format!(
        "ASSIGNED=$(function_of $(disk_of NVME0))
        DRIVEN=$(function_of $(disk_of NVME1))
        MEMORY=1536M start 'say up; sleep 1000' --name shown --disk nvme=$DRIVEN,namespace=1 --assign $ASSIGNED {flags} > /tmp/console 2> /tmp/errors & vm=$!
        wait_for 400 grep -q 'guest: up' /tmp/console || {{ cat /tmp/console /tmp/errors; false; }}
        skep dma shown --json > /tmp/dma
        say dma $(tr -d ' \\n' < /tmp/dma)
        skep dma shown
        skep dma shown --graph /tmp/dma.svg
        say picture $(grep -c '<svg' /tmp/dma.svg)
        skep memory shown dump /tmp/ram > /dev/null
        say dump $(stat -c %s /tmp/ram)
        # The kernel's text, which is there and stays as it is.
        skep memory shown read 0x1000000 4096 --raw > /tmp/piece
        dd if=/tmp/ram bs=4096 skip=4096 count=1 2> /dev/null | cmp - /tmp/piece && say the same bytes
        [ $(tr -d '\\0' < /tmp/piece | wc -c) -gt 1000 ] && say they are a program
        skep pause shown
        skep list
        skep resume shown
        skep stop shown --now --wait || true
        wait $vm && ended=0 || ended=$?
        say skep ended with $ended
        say told $(cat /tmp/errors)
        given_back $DRIVEN nvme
        given_back $ASSIGNED nvme"
    ))
}

fn domains(seen: &Seen) -> Vec<Value> {
    let dma: Value = serde_json::from_str(&seen.after("host: dma ").concat()).unwrap();
    dma["domains"].as_array().unwrap().clone()
}

fn shows_both_domains(seen: &Seen, back_end: &str) {
    seen.ended_with(&[5]);
    let domains = domains(seen);
    let names: Vec<&str> = domains.iter().filter_map(|domain| domain["name"].as_str()).collect();
    assert_eq!(names, ["guest", "host"], "{seen}");
    for domain in &domains {
        assert_eq!(domain["back_end"], back_end, "{domain}");
        assert_eq!(domain["audit"]["result"], "same", "{domain}");
        assert_eq!(domain["devices"].as_array().unwrap().len(), 1, "{domain}");
        assert!(domain["pinned"].as_u64().unwrap() >= 1536 << 20, "{domain}");
    }
    // RAM takes one call for each segment; the host domain's driver has its own queues besides.
    assert!(domains[0]["map_calls"].as_u64().unwrap() <= 4, "{}", domains[0]);
    assert!(domains[1]["map_calls"].as_u64().unwrap() <= 4, "{}", domains[1]);
    for line in
        ["host: picture 1", "host: dump 1610612736", "host: the same bytes", "host: they are a program"]
    {
        seen.expect(line);
    }
}

fn domains_and_memory_of_a_running_vm_are_shown_over_iommufd() {
    let seen = asked("");
    shows_both_domains(&seen, if lab::lab_kernel().is_some() { "iommufd" } else { "type1" });
}

fn domains_and_memory_of_a_running_vm_are_shown_over_type1_with_p2p() {
    let seen = asked("--dma type1 --p2p required");
    shows_both_domains(&seen, "type1");
    let domains = domains(&seen);
    assert_eq!(domains[0]["p2p"]["state"], "working", "{}", domains[0]);
    let targets: Vec<&Value> = domains[0]["mappings"].as_array().unwrap().iter().collect();
    assert!(targets.iter().any(|mapping| mapping["target"]["kind"] == "device"), "{targets:?}");
    assert_eq!(domains[1]["p2p"]["state"], "off", "{}", domains[1]);
}

together::together! { stories_of_domains_in_one_host:
    domains_and_memory_of_a_running_vm_are_shown_over_iommufd,
    domains_and_memory_of_a_running_vm_are_shown_over_type1_with_p2p,
}
