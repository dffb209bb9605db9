//! What the keys of a disk mean together.

use super::key::DISK;
use super::table::{Given, Keys};
use crate::finding::{Finding, Place, Problem};
use crate::model::{
    Bounce, Buffers, Chain, Disk, DiskModel, DiskSource, FileDisk, Format, ModelName, OnError, Poll, Writes,
};
use crate::source::Table;
use crate::values::address::PciAddress;
use crate::values::count::{LogicalBlock, Namespace, Queues};
use crate::values::name::ControllerName;
use crate::values::nbd::NbdAddress;
use crate::values::path::HostPath;
use crate::values::size::DiskSize;
use crate::values::text::{Firmware, Product};

const NO_SOURCE_IN_FILE: &str = "Say what holds its data, as in path = \"/dev/sda\" (or nvme = \"0000:03:00.0\", a \
                                 controller that skep drives itself; nbd = \"nbd://HOST/EXPORT\", a disk on a server; \
                                 ram = \"1G\", memory of this host).";
const NO_SOURCE: &str = "Say what holds its data, as in path=/dev/sda (or nvme=0000:03:00.0, a controller that skep \
                         drives itself; nbd=nbd://HOST/EXPORT, a disk on a server; ram=1G, memory of this host).";

/// The disk that a table describes.
pub(super) fn disk(table: &Table, findings: &mut Vec<Finding>) -> Option<Disk> {
    let mut keys = Keys::of(table, DISK, findings);
    let source = source(&mut keys);
    let model = model(&mut keys);
    let shown = Shown::read(&mut keys, model);
    let writes = writes(&mut keys, model);
    let serial = keys.get("serial").value();
    let on_error = keys.get("on-error").value();
    let boot_index = keys.get("bootindex").value();
    let Shown { controller, product, firmware } = shown;
    let (source, model) = (source?, model?);
    let syntax = keys.place().syntax();
    let disk =
        Disk { source, model, controller, writes, serial, product, firmware, on_error, boot_index, syntax };
    contradictions(&disk, &mut keys);
    Some(disk)
}

/// What holds the data: one of four, each with keys of its own.
fn source(keys: &mut Keys<'_>) -> Option<DiskSource> {
    let path: Given<HostPath> = keys.get("path");
    let nvme: Given<PciAddress> = keys.get("nvme");
    let nbd: Given<NbdAddress> = keys.get("nbd");
    let ram: Given<DiskSize> = keys.get("ram");
    let file = FileKeys::read(keys);
    let namespace: Given<Namespace> = keys.get("namespace");
    let poll: Given<Poll> = keys.get("poll");
    let given = [
        ("path", path.is_given()),
        ("nvme", nvme.is_given()),
        ("nbd", nbd.is_given()),
        ("ram", ram.is_given()),
    ];
    let given: Vec<&'static str> = given.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
    let [source] = given[..] else {
        let problem = match given[..] {
            [one, other, ..] => Problem::NotTogether { one, other },
            _ => Problem::Missing {
                within: "this disk",
                key: "path",
                hint: keys.place().choose(NO_SOURCE, NO_SOURCE_IN_FILE),
            },
        };
        let place = [nvme.place(), nbd.place(), ram.place()].into_iter().flatten().next();
        keys.found(&place.unwrap_or_else(|| keys.place()), problem);
        return None;
    };
    if source != "nvme" {
        keys.only_with("nvme", [("namespace", namespace.place())]);
    }
    if source != "path" {
        keys.only_with("path", file.places());
    }
    if !matches!(source, "path" | "nvme") {
        keys.only_with("path", [("poll", poll.place())]);
    }
    match source {
        "path" => Some(DiskSource::File(file.of(path.value()?, poll.value()))),
        "nvme" => Some(DiskSource::Nvme {
            address: nvme.value()?,
            namespace: namespace.value().unwrap_or_default(),
            poll: poll.value().unwrap_or_default(),
        }),
        "nbd" => nbd.value().map(DiskSource::Nbd),
        _ => ram.value().map(DiskSource::Ram),
    }
}

/// The keys of files and devices.
struct FileKeys {
    format: Given<Format>,
    chain: Given<Vec<Chain>>,
    logical: Given<LogicalBlock>,
    preallocate: Given<bool>,
    bounce: Given<Bounce>,
    buffers: Given<Buffers>,
    force: Given<bool>,
}

impl FileKeys {
    fn read(keys: &mut Keys<'_>) -> FileKeys {
        FileKeys {
            format: keys.get("format"),
            chain: keys.all("chain"),
            logical: keys.get("logical"),
            preallocate: keys.get("preallocate"),
            bounce: keys.get("bounce"),
            buffers: keys.get("buffers"),
            force: keys.get("force"),
        }
    }

    fn places(&self) -> [(&'static str, Option<Place>); 7] {
        [
            ("format", self.format.place()),
            ("chain", self.chain.place()),
            ("logical", self.logical.place()),
            ("preallocate", self.preallocate.place()),
            ("bounce", self.bounce.place()),
            ("buffers", self.buffers.place()),
            ("force", self.force.place()),
        ]
    }

    fn of(self, path: HostPath, poll: Option<Poll>) -> FileDisk {
        FileDisk {
            path,
            format: self.format.value(),
            chain: self.chain.value().unwrap_or_default(),
            logical: self.logical.value(),
            preallocate: self.preallocate.value().unwrap_or_default(),
            bounce: self.bounce.value().unwrap_or_default(),
            buffers: self.buffers.value(),
            poll,
            force: self.force.value().unwrap_or_default(),
        }
    }
}

/// What the guest sees; only some models have queues or a cache to choose.
fn model(keys: &mut Keys<'_>) -> Option<DiskModel> {
    let name: Given<ModelName> = keys.get("model");
    let queues: Given<Queues> = keys.get("queues");
    let packed: Given<bool> = keys.get("packed");
    let write_cache: Given<bool> = keys.get("write-cache");
    let of_virtio = [("packed", packed.place()), ("write-cache", write_cache.place())];
    let of_both = [("queues", queues.place())];
    let name = match name {
        Given::Wrong => return None,
        name => name.value().unwrap_or_default(),
    };
    let (model, with) = match name {
        ModelName::VirtioBlk => {
            let (packed, write_cache) =
                (packed.value().unwrap_or(false), write_cache.value().unwrap_or(true));
            return Some(DiskModel::VirtioBlk { queues: queues.value(), packed, write_cache });
        }
        ModelName::Nvme => (DiskModel::Nvme { queues: queues.value() }, "model=nvme"),
        ModelName::Ahci => (DiskModel::Ahci, "model=ahci"),
        ModelName::AhciCd => (DiskModel::AhciCd, "model=ahci-cd"),
    };
    let of_both = of_both.into_iter().filter(|_| name != ModelName::Nvme);
    for (key, place) in of_both.chain(of_virtio) {
        if let Some(place) = place {
            keys.not_with(&place, key, with);
        }
    }
    Some(model)
}

/// What the guest sees of models other than virtio-blk, which has none of it.
struct Shown {
    controller: Option<ControllerName>,
    product: Option<Product>,
    firmware: Option<Firmware>,
}

impl Shown {
    fn read(keys: &mut Keys<'_>, model: Option<DiskModel>) -> Shown {
        let controller: Given<ControllerName> = keys.get("controller");
        let product: Given<Product> = keys.get("product");
        let firmware: Given<Firmware> = keys.get("firmware");
        if let Some(DiskModel::VirtioBlk { .. }) = model {
            let given = [
                ("controller", controller.place()),
                ("product", product.place()),
                ("firmware", firmware.place()),
            ];
            for (key, place) in given {
                if let Some(place) = place {
                    keys.not_with(&place, key, "model=virtio-blk");
                }
            }
        }
        Shown { controller: controller.value(), product: product.value(), firmware: firmware.value() }
    }
}

/// What becomes of the guest's writes; to a disc in a CD drive there are none.
fn writes(keys: &mut Keys<'_>, model: Option<DiskModel>) -> Writes {
    let readonly: Given<bool> = keys.get("readonly");
    let snapshot: Given<bool> = keys.get("snapshot");
    let (readonly_at, snapshot_at) = (readonly.place(), snapshot.place());
    let (readonly, snapshot) = (readonly.value(), snapshot.value().unwrap_or_default());
    if model == Some(DiskModel::AhciCd) {
        let wrong = [
            ("readonly=off", readonly_at.filter(|_| readonly == Some(false))),
            ("snapshot=on", snapshot_at.filter(|_| snapshot)),
        ];
        for (key, place) in wrong {
            if let Some(place) = place {
                keys.not_with(&place, key, "model=ahci-cd");
            }
        }
        return Writes::Refused;
    }
    match (readonly.unwrap_or_default(), snapshot) {
        (false, false) => Writes::Kept,
        (true, false) => Writes::Refused,
        (readonly, true) => {
            if let Some(place) = snapshot_at.filter(|_| readonly) {
                keys.found(&place, Problem::NotTogether { one: "readonly", other: "snapshot" });
            }
            Writes::ThrownAway
        }
    }
}

/// What is right by itself and wrong together.
fn contradictions(disk: &Disk, keys: &mut Keys<'_>) {
    if disk.on_error == Some(OnError::Ignore) && disk.writes == Writes::Refused {
        let with = if disk.model == DiskModel::AhciCd { "model=ahci-cd" } else { "readonly=on" };
        keys.contradicts("on-error=ignore", with);
    }
    let DiskSource::File(file) = &disk.source else {
        if disk.writes == Writes::ThrownAway {
            keys.found(&keys.at("snapshot"), Problem::OnlyWith { key: "snapshot", with: "path" });
        }
        return;
    };
    if file.format == Some(Format::Vmdk) && disk.writes == Writes::Kept {
        let place = keys.at("format");
        let [readonly, snapshot] = ["readonly=on", "snapshot=on"].map(|setting| place.written(setting));
        keys.found(&place, Problem::VmdkIsOnlyRead { readonly, snapshot });
    }
    match file.format {
        _ if file.chain.is_empty() => {}
        None => keys.found(&keys.at("chain"), Problem::OnlyWith { key: "chain", with: "format" }),
        Some(Format::Raw) => keys.contradicts("chain", "format=raw"),
        Some(Format::Qcow2 | Format::Vmdk) => {}
    }
    let of_raw = match (file.format, disk.writes) {
        (Some(Format::Qcow2), _) => Some("format=qcow2"),
        (Some(Format::Vmdk), _) => Some("format=vmdk"),
        (_, Writes::ThrownAway) => Some("snapshot=on"),
        _ => None,
    };
    if let Some(with) = of_raw.filter(|_| file.logical.is_some()) {
        keys.contradicts("logical", with);
    }
    let looks = match file.poll {
        None | Some(Poll::Off) => None,
        Some(Poll::Adaptive) => Some("poll=adaptive"),
        Some(Poll::On) => Some("poll=on"),
    };
    if let (Some(key), Some(with)) = (looks, of_raw.or(file.logical.map(|_| "logical"))) {
        keys.contradicts(key, with);
    }
    if file.bounce == Bounce::Always && file.buffers == Some(Buffers::Registered) {
        keys.contradicts("buffers=registered", "bounce=always");
    }
    let of_writable = match disk.writes {
        Writes::Refused if disk.model == DiskModel::AhciCd => Some("model=ahci-cd"),
        Writes::Refused => Some("readonly=on"),
        Writes::Kept | Writes::ThrownAway => of_raw,
    };
    if let Some(with) = of_writable.or(of_raw).filter(|_| file.preallocate) {
        keys.contradicts("preallocate", with);
    }
}
