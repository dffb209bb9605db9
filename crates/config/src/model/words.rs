//! Choices among a few words.

/// An enum whose values are words in flags and TOML, with `NAMES`, `name()`, `FromStr` and `Display`.
macro_rules! words {
    (
        $(#[$doc:meta])*
        pub enum $name:ident, $what:literal {
            $($(#[$value_doc:meta])* $value:ident = $word:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$value_doc])* $value,)+
        }

        impl $name {
            /// The words for all values, as flags and TOML have them.
            pub const NAMES: &[&str] = &[$($word),+];
            /// The same for the help: `auto|on|off`.
            pub(crate) const CHOICE: &str = concat!($("|", $word),+).split_at(1).1;

            /// The word for this value.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$value => $word,)+
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::values::Invalid;

            fn from_str(text: &str) -> Result<$name, crate::values::Invalid> {
                match text {
                    $($word => Ok($name::$value),)+
                    _ => Err(crate::values::Invalid::Word {
                        what: $what,
                        text: text.into(),
                        valid: $name::NAMES,
                    }),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

pub(crate) use words;
