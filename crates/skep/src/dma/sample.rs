//! Domains for tests, and what they are to look like.

use control::api::{
    Address, Audit, BackEnd, Count, Dma, Domain, DomainKind, Mapping, P2p, Permission, Range, Target,
};

fn range(first: u64, last: u64) -> Range {
    Range { first: Address(first), last: Address(last) }
}

/// 6 GiB of RAM in two segments. Two assigned devices that reach each other, and an NVMe disk that skep drives.
pub fn dma() -> Dma {
    let ram = |number: usize, first, last| Mapping {
        iova: range(first, last),
        target: Target::Ram { gpa: range(first, last), segment: Some(number) },
        offset: Address(0),
        page_size: Some(2 << 20),
        permission: Permission::ReadWrite,
    };
    let ram = || vec![ram(0, 0, 0xbfff_ffff), ram(1, 0x1_0000_0000, 0x1_bfff_ffff)];
    let bar = Mapping {
        iova: range(0xc000_0000, 0xc000_3fff),
        target: Target::Device { owner: "0000:01:00.0 BAR 0".into(), gpa: range(0xc000_0000, 0xc000_3fff) },
        offset: Address(0),
        page_size: None,
        permission: Permission::ReadWrite,
    };
    let queues = Mapping {
        iova: range(0x7f_ffff_e000, 0x7f_ffff_ffff),
        target: Target::Own { what: "NVMe <queues> & lists".into() },
        offset: Address(0),
        page_size: Some(4096),
        permission: Permission::ReadWrite,
    };
    let guest = Domain {
        name: "guest".into(),
        kind: DomainKind::Guest,
        back_end: BackEnd::Iommufd,
        groups: vec![12, 13],
        devices: vec!["0000:01:00.0".into(), "0000:02:00.0".into()],
        mappings: [ram(), vec![bar]].concat(),
        map_calls: 3,
        unmap_calls: 0,
        pinned: 6 << 30,
        p2p: P2p::Working { required: false },
        audit: Audit::Same,
        faults: Count { known: 3, unattributed: 0, complete: false },
    };
    let host = Domain {
        name: "host".into(),
        kind: DomainKind::Host,
        groups: vec![14],
        devices: vec!["0000:03:00.0".into()],
        mappings: [ram(), vec![queues]].concat(),
        map_calls: 5,
        unmap_calls: 2,
        pinned: (6 << 30) + 8192,
        p2p: P2p::Off,
        faults: Count::default(),
        ..guest.clone()
    };
    Dma { domains: vec![guest, host], pinned: (6 << 30) + 8192, other_faults: Count::default() }
}

/// Compares text with what is kept in `tests/snapshots`. With `BLESS=1` in the environment it is kept instead; look at
/// the difference before committing it.
pub fn compare(name: &str, text: &str) {
    let path = format!("{}/tests/snapshots/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{name} is other than it was. It is now:\n{text}");
}
