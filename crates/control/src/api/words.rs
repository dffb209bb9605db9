//! Sets of words that are known beforehand. A later version may have more of them (docs/control.md), and what one of those says
//! is no mistake.

/// An enum whose values are words in JSON and for people, with `Display`. It has one value more, for all words that are not known.
macro_rules! words {
    (
        $(#[$doc:meta])*
        pub enum $name:ident {
            $($(#[$value_doc:meta])* $value:ident = $word:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        pub enum $name {
            $($(#[$value_doc])* #[serde(rename = $word)] $value,)+
            /// A word of a later version.
            #[serde(other, rename = "unknown")]
            #[cfg_attr(test, schemars(skip))]
            Unknown,
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $($name::$value => $word,)+
                    $name::Unknown => "unknown",
                })
            }
        }
    };
}

pub(super) use words;
