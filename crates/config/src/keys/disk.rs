//! The keys of a disk.

use super::{Example, Kind, Of, Row, keys};
use crate::model::ModelName::{Ahci, AhciCd, Nvme, VirtioBlk};
use crate::model::{Bounce, Buffers, Format, ModelName, OnError, Poll};

/// What comes with a file or a device of the host.
const OF_PATH: Of = Of::Source(&[DiskKey::Path]);
/// What comes with a virtio block device.
const OF_VIRTIO: Of = Of::Model(&[VirtioBlk]);
/// What comes with a disk on a controller.
const ON_CONTROLLERS: Of = Of::Model(&[Nvme, Ahci, AhciCd]);

keys! {
    /// What can be said of a disk.
    pub enum DiskKey {
        Path {
            name: "path", since: "0.1", help: "the block device or file that holds the data",
            kind: Kind::Text("PATH"), of: Of::Either,
            example: Example::Disks(&[
                (0, r#"path = "/dev/disk/by-id/ata-WD-1234""#), (1, r#"path = "/dev/sda""#), (2, r#"path = "/dev/sdb""#),
                (3, r#"path = "/images/debian.qcow2""#), (4, r#"path = "/images/data.img""#),
            ]),
        }
        Nvme {
            name: "nvme", since: "0.1", help: "the NVMe controller, which skep drives itself and which is not assigned as well",
            kind: Kind::Text("ADDRESS"), of: Of::Either,
            example: Example::Disks(&[(5, r#"nvme = "0000:03:00.0""#)]),
        }
        Nbd {
            name: "nbd", since: "0.1", help: "the server that has the data",
            kind: Kind::Text("nbd://HOST/EXPORT"), of: Of::Either,
            example: Example::Disks(&[(6, r#"nbd = "nbd://storage.example/scratch""#)]),
        }
        Ram {
            name: "ram", since: "0.1", help: "the size of a disk in this host's memory, written as that of the VM's memory",
            kind: Kind::Size, of: Of::Either,
            example: Example::Disks(&[(7, r#"ram = "1G""#)]),
        }
        Namespace {
            name: "namespace", since: "0.1", help: "which namespace of the controller",
            kind: Kind::Number("N"), default: "1", of: Of::Source(&[DiskKey::Nvme]),
            example: Example::Disks(&[(5, "namespace = 1")]),
        }
        Format {
            name: "format", since: "0.1", help: "how the file keeps the data: raw, qcow2, or vmdk (which is only read)",
            kind: Kind::Text(Format::CHOICE), default: "raw", of: OF_PATH,
            more: "Never guessed: a file that looks like an image is refused without it.",
            example: Example::Disks(&[(3, r#"format = "qcow2""#)]),
        }
        Chain {
            name: "chain", since: "0.1",
            help: "which files may be opened because the image names them, as what it stands on (backing file) or as the place \
                   of its data (data file, extents of a vmdk): follow (files in its folder; no links and no devices), the path \
                   of a file or device, or a list of these",
            kind: Kind::Texts("follow|PATH"), default: "none, whatever the image says", of: OF_PATH,
            more: "As a flag: chain=follow,chain=/images/base.",
            example: Example::Disks(&[(3, r#"chain = "follow""#)]),
        }
        Logical {
            name: "logical", since: "0.1",
            help: "show blocks of 512 bytes on a disk of larger ones; what is not whole blocks of the disk is then copied, and \
                   counted",
            kind: Kind::Number("512"), default: "the disk's own", of: OF_PATH,
            example: Example::Disks(&[(1, "logical = 512")]),
        }
        Preallocate {
            name: "preallocate", since: "0.1",
            help: "allocate the whole raw file at the start, so that it cannot run out of space later",
            kind: Kind::Switch, default: "off", of: OF_PATH,
            example: Example::Disks(&[(4, "preallocate = true")]),
        }
        Bounce {
            name: "bounce", since: "0.1",
            help: "when data is copied on its way: needed (where the disk cannot take the guest's memory as it is), or always, \
                   to compare",
            kind: Kind::Text(Bounce::CHOICE), default: "needed", of: OF_PATH,
            example: Example::Disks(&[(1, r#"bounce = "needed""#)]),
        }
        Buffers {
            name: "buffers", since: "0.1",
            help: "how the host's kernel gets at the guest's RAM: plain (page by page, for each request), or registered (all of \
                   it pinned once, which makes it present: the host can use none of it for anything else; not with bounce = \
                   \"always\")",
            kind: Kind::Text(Buffers::CHOICE), of: OF_PATH,
            default: "registered if the kernel can and RAM is wired or devices reach it, else plain",
            more: "registered needs Linux 6.12, and for requests of several pieces of RAM Linux 6.15: before, those are as with \
                   plain.",
            example: Example::Disks(&[(1, r#"buffers = "plain""#)]),
        }
        Poll {
            name: "poll", since: "0.1",
            help: "how skep learns that a request is done or made: off (by being woken), on (by looking all the time, which \
                   takes a CPU for each queue in use), adaptive (by looking for no longer than a sleep costs, while that pays \
                   and a CPU is idle)",
            kind: Kind::Text(Poll::CHOICE), default: "adaptive; of path: off",
            of: Of::Source(&[DiskKey::Path, DiskKey::Nvme]),
            more: "Not with image formats, snapshot and logical.",
            example: Example::Disks(&[(5, r#"poll = "adaptive""#)]),
        }
        Force {
            name: "force", since: "0.1",
            help: "take it although it is mounted or otherwise in use, or an image although a part of it is missing; the start \
                   says by whom, or what",
            kind: Kind::Switch, default: "off", of: OF_PATH,
            example: Example::Disks(&[(1, "force = false")]),
        }
        Model {
            name: "model", since: "0.1",
            help: "what the guest sees: virtio-blk, nvme (a namespace of an NVMe controller), ahci (a disk on a SATA \
                   controller), ahci-cd (a disc in a CD drive there, which is only read)",
            kind: Kind::Text(ModelName::CHOICE), default: "virtio-blk",
            example: Example::Disks(&[
                (0, r#"model = "virtio-blk""#), (1, r#"model = "nvme""#), (2, r#"model = "nvme""#), (3, r#"model = "ahci""#),
            ]),
        }
        Controller {
            name: "controller", since: "0.1",
            help: "the controller that it shares with other disks of this name, at most 32, which are its namespaces (1, 2 …) or \
                   ports (0, 1 …) in their order here",
            kind: Kind::Text("NAME"), of: ON_CONTROLLERS,
            default: "an NVMe controller of its own; SATA disks share controllers of 32 ports",
            more: "An NVMe controller has one serial, product, firmware and number of queues for all its disks. The \
                   name is 1 to 15 of A-Z a-z 0-9 . _ and -.",
            example: Example::Disks(&[(1, r#"controller = "fast""#), (2, r#"controller = "fast""#)]),
        }
        Queues {
            name: "queues", since: "0.1", help: "how many queues it has, 1 to 64",
            kind: Kind::Number("N"), default: "one per vCPU", of: Of::Model(&[VirtioBlk, Nvme]),
            example: Example::Disks(&[(0, "queues = 2")]),
        }
        Packed {
            name: "packed", since: "0.1",
            help: "whether its queues may be packed (VIRTIO 1.2, 2.8), for guests that know these, as Linux does since 5.0",
            kind: Kind::Switch, default: "off", of: OF_VIRTIO,
            example: Example::Disks(&[(0, "packed = false")]),
        }
        WriteCache {
            name: "write-cache", since: "0.1", help: "whether writes may be done before they are on stable storage",
            kind: Kind::Switch, default: "on, which is as the disk is", of: OF_VIRTIO,
            more: "The guest may change it (Linux: /sys/block/vda/cache_type).",
            example: Example::Disks(&[(0, "write-cache = true")]),
        }
        Readonly {
            name: "readonly", since: "0.1", help: "whether the guest may only read",
            kind: Kind::Switch, default: "off",
            example: Example::Disks(&[(0, "readonly = true")]),
        }
        Snapshot {
            name: "snapshot", since: "0.1", help: "throw the guest's changes away when the VM ends",
            kind: Kind::Switch, default: "off", of: OF_PATH,
            example: Example::Disks(&[(3, "snapshot = true")]),
        }
        Serial {
            name: "serial", since: "0.1", help: "the serial number that the guest sees, at most 20 characters",
            kind: Kind::Text("TEXT"), default: "the device's own, or a short form of a longer one",
            more: "Guests refuse two nvme controllers that show the same, so the second gets -2 behind it.",
            example: Example::Disks(&[(0, r#"serial = "WD-1234""#)]),
        }
        Product {
            name: "product", since: "0.1", help: "the model that the guest sees, at most 40 characters",
            kind: Kind::Text("TEXT"), default: "the device's own", of: ON_CONTROLLERS,
            example: Example::Disks(&[(1, r#"product = "Fast""#)]),
        }
        Firmware {
            name: "firmware", since: "0.1", help: "the firmware revision that the guest sees, at most 8 characters",
            kind: Kind::Text("TEXT"), default: "the version of skep", of: ON_CONTROLLERS,
            example: Example::Disks(&[(1, r#"firmware = "1.0""#)]),
        }
        OnError {
            name: "on-error", since: "0.1",
            help: "what happens, besides an event, when this host fails a request of the disk: report (the guest sees an error \
                   of its kind), pause (the VM is paused, the request is kept, and `skep resume` tries it again), or ignore \
                   (the guest is told that what it writes, flushes or discards went well, though it is lost; reads that fail \
                   are errors all the same; not with readonly)",
            kind: Kind::Text(OnError::CHOICE),
            default: "pause when there is no space left for the disk, report for anything else",
            more: "Even with pause the guest sees the error of a flush, or of a write that must be on stable storage at once, on \
                   an image, over NBD or through the host's page cache, where another try could go well without the data; and \
                   that of the flush with which it shuts an nvme disk down.",
            example: Example::Disks(&[(0, r#"on-error = "report""#)]),
        }
        BootIndex {
            name: "bootindex", since: "0.1", help: "its place among what the firmware boots, 0 to 65535",
            kind: Kind::Number("N"),
            more: "See boot.",
            example: Example::Disks(&[(0, "# bootindex = 1")]),
        }
    }
}
