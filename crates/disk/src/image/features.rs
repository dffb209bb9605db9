//! What a qcow2 header can ask of who reads or writes the image, and what of it skep does.
//!
//! One table, for everything in which a reader that does not know it would see other data than is there. What is not
//! in it is refused, too: the format may grow.

use super::unfit::Unfit;

/// The mark of an image whose data is in another file.
pub(super) const DATA_FILE: u64 = 1 << 2;

/// A part of the header that says how data is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    /// "version".
    Version,
    /// "crypt_method".
    Encryption,
    /// A bit of "incompatible_features".
    Incompatible,
    /// "compression_type"; 0 where there is none.
    Compression,
}

/// What skep does with a feature.
enum Answer {
    Done,
    Refused {
        /// What is said of the image that has it.
        what: &'static str,
        hint: &'static str,
    },
}

use Answer::{Done, Refused};

const CONVERT: &str = "Copy it into an image without with `qemu-img convert -O qcow2 IMAGE COPY`.";
const DECRYPT: &str = "Copy it with its key into a plain image: `qemu-img convert --object secret,id=key,file=KEYFILE \
                       --image-opts driver=qcow2,encrypt.key-secret=key,file.filename=IMAGE -O qcow2 COPY`. Or keep \
                       the plain image on an encrypted file system.";
const UNKNOWN: &str = "A newer program wrote it; copy it into a plain image there, as with `qemu-img convert -O qcow2 \
                       -o compat=1.1 IMAGE COPY`.";

const FEATURES: &[(Field, u32, Answer)] = &[
    (
        Field::Version,
        1,
        Refused {
            what: "it is of version 1 of the format (qcow)",
            hint: "Copy it with `qemu-img convert -f qcow -O qcow2 IMAGE COPY`.",
        },
    ),
    (Field::Version, 2, Done),
    (Field::Version, 3, Done),
    (Field::Encryption, 0, Done),
    (Field::Encryption, 1, Refused { what: "it is encrypted with AES", hint: DECRYPT }),
    (Field::Encryption, 2, Refused { what: "it is encrypted with LUKS", hint: DECRYPT }),
    (
        Field::Incompatible,
        0,
        Refused {
            what: "it was not closed by the program that wrote it last, and its reference counts may be wrong (dirty bit)",
            hint: "If no program uses it any more, repair it with `qemu-img check -r all IMAGE`.",
        },
    ),
    (
        Field::Incompatible,
        1,
        Refused {
            what: "a program found it damaged and marked it so (corrupt bit)",
            hint: "Repair it with `qemu-img check -r all IMAGE`, or take it from a copy.",
        },
    ),
    (Field::Incompatible, DATA_FILE.trailing_zeros(), Done),
    // Which one it is, the next field says.
    (Field::Incompatible, 3, Done),
    (Field::Incompatible, 4, Refused { what: "it has extended L2 entries (subclusters)", hint: CONVERT }),
    (Field::Compression, 0, Done),
    (Field::Compression, 1, Refused { what: "it is compressed with zstd", hint: CONVERT }),
];

/// Whether a header says anything that skep does not do; all of it is named. `named` has the image's own names for
/// incompatible features.
pub(super) fn judge(said: &[(Field, u32)], named: impl Fn(u32) -> Option<String>) -> Option<Unfit> {
    let mut refused = Vec::new();
    for (field, value) in said {
        let known = FEATURES.iter().find(|(of, which, _)| (of, which) == (field, value));
        match known {
            Some((_, _, Done)) => {}
            Some((_, _, Refused { what, hint })) => refused.push(((*what).to_owned(), *hint)),
            None => refused.push((unknown(*field, *value, named(*value)), UNKNOWN)),
        }
    }
    let marked = said.contains(&(Field::Incompatible, 3));
    if marked && said.contains(&(Field::Compression, 0)) {
        refused.push((
            "it is marked as compressed in another way than type 0, and says type 0".to_owned(),
            CONVERT,
        ));
    }
    let hint = refused.first()?.1;
    let what: Vec<String> = refused.into_iter().map(|(what, _)| what).collect();
    Some(Unfit { what: what.join("; "), hint })
}

fn unknown(field: Field, value: u32, name: Option<String>) -> String {
    match (field, name) {
        (Field::Version, _) => format!("it is of version {value} of qcow2, which is not known here"),
        (Field::Encryption, _) => format!("it has the encryption {value}, which is not known here"),
        (Field::Compression, _) => format!("it is compressed in a way not known here (type {value})"),
        (Field::Incompatible, Some(name)) => format!("it has the feature {name:?}, which is not known here"),
        (Field::Incompatible, None) => {
            format!("it has the incompatible feature {value}, which is not known here")
        }
    }
}
