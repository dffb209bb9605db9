//! What becomes of the firmware's variables when skep is killed while they are written.

mod scenario;

use std::fs;

use boot::firmware::{Damaged, Variable, variables};
use scenario::Scenario;
use scenario::firmware::{CODE, EACH_START, VARS, put};

/// How often the file is looked at while it is written.
const LOOKS: usize = 200;
/// Each of the guest's variables with how many lines it has.
const WRITTEN: [(&str, usize); 3] = [("Small", 2), ("Middle", 30), ("Large", 250)];
/// Where the firmware's second copy is, of what it is just clearing up (OVMF of 4 MiB: OvmfPkg/VarStore.fdf.inc).
const SPARE: usize = 0x4_2000;

/// Writes three variables over and over, or says what they hold.
const GUEST: &str = r#"
    guid=cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0
    vars=/sys/firmware/efi/efivars
    modprobe efivarfs
    mount -t efivarfs efivarfs $vars
    write() {
        { printf '\7\0\0\0'; yes $2 | head -n $3; } > /tmp/value
        dd if=/tmp/value of=$vars/$1-$guid bs=64k 2> /dev/null
    }
    echo
    if grep -q step=write /proc/cmdline; then
        echo "guest: writes"
        n=1000001
        while :; do
            write Small $n 2
            write Middle $n 30
            write Large $n 250
            n=$((n + 1))
        done
    fi
    for name in Small Middle Large; do
        set -- $(dd if=$vars/$name-$guid bs=4 skip=1 2> /dev/null | sort | uniq -c)
        echo "guest: $name $*"
    done
    echo "guest: read"
"#;

/// What both hosts have.
const HOST: &str = r#"
    cat > /tmp/script << 'END'
GUEST
END
    lab-initrd /tmp/script /tmp/initrd
    # uefi VARS STEP: a guest with this file of variables.
    uefi() {
        exec skep run --name uefi --memory 256M --firmware /share/OVMF_CODE_4M.fd --firmware-vars $1 --kernel /lab/guest/vmlinuz \
            --initrd /tmp/initrd --cmdline "step=$2 $GUEST" < /dev/null 2>&1
    }
"#;

fn host(script: &str) -> String {
    format!("{}{script}", HOST.replace("GUEST\nEND", &format!("{GUEST}\nEND")))
}

/// Which round each variable is of, if the store is whole: all lines of a variable are of one round.
fn rounds(store: &[u8]) -> Result<[Option<u32>; 3], String> {
    let there = variables(store).map_err(|Damaged { at, why }| format!("byte {at}: {why}"))?;
    let round = |(name, lines): (&str, usize)| {
        let Some(Variable { data, .. }) = there.iter().find(|variable| variable.name == name) else {
            return Ok(None);
        };
        let text = std::str::from_utf8(data).map_err(|_| format!("{name} is no text"))?;
        let first = text.lines().next().unwrap_or_default();
        if text != format!("{first}\n").repeat(lines) {
            return Err(format!("{name} is of several rounds, or not whole"));
        }
        first.parse().map(Some).map_err(|_| format!("{name} is {first:?}"))
    };
    Ok([round(WRITTEN[0])?, round(WRITTEN[1])?, round(WRITTEN[2])?])
}

#[test]
fn variables_are_old_or_new_and_never_half_whenever_skep_is_killed_while_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    put(&[CODE, VARS], folder.path());
    let path = |name: &str| folder.path().join(name);
    let seen = Scenario::new().patience(EACH_START * 3).guest_firmware().share(folder.path()).run(&host(
        &r#"
        ( uefi /tmp/vars write ) > /tmp/out &
        wait_for 380 grep -q "guest: writes" /tmp/out || { cat /tmp/out; exit 1; }
        skep=$(pidof skep)
        for n in $(seq LOOKS); do
            # What a kill would leave at this moment.
            kill -STOP $skep
            cp /tmp/vars /share/look-$n
            kill -CONT $skep
            sleep 0.$((n * 7919 % 4))$((n * 104729 % 10))
        done
        kill -9 $skep
        cp /tmp/vars /share/killed
        say killed
        "#
        .replace("LOOKS", &LOOKS.to_string()),
    ));
    seen.expect("host: killed");
    let names = (1..=LOOKS).map(|n| format!("look-{n}")).chain(["killed".to_owned()]);
    let mut before = [None; 3];
    for name in names {
        let store = fs::read(path(&name)).unwrap();
        // While the firmware clears up, its second copy is whole, and it goes on with that.
        let now = rounds(&store).or_else(|why| {
            rounds(&store[SPARE..]).map_err(|other| format!("{name}: {why}; the second copy: {other}"))
        });
        let now = now.unwrap();
        assert!(
            now.iter().zip(&before).all(|(now, before)| now >= before),
            "{name}: {now:?} after {before:?}"
        );
        before = now;
    }
    assert!(before[2] > Some(1_000_003), "the guest wrote too little to see anything: {before:?}");
    println!("rounds: {before:?}");

    // The firmware itself reads what kills left.
    fs::copy(path("killed"), path("first")).unwrap();
    fs::copy(path("look-150"), path("second")).unwrap();
    let seen = Scenario::new().patience(EACH_START * 2).guest_firmware().share(folder.path()).run(&host(
        r#"
        for name in first second; do
            cp /share/$name /tmp/$name
            ( uefi /tmp/$name read )
        done
        "#,
    ));
    assert_eq!(seen.count("guest: read"), 2, "{seen}");
    let of_killed = WRITTEN.iter().zip(before).map(|((name, lines), round)| {
        format!("guest: {name} {lines} {}", round.expect("three rounds were written"))
    });
    for line in of_killed {
        assert!(seen.lines().any(|seen| seen == line), "{line}\n{seen}");
    }
    for (name, lines) in WRITTEN {
        let whole = seen.lines().filter(|line| line.starts_with(&format!("guest: {name} {lines} ")));
        assert_eq!(whole.count(), 2, "{name}\n{seen}");
    }
}
