//! The keys of what a VM has beside disks: assigned devices, a TPM, files in its firmware's configuration.

use super::{Kind, Of, Row, keys};
use crate::model::{OnFault, OnRequest, OnTpmError};

keys! {
    /// What can be said of an assigned device.
    pub(crate) enum AssignKey {
        Address {
            name: "address", since: "0.1", help: "its address",
            kind: Kind::Text("ADDRESS"),
        }
        Domain {
            name: "domain", since: "0.1", help: "what it translates through",
            kind: Kind::Text("NAME"), default: "guest",
            more: "Devices of the same domain share it, and \"host\" is none of theirs.",
        }
        OnFault {
            name: "on-fault", since: "0.1", help: "its own answer to faults",
            kind: Kind::Text(OnFault::CHOICE), default: "the VM's",
        }
        OnRequest {
            name: "on-request", since: "0.1",
            help: "what happens when this host wants it back, beside the one event that tells of it",
            kind: Kind::Text(OnRequest::CHOICE), default: "report",
            more: "The host wants it back when somebody unbinds it from vfio-pci or removes it, and waits for it from then on. \
                   report: nothing more, so the host waits until the VM ends. stop: the VM is stopped at once, and the device \
                   given back.",
        }
        BootIndex {
            name: "bootindex", since: "0.1", help: "its place among what the firmware boots",
            kind: Kind::Number("N"),
            more: "See boot.",
        }
        Rom {
            name: "rom", since: "0.1", help: "the option ROM that firmware finds at it: its own (on), none (off) or a file",
            kind: Kind::Text("on|off|PATH"), default: "on",
        }
    }
}

keys! {
    /// What can be said of a TPM.
    pub(crate) enum TpmKey {
        Passthrough {
            name: "passthrough", since: "0.1", help: "a TPM of this host, which nothing else may use then",
            kind: Kind::Text("PATH"), default: "emulated by swtpm",
            more: "Its PCRs already have what this host measured, and are not reset with the guest.",
        }
        OnError {
            name: "on-error", since: "0.1", help: "what happens when the TPM fails, beside the event that tells of it",
            kind: Kind::Text(OnTpmError::CHOICE), default: "report",
            more: "report: nothing more; the guest's commands fail until it is reset, and then an emulated TPM starts afresh.",
        }
    }
}

keys! {
    /// What can be said of a file in a firmware's configuration.
    pub(crate) enum FwCfgKey {
        Name {
            name: "name", since: "0.1", help: "what the guest finds it by, opt/ and something behind it",
            kind: Kind::Text("opt/NAME"),
        }
        String {
            name: "string", since: "0.1", help: "what is in it",
            kind: Kind::Text("TEXT"), of: Of::Either,
        }
        File {
            name: "file", since: "0.1", help: "the file of this host that has what is in it",
            kind: Kind::Text("PATH"), of: Of::Either,
        }
    }
}
