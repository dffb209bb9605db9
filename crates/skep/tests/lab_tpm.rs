//! TPMs of guests: emulated ones and the host's, without firmware and with it.

mod scenario;

use scenario::tpm::{self, HOST_TPM, SWTPM, TOOLS};
use scenario::warnings::{WARNINGS, unknown_warnings};
use scenario::{Scenario, firmware};

/// A guest that measures a word of its command line, `path=`, into PCR 8, and has a secret that opens only to that. It is
/// sealed at the first start, and lies on the disk.
const SEALED: &str = r#"
    path=$(tr " " "\n" < /proc/cmdline | sed -n s/^path=//p)
    say "TPM $(cat /sys/class/tpm/tpm0/tpm_version_major) at $(cat /sys/class/tpm/tpm0/device/path)"
    tpm2 pcrread sha256:8 | grep -q "0x0*$" && say PCR 8 was zero
    tpm2 pcrextend 8:sha256=$(printf %s "$path" | sha256sum | cut -d " " -f 1)
    tpm2 createprimary -Q -C o -G ecc -c /tmp/primary
    if [ "$(dd if=/dev/vda bs=7 count=1 2> /dev/null)" = private ]; then
        tar -x -f /dev/vda -C /tmp
        tpm2 load -Q -C /tmp/primary -u /tmp/public -r /tmp/private -c /tmp/secret
        if secret=$(tpm2 unseal -c /tmp/secret -p pcr:sha256:8 2> /tmp/why); then
            say "$path opens: $secret"
        else
            say "$path does not open: $(grep -o "a policy check failed" /tmp/why)"
        fi
    else
        tpm2 createpolicy -Q --policy-pcr -l sha256:8 -L /tmp/policy
        printf honey | tpm2 create -Q -C /tmp/primary -L /tmp/policy -i - -u /tmp/public -r /tmp/private
        tar -c -f /dev/vda -C /tmp private public
        sync
        say "$path sealed"
        reboot -f
        sleep 100
    fi
"#;

#[test]
fn what_a_guest_seals_opens_after_a_reset_and_a_new_start_but_not_on_another_way_to_it() {
    let folder = tempfile::tempdir().unwrap();
    tpm::programs(folder.path());
    let seen = Scenario::new().share(folder.path()).run(&format!(
        r#"{SWTPM}
        cat > /tmp/guest << 'END'
            {WARNINGS}{TOOLS}{SEALED}
END
        truncate -s 1M /tmp/disk
        WORDS=$GUEST
        for path in long long short; do
            GUEST="$WORDS path=$path"
            guest "$(cat /tmp/guest)" --name sealed --tpm --disk path=/tmp/disk
        done
        say "state $(stat -c %a /var/lib/skep/sealed/tpm2) $(ls /var/lib/skep/sealed/tpm2)"
        say "left $(pidof swtpm)"
        "#
    ));
    seen.ended_with(&[0, 0, 0]);
    assert_eq!(seen.after("guest: TPM "), ["2 at \\_SB_.TPM_"; 4], "{seen}");
    assert_eq!(seen.count("guest: PCR 8 was zero"), 4, "{seen}");
    seen.expect("guest: long sealed");
    assert_eq!(seen.count("guest: long opens: honey"), 2, "{seen}");
    seen.expect("guest: short does not open: a policy check failed");
    seen.expect("host: state 700 tpm2-00.permall");
    seen.expect("host: left");
    let unknown = unknown_warnings(&seen.after("guest: warning "));
    assert!(unknown.is_empty(), "not on the list of docs/pc.md: {unknown:#?}\n{seen}");
}

/// Says whether the TPM answers, without the help of a tool.
const ANSWERS: &str = r#"
    answers() {
        printf '\200\001\0\0\0\014\0\0\001\173\0\010' > /tmp/random
        (exec 3<> /dev/tpm0; cat /tmp/random >&3 && head -c 20 <&3 > /tmp/answer) 2> /dev/null || true
        [ "$(wc -c < /tmp/answer 2> /dev/null)" = 20 ] && say "$1 it answers" || say "$1 it does not answer"
        rm -f /tmp/answer
    }
"#;

#[test]
fn swtpm_that_dies_is_an_event_with_an_answer_and_a_reset_starts_it_again() {
    let folder = tempfile::tempdir().unwrap();
    tpm::programs(folder.path());
    let seen = Scenario::new().share(folder.path()).run(&format!(
        r#"{SWTPM}
        cat > /tmp/guest << 'END'
            {ANSWERS}
            if [ "$(dd if=/dev/vda bs=5 count=1 2> /dev/null)" = again ]; then
                answers "after the reset"
            else
                answers "at first"
                say ready
                while [ "$(dd if=/dev/vda bs=4 count=1 iflag=direct 2> /dev/null)" != dead ]; do sleep 0.2; done
                answers "without swtpm"
                printf again | dd of=/dev/vda conv=notrunc 2> /dev/null
                sync
                reboot -f
                sleep 100
            fi
END
        # dies NAME ON-ERROR: swtpm is killed under the guest.
        dies() {{
            truncate -s 0 /tmp/disk
            truncate -s 1M /tmp/disk
            # What the guest before said is not to be taken for what this one says.
            rm -f /tmp/console
            start "$(cat /tmp/guest)" --name $1 --tpm on-error=$2 --disk path=/tmp/disk > /tmp/console &
            wait_for 120 grep -q 'guest: ready' /tmp/console
            kill -9 $(pidof swtpm)
        }}
        dies noted report
        told() {{ skep events noted | grep 'trouble  the TPM has failed'; }}
        wait_for 20 told
        printf dead | dd of=/tmp/disk conv=notrunc 2> /dev/null
        wait $! && ended=0 || ended=$?
        say "skep ended with $ended"
        grep '^guest: ' /tmp/console
        dies held pause
        paused() {{ skep list | grep -q " paused "; }}
        wait_for 20 paused && say it is paused
        skep stop --now --wait held || true
        dies gone stop
        wait $! && ended=0 || ended=$?
        say "skep ended with $ended"
        "#
    ));
    seen.ended_with(&[0, 4]);
    let told = "Z  trouble  the TPM has failed: swtpm ended (signal: 9 (SIGKILL))";
    assert!(seen.lines().any(|line| line.contains(told)), "{seen}");
    for line in [
        "guest: at first it answers",
        "guest: without swtpm it does not answer",
        "guest: after the reset it answers",
        "host: it is paused",
    ] {
        seen.expect(line);
    }
}

#[test]
fn a_tpm_of_the_host_is_the_guests_and_nobody_elses_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    tpm::programs(folder.path());
    tpm::of_the_host(folder.path());
    let seen = Scenario::new().outer_root().share(folder.path()).run(&format!(
        r#"{HOST_TPM}
        exec 5<> /dev/tpm0
        try skep run --kernel /lab/guest/vmlinux --tpm passthrough=/dev/tpm0
        exec 5>&-
        guest '{TOOLS}
            tpm2 pcrextend 16:sha256=$(printf honey | sha256sum | cut -d " " -f 1)
            say "PCR 16 $(tpm2 pcrread sha256:16 | grep -o "0x.*" | cut -c 3-)"
        ' --tpm passthrough=/dev/tpm0
        say "PCR 16 $(cat /sys/class/tpm/tpm0/pcr-sha256/16)"
        "#
    ));
    seen.ended_with(&[1, 0]);
    let busy = "skep: the TPM /dev/tpm0 is in use by another process";
    assert!(seen.after("host: said ").iter().any(|line| line.starts_with(busy)), "{seen}");
    let (guests, hosts) = (seen.after("guest: PCR 16 "), seen.after("host: PCR 16 "));
    assert!(hosts.len() == 1 && hosts[0].len() == 64 && hosts[0].contains(|c: char| c != '0'), "{seen}");
    assert_eq!(guests, hosts, "{seen}");
}

/// A guest whose secret opens only with the firmware, the kernel and the initial RAM disk that it was sealed with.
const MEASURED: &str = r#"
    mount -t securityfs securityfs /sys/kernel/security
    say "log $(($(wc -c < /sys/kernel/security/tpm0/binary_bios_measurements) > 1000))"
    say "measured $(tpm2 pcrread sha256:0,1,2,3,4,5,6,7 | grep -c "0x.*[1-9A-F]")"
    tpm2 createprimary -Q -C o -G ecc -c /tmp/primary
    if [ "$(dd if=/dev/vda bs=7 count=1 2> /dev/null)" = private ]; then
        tar -x -f /dev/vda -C /tmp
        tpm2 load -Q -C /tmp/primary -u /tmp/public -r /tmp/private -c /tmp/secret
        if secret=$(tpm2 unseal -c /tmp/secret -p pcr:sha256:0,4,7,9 2> /tmp/why); then
            say "it opens: $secret"
        else
            say "it does not open: $(grep -o "a policy check failed" /tmp/why)"
        fi
    else
        tpm2 createpolicy -Q --policy-pcr -l sha256:0,4,7,9 -L /tmp/policy
        printf honey | tpm2 create -Q -C /tmp/primary -L /tmp/policy -i - -u /tmp/public -r /tmp/private
        tar -c -f /dev/vda -C /tmp private public
        sync
        say it is sealed
        reboot -f
        sleep 100
    fi
"#;

#[test]
fn what_is_sealed_to_measured_firmware_kernel_and_initrd_opens_with_them_alone() {
    let folder = tempfile::tempdir().unwrap();
    tpm::programs(folder.path());
    firmware::put(&[firmware::CODE, firmware::VARS, firmware::LOADER], folder.path());
    let seen = Scenario::new()
        .patience(firmware::EACH_START * 3)
        .guest_firmware()
        .memory(lab::Size::mib(1536))
        .share(folder.path())
        .run(&format!(
            r#"{SWTPM}
            truncate -s 1M /tmp/disk
            measured() {{
                MEMORY=512M KERNEL=/lab/guest/vmlinuz guest "$1" --name measured --tpm --disk path=/tmp/disk \
                    --firmware /share/OVMF_CODE_4M.fd --firmware-vars /tmp/vars
            }}
            cat > /tmp/guest << 'END'
                {TOOLS}{MEASURED}
END
            measured "$(cat /tmp/guest)"
            measured "$(cat /tmp/guest)
                # Another initial RAM disk."
            "#
        ));
    seen.ended_with(&[0, 0]);
    assert_eq!([seen.count("guest: log 1"), seen.count("guest: measured 8")], [3; 2], "{seen}");
    for line in
        ["guest: it is sealed", "guest: it opens: honey", "guest: it does not open: a policy check failed"]
    {
        seen.expect(line);
    }
}
