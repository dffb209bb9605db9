//! What becomes of the firmware's variables when skep is killed while they are written.

mod scenario;

use std::fs;

use boot::firmware::{Damaged, Variable, variables};
use scenario::Scenario;
use scenario::firmware::{CODE, EACH_START, Packaged, VARS, put};

/// How often the file is looked at while it is written.
const LOOKS: usize = 200;
/// Each of the guest's variables with how many lines it has.
const WRITTEN: [(&str, usize); 3] = [("Small", 2), ("Middle", 30), ("Large", 250)];

/// Says what three variables hold, and then writes them over and over, if it is to.
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
    n=1000001
    for name in Small Middle Large; do
        set -- $(dd if=$vars/$name-$guid bs=4 skip=1 2> /dev/null | sort | uniq -c)
        echo "guest: $name $*"
        [ ${2:-0} -lt $n ] || n=$(($2 + 1))
    done
    if grep -q step=write /proc/cmdline; then
        echo "guest: writes"
        while :; do
            write Small $n 2
            write Middle $n 30
            write Large $n 250
            echo "guest: round $n"
            n=$((n + 1))
        done
    fi
    echo "guest: read"
"#;

/// What both hosts have.
const HOST: &str = r#"
    cat > /tmp/script << 'END'
GUEST
END
    lab-initrd /tmp/script /tmp/initrd
    # Stops skep. A thread that is in the kernel goes on until it leaves it.
    stop() {
        kill -STOP $skep || return 1
        while grep -L '^State:.[TZ]' /proc/$skep/task/*/status 2> /dev/null | grep -q .; do :; done
    }
    # uefi VARS STEP: a guest with this file of variables.
    uefi() {
        exec skep run --name uefi --memory 256M --firmware /share/${CODE:-OVMF_CODE_4M.fd} --firmware-vars $1 --kernel /lab/guest/vmlinuz \
            --initrd /tmp/initrd --cmdline "step=$2 $GUEST" < /dev/null 2>&1
    }
"#;

fn host(script: &str) -> String {
    format!("{}{script}", HOST.replace("GUEST\nEND", &format!("{GUEST}\nEND")))
}

/// Which round each variable is of, if the store is whole: all lines of a variable are of one round.
fn rounds(store: &[u8], written: [(&str, usize); 3]) -> Result<[Option<u32>; 3], String> {
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
    Ok([round(written[0])?, round(written[1])?, round(written[2])?])
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
            stop
            cp /tmp/vars /share/look-$n
            kill -CONT $skep
            sleep 0.$((n * 7919 % 4))$((n * 104729 % 10))
        done
        wait_for 380 grep -q "guest: round 1000005" /tmp/out
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
        // Without its header, the firmware makes all anew.
        assert_eq!(&store[0x28..0x2c], b"_FVH", "{name}");
        let now = rounds(&store, WRITTEN).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert!(
            now.iter().zip(&before).all(|(now, before)| now >= before),
            "{name}: {now:?} after {before:?}"
        );
        before = now;
    }
    assert!(before[2] >= Some(1_000_005), "not all that was seen to be written is there: {before:?}");
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

/// How often skep is killed by each of the two hosts below.
const KILLS: usize = 100;

/// Kills one skep after the other at some moment while its guest writes. Each starts with the variables that the kill before left.
fn kills(seed: usize) {
    let folder = tempfile::tempdir().unwrap();
    put(&[CODE, VARS], folder.path());
    let seen =
        Scenario::new().patience(EACH_START * KILLS as u32 / 4).guest_firmware().share(folder.path()).run(
            &host(
                &r#"
            for n in $(seq KILLS); do
                ( uefi /tmp/vars write ) > /tmp/out &
                wait_for 380 grep -q "guest: writes" /tmp/out || { cat /tmp/out; exit 1; }
                sleep $(((n * 7919 + SEED) % 4)).$(((n * 104729 + SEED) % 10))
                kill -9 $(pidof skep)
                wait $! || true
                cp /tmp/vars /share/killed-$n
                say start $n
                grep "^guest: [A-Z]" /tmp/out
            done
            say start $((n + 1))
            ( uefi /tmp/vars read )
            "#
                .replace("KILLS", &KILLS.to_string())
                .replace("SEED", &seed.to_string()),
            ),
        );
    let lines: Vec<&str> = seen.lines().collect();
    let of_start = |n: usize| {
        let begins = format!("host: start {n}");
        let at = lines.iter().position(|line| *line == begins).unwrap_or_else(|| panic!("{begins}\n{seen}"));
        let end = lines[at + 1..].iter().position(|line| line.starts_with("host: start"));
        &lines[at + 1..end.map_or(lines.len(), |end| at + 1 + end)]
    };
    let mut before = [None; 3];
    for n in 1..=KILLS {
        let store = fs::read(folder.path().join(format!("killed-{n}"))).unwrap();
        let now = rounds(&store, WRITTEN).unwrap_or_else(|why| panic!("kill {n}: {why}"));
        assert!(
            now.iter().zip(&before).all(|(now, before)| now >= before),
            "kill {n}: {now:?} after {before:?}"
        );
        before = now;
        // The firmware, and the guest behind it, at the next start.
        let read = of_start(n + 1);
        for ((name, lines), round) in WRITTEN.iter().zip(now) {
            let wanted = match round {
                Some(round) => format!("guest: {name} {lines} {round}"),
                None => format!("guest: {name}"),
            };
            assert!(read.contains(&wanted.as_str()), "after kill {n}: no line {wanted:?} in {read:?}");
        }
    }
    println!("{KILLS} kills, rounds at the end: {before:?}");
}

#[test]
#[ignore = "takes half an hour"]
fn the_firmware_accepts_two_hundred_stores_that_kills_left_with_each_variable_old_or_new() {
    std::thread::scope(|scope| {
        scope.spawn(|| kills(1));
        scope.spawn(|| kills(2));
    });
}

/// OVMF of 2 MiB, whose store is four times smaller than that of 4 MiB and takes as much less time to clear up.
const SMALL: [Packaged; 2] = [
    ("ovmf", "./usr/share/OVMF/OVMF_CODE.fd", "OVMF_CODE.fd"),
    ("ovmf", "./usr/share/OVMF/OVMF_VARS.fd", "OVMF_VARS.fd"),
];
/// Where its second copy is, and its first variable (OvmfPkg/VarStore.fdf.inc).
const SMALL_HALF: usize = 0x1_0000;
const FIRST: usize = 0x64;
/// What it holds: more than a block, so that it is in pieces while the blocks are written anew one by one.
const HELD: [(&str, usize); 3] = [("Small", 2), ("Middle", 30), ("Large", 900)];
/// How much of its 56 KiB is used: less than it needs for a variable of full length is left, and it will clear up.
const USED: usize = 0xc800;

/// A store for variables that is full of deleted ones, of which a few are there: what years of updates leave.
fn used_up(template: &[u8]) -> Vec<u8> {
    const GUID: [u8; 16] =
        [0x79, 0xfc, 0xc8, 0xcf, 0x2e, 0xbe, 0xdc, 0x4d, 0x97, 0xf0, 0x9f, 0x98, 0xbf, 0xe2, 0x98, 0xa0];
    const ADDED: u8 = 0x3f;
    const DELETED: u8 = 0x3d;
    let mut store = template.to_vec();
    let mut put = |at: usize, name: &str, state: u8, data: &[u8]| {
        // AUTHENTICATED_VARIABLE_HEADER: kept when the power is off, for boot and afterwards.
        let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let [name_len, data_len] = [&name[..], data].map(|bytes| (bytes.len() as u32).to_le_bytes());
        let header =
            [&[0xaa, 0x55, state, 0, 7, 0, 0, 0][..], &[0; 28], &name_len, &data_len, &GUID].concat();
        let variable = [&header[..], &name, data].concat();
        assert!(store[at..at + variable.len()].iter().all(|byte| *byte == 0xff), "it is used already");
        store[at..at + variable.len()].copy_from_slice(&variable);
        (at + variable.len()).next_multiple_of(4)
    };
    let mut at = FIRST;
    for (name, lines) in HELD {
        at = put(at, name, ADDED, "1000007\n".repeat(lines).as_bytes());
        while at < FIRST + USED * (1 + usize::from(name == "Large")) / 2 {
            at = put(at, "Old", DELETED, &[0x5a; 2000]);
        }
    }
    store
}

#[test]
fn a_store_that_is_used_up_is_cleared_up_at_the_next_start_and_whole_at_each_moment_of_it() {
    let folder = tempfile::tempdir().unwrap();
    put(&SMALL, folder.path());
    let path = |name: &str| folder.path().join(name);
    let full = used_up(&fs::read(path(SMALL[1].2)).unwrap());
    let whole = Ok([Some(1_000_007); 3]);
    assert_eq!(rounds(&full, HELD), whole);
    fs::write(path("full"), &full).unwrap();
    let looks = || {
        let names = (1..).map(|n| path(&format!("look-{n}")));
        names.map_while(|name| fs::read(name).ok())
    };
    let seen = Scenario::new().patience(EACH_START * 2).guest_firmware().share(folder.path()).run(&host(
        r#"
        CODE=OVMF_CODE.fd
        cp /share/full /tmp/vars
        ( uefi /tmp/vars read ) > /tmp/out &
        wait_for 60 pidof skep > /dev/null
        skep=$(pidof skep)
        n=1
        cp /tmp/vars /tmp/look
        until grep -q "guest: read" /tmp/out || ! stop; do
            # What a kill would leave at this moment.
            cmp -s /tmp/vars /tmp/look || { cp /tmp/vars /tmp/look; cp /tmp/look /share/look-$n; n=$((n + 1)); }
            kill -CONT $skep
            sleep 0.2
        done
        wait
        cat /tmp/out
        cp /tmp/vars /share/after
        "#,
    ));
    let of_round = HELD.map(|(name, lines)| format!("guest: {name} {lines} 1000007"));
    let finds_all = |seen: &scenario::Seen| {
        for line in &of_round {
            assert!(seen.lines().any(|seen| seen == line), "{line}\n{seen}");
        }
    };
    finds_all(&seen);
    let after = fs::read(path("after")).unwrap();
    assert_eq!(rounds(&after, HELD), whole);
    assert!(after[FIRST + USED / 2..FIRST + USED].iter().all(|byte| *byte == 0xff), "it was not cleared up");
    // As the firmware will find it: while it clears up, in its second copy.
    for store in looks() {
        assert_eq!(rounds(&store, HELD), whole);
    }
    // In the first half, where it reads them, a variable is torn.
    let large = "1000007\n".repeat(900);
    let torn = |store: &[u8]| !store[..SMALL_HALF].windows(large.len()).any(|part| part == large.as_bytes());
    let in_between: Vec<Vec<u8>> = looks().filter(|store| torn(store)).collect();
    println!("{} looks, {} of them in between", looks().count(), in_between.len());
    let moment = in_between.get(in_between.len() / 2).expect("no look was in between");

    // The firmware itself goes on from there.
    fs::write(path("moment"), moment).unwrap();
    let seen = Scenario::new().patience(EACH_START).guest_firmware().share(folder.path()).run(&host(
        r#"
        CODE=OVMF_CODE.fd
        cp /share/moment /tmp/vars
        ( uefi /tmp/vars read )
        cp /tmp/vars /share/recovered
        "#,
    ));
    finds_all(&seen);
    assert_eq!(rounds(&fs::read(path("recovered")).unwrap(), HELD), whole);
}
