//! What the keys of a disk mean together.

use super::table::{Given, Keys};
use crate::finding::{Finding, Problem};
use crate::keys::{DiskKey, Keyed, Of};
use crate::model::{
    Bounce, Buffers, Disk, DiskModel, DiskSource, FileDisk, Format, ModelName, OnError, Poll, Writes,
};
use crate::source::Table;
use crate::values::address::PciAddress;
use crate::values::nbd::NbdAddress;
use crate::values::path::HostPath;
use crate::values::size::DiskSize;

const NO_SOURCE_IN_FILE: &str = "Say what holds its data, as in path = \"/dev/sda\" (or nvme = \"0000:03:00.0\", a \
                                 controller that skep drives itself; nbd = \"nbd://HOST/EXPORT\", a disk on a server; \
                                 ram = \"1G\", memory of this host).";
const NO_SOURCE: &str = "Say what holds its data, as in path=/dev/sda (or nvme=0000:03:00.0, a controller that skep \
                         drives itself; nbd=nbd://HOST/EXPORT, a disk on a server; ram=1G, memory of this host).";

/// The disk that a table describes.
pub(super) fn disk(table: &Table, findings: &mut Vec<Finding>) -> Option<Disk> {
    let mut keys = Keys::of(table, findings);
    let (source_key, source) = source(&mut keys);
    let model = model(&mut keys);
    misplaced(&mut keys, source_key, model.map(DiskModel::name));
    let controller = keys.get(DiskKey::Controller).value();
    let writes = writes(&mut keys, model);
    let serial = keys.get(DiskKey::Serial).value();
    let product = keys.get(DiskKey::Product).value();
    let firmware = keys.get(DiskKey::Firmware).value();
    let on_error = keys.get(DiskKey::OnError).value();
    let boot_index = keys.get(DiskKey::BootIndex).value();
    let (source, model) = (source?, model?);
    let syntax = keys.place().syntax();
    let disk =
        Disk { source, model, controller, writes, serial, product, firmware, on_error, boot_index, syntax };
    contradictions(&disk, &mut keys);
    Some(disk)
}

/// What holds the data, and the key that says so: one of four.
fn source(keys: &mut Keys<'_, DiskKey>) -> (Option<DiskKey>, Option<DiskSource>) {
    let given = DiskKey::ALL.iter().filter(|key| key.row().of == Of::Either);
    let given: Vec<DiskKey> = given.copied().filter(|key| keys.place_of(*key).is_some()).collect();
    let path: Given<HostPath> = keys.get(DiskKey::Path);
    let nvme: Given<PciAddress> = keys.get(DiskKey::Nvme);
    let nbd: Given<NbdAddress> = keys.get(DiskKey::Nbd);
    let ram: Given<DiskSize> = keys.get(DiskKey::Ram);
    let namespace = keys.get(DiskKey::Namespace).value().unwrap_or_default();
    let poll = keys.get(DiskKey::Poll).value();
    let [key] = given[..] else {
        let problem = match given[..] {
            [one, other, ..] => Problem::NotTogether { one: one.name(), other: other.name() },
            _ => Problem::Missing {
                within: "this disk",
                key: DiskKey::Path.name(),
                hint: keys.place().choose(NO_SOURCE, NO_SOURCE_IN_FILE),
            },
        };
        let place = [nvme.place(), nbd.place(), ram.place()].into_iter().flatten().next();
        keys.found(&place.unwrap_or_else(|| keys.place()), problem);
        file(keys, None, poll);
        return (None, None);
    };
    let file = file(keys, path.value(), poll).map(DiskSource::File);
    let nvme =
        nvme.value().map(|address| DiskSource::Nvme { address, namespace, poll: poll.unwrap_or_default() });
    (Some(key), file.or(nvme).or(nbd.value().map(DiskSource::Nbd)).or(ram.value().map(DiskSource::Ram)))
}

/// A file or a device of the host, if it has a path. All of its keys are read in any case.
fn file(keys: &mut Keys<'_, DiskKey>, path: Option<HostPath>, poll: Option<Poll>) -> Option<FileDisk> {
    let format = keys.get(DiskKey::Format).value();
    let chain = keys.all(DiskKey::Chain).value().unwrap_or_default();
    let logical = keys.get(DiskKey::Logical).value();
    let preallocate = keys.get(DiskKey::Preallocate).value().unwrap_or_default();
    let bounce = keys.get(DiskKey::Bounce).value().unwrap_or_default();
    let buffers = keys.get(DiskKey::Buffers).value();
    let force = keys.get(DiskKey::Force).value().unwrap_or_default();
    Some(FileDisk { path: path?, format, chain, logical, preallocate, bounce, buffers, poll, force })
}

/// What the guest sees.
fn model(keys: &mut Keys<'_, DiskKey>) -> Option<DiskModel> {
    let name: Given<ModelName> = keys.get(DiskKey::Model);
    let queues = keys.get(DiskKey::Queues).value();
    let packed = keys.get(DiskKey::Packed).value().unwrap_or(false);
    let write_cache = keys.get(DiskKey::WriteCache).value().unwrap_or(true);
    Some(match name.or_default()? {
        ModelName::VirtioBlk => DiskModel::VirtioBlk { queues, packed, write_cache },
        ModelName::Nvme => DiskModel::Nvme { queues },
        ModelName::Ahci => DiskModel::Ahci,
        ModelName::AhciCd => DiskModel::AhciCd,
    })
}

/// Keys that mean nothing with what holds the data, or with what the guest sees, where these are known.
fn misplaced(keys: &mut Keys<'_, DiskKey>, source: Option<DiskKey>, model: Option<ModelName>) {
    for key in DiskKey::ALL {
        let Some(place) = keys.place_of(*key) else { continue };
        match (key.row().of, source, model) {
            // Whatever the data is in, it can be kept.
            _ if *key == DiskKey::Snapshot => {}
            (Of::Source(all @ [with, ..]), Some(source), _) if !all.contains(&source) => {
                keys.found(&place, Problem::OnlyWith { key: key.name(), with: with.name() });
            }
            (Of::Model(all), _, Some(model)) if !all.contains(&model) => {
                keys.not_with(&place, key.name(), &format!("model={model}"));
            }
            _ => {}
        }
    }
}

/// What becomes of the guest's writes; to a disc in a CD drive there are none.
fn writes(keys: &mut Keys<'_, DiskKey>, model: Option<DiskModel>) -> Writes {
    let readonly: Given<bool> = keys.get(DiskKey::Readonly);
    let snapshot: Given<bool> = keys.get(DiskKey::Snapshot);
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
fn contradictions(disk: &Disk, keys: &mut Keys<'_, DiskKey>) {
    if disk.on_error == Some(OnError::Ignore) && disk.writes == Writes::Refused {
        let with = if disk.model == DiskModel::AhciCd { "model=ahci-cd" } else { "readonly=on" };
        keys.contradicts(DiskKey::OnError, "on-error=ignore", with);
    }
    let DiskSource::File(file) = &disk.source else {
        if disk.writes == Writes::ThrownAway {
            keys.found(&keys.at(DiskKey::Snapshot), Problem::OnlyWith { key: "snapshot", with: "path" });
        }
        return;
    };
    if file.format == Some(Format::Vmdk) && disk.writes == Writes::Kept {
        let place = keys.at(DiskKey::Format);
        let [readonly, snapshot] = ["readonly=on", "snapshot=on"].map(|setting| place.written(setting));
        keys.found(&place, Problem::VmdkIsOnlyRead { readonly, snapshot });
    }
    match file.format {
        _ if file.chain.is_empty() => {}
        None => keys.found(&keys.at(DiskKey::Chain), Problem::OnlyWith { key: "chain", with: "format" }),
        Some(Format::Raw) => keys.contradicts(DiskKey::Chain, "chain", "format=raw"),
        Some(Format::Qcow2 | Format::Vmdk) => {}
    }
    let of_raw = match (file.format, disk.writes) {
        (Some(Format::Qcow2), _) => Some("format=qcow2"),
        (Some(Format::Vmdk), _) => Some("format=vmdk"),
        (_, Writes::ThrownAway) => Some("snapshot=on"),
        _ => None,
    };
    if let Some(with) = of_raw.filter(|_| file.logical.is_some()) {
        keys.contradicts(DiskKey::Logical, "logical", with);
    }
    let looks = match file.poll {
        None | Some(Poll::Off) => None,
        Some(Poll::Adaptive) => Some("poll=adaptive"),
        Some(Poll::On) => Some("poll=on"),
    };
    if let (Some(said), Some(with)) = (looks, of_raw.or(file.logical.map(|_| "logical"))) {
        keys.contradicts(DiskKey::Poll, said, with);
    }
    if file.bounce == Bounce::Always && file.buffers == Some(Buffers::Registered) {
        keys.contradicts(DiskKey::Buffers, "buffers=registered", "bounce=always");
    }
    let of_writable = match disk.writes {
        Writes::Refused if disk.model == DiskModel::AhciCd => Some("model=ahci-cd"),
        Writes::Refused => Some("readonly=on"),
        Writes::Kept | Writes::ThrownAway => of_raw,
    };
    if let Some(with) = of_writable.or(of_raw).filter(|_| file.preallocate) {
        keys.contradicts(DiskKey::Preallocate, "preallocate", with);
    }
}
