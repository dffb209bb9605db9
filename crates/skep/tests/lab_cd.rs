//! Discs that are changed from outside.

mod scenario;

use scenario::Scenario;

#[test]
fn a_disc_is_changed_from_outside_and_the_file_that_was_there_is_closed() {
    let seen = Scenario::quick().run(
        r#"
        dd if=/dev/urandom of=/tmp/a.iso bs=64k count=16 2> /dev/null
        dd if=/dev/urandom of=/tmp/b.iso bs=64k count=24 2> /dev/null
        for disc in a b; do say "$disc $(sha256sum < /tmp/$disc.iso | cut -c 1-16)"; done
        touch /tmp/seen
        saw() { grep -q "guest: $1" /tmp/seen; }
        opened() { ls -l /proc/$VM/fd | grep -c "/tmp/$1.iso" || true; }
        told() { skep events discs | grep -q "$1"; }
        (
            set -e
            wait_for 120 saw first
            VM=$(skep list --json | grep pid | tr -cd 0-9)
            # While the guest reads, its driver locks the tray.
            wait_for 60 skep cd discs cd0 insert /tmp/b.iso
            say "opened a $(opened a) b $(opened b)"
            skep list | sed 's/^/host: list /'
            wait_for 120 saw locked
            skep cd discs /tmp/b.iso eject 2>&1 | sed 's/^/host: refused /'
            skep cd discs cd0 eject --force
            say "opened a $(opened a) b $(opened b)"
            skep stats discs | sed 's/^/host: stats /'
            wait_for 120 saw gone
            cd /tmp
            skep cd discs cd0 insert a.iso
            wait_for 120 saw ejected
            wait_for 20 told 'guest has ejected'
            say "opened a $(opened a) b $(opened b)"
            skep cd discs cd0 eject
            skep cd discs cd1 eject 2>&1 | sed 's/^/host: no drive /'
            skep cd discs cd0 insert /nowhere.iso 2>&1 | sed 's/^/host: no file /'
            skep events discs | cut -c 27- | sed 's/^/host: event /'
            skep cd discs cd0 insert /tmp/b.iso
        ) &
        OUTSIDE=$!
        guest '
            wait_for 60 test -b /dev/sr0
            # Just after a change a read may fail, which is no sum.
            sum() { sha256sum < /dev/sr0 > /tmp/sum && cut -c 1-16 /tmp/sum; }
            A=$(sum)
            say "first $A"
            other() { B=$(sum) && [ "$B" != "$A" ]; }
            same() { [ "$(sum)" = "$1" ]; }
            readable() { dd if=/dev/sr0 of=/dev/null bs=2048 count=1 iflag=direct; }
            unreadable() { ! readable; }
            changed() { readable && other; }
            wait_for 60 changed
            say "second $B"
            exec 3< /dev/sr0
            say locked
            wait_for 60 unreadable
            exec 3<&-
            say gone
            wait_for 60 readable
            wait_for 60 same $A
            say "third $(sum)"
            lab-io eject /dev/sr0
            say ejected
            wait_for 60 unreadable
            wait_for 60 readable
            wait_for 60 same $B
            say "fourth $(sum)"
        ' --name discs --disk /tmp/a.iso,model=ahci-cd --report /tmp/report 2>&1 | tee /tmp/seen
        wait $OUTSIDE
        grep '"name"' /tmp/report | sed 's/^/host: report /'
        "#,
    );
    seen.ended_with(&[0]);
    let sum = |disc: &str| seen.after(&format!("host: {disc} ")).concat();
    let [a, b] = ["a", "b"].map(sum);
    for (when, sum) in [("first", &a), ("second", &b), ("third", &a), ("fourth", &b)] {
        seen.expect(&format!("guest: {when} {sum}"));
    }
    assert_eq!(seen.after("host: opened "), ["a 0 b 1", "a 0 b 0", "a 0 b 0"], "{seen}");
    seen.expect("host: list discs: CD drive cd0 holds /tmp/b.iso.");
    seen.expect("host: stats CD drive cd0 is empty.");
    let refused = seen.after("host: refused ").concat();
    for part in ["the guest uses /tmp/b.iso, the disc in cd0, and has locked the tray", "--force"] {
        assert!(refused.contains(part), "{refused}\n{seen}");
    }
    seen.expect(
        "host: no drive skep: the VM discs refused: there is no CD drive cd1. There are: cd0 (empty)",
    );
    assert!(seen.after("host: no file ").concat().contains("/nowhere.iso"), "{seen}");
    let events = seen.after("host: event ").join("\n");
    for part in [
        "CD drive cd0: /tmp/a.iso was taken out, and /tmp/b.iso put in",
        "CD drive cd0: /tmp/b.iso was taken out\n",
        "CD drive cd0: /tmp/a.iso was put in",
        "the guest has ejected /tmp/a.iso",
    ] {
        assert!(events.contains(part), "{part}\n{events}\n{seen}");
    }
    // Each disc counts as often as it was put in.
    assert_eq!(seen.after("host: report ").len(), 4, "{seen}");
}
