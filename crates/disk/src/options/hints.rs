//! The hints of errors, with a disk's settings as the person writes them.
//!
//! Here a setting is written as in a flag (`readonly=on`). Whoever has the description in a file has to write it in another
//! way, which only those know who read the file.

use super::error::{OpenError, Written, allowing, as_in_a_flag};
use crate::nbd::{NbdError, ONLY_READ};

impl OpenError {
    /// The whole message, with each setting that its hint names as `written` gives it.
    pub fn with_settings(&self, written: Written<'_>) -> String {
        let (whole, [here, there]) = (self.to_string(), self.endings(written));
        // Only the hint is ours to change: what is before it holds names of files, which may look like anything.
        match whole.strip_suffix(&here) {
            Some(before) => format!("{before}{there}"),
            None => whole,
        }
    }

    /// How the message ends as it is, and as it is to end.
    fn endings(&self, written: Written<'_>) -> [String; 2] {
        let hint: &str = match self {
            OpenError::Denied { hint, .. }
            | OpenError::Unsaid { hint, .. }
            | OpenError::Format { hint, .. }
            | OpenError::Options { hint, .. } => hint,
            OpenError::Nbd(NbdError::ReadOnly { .. }) => ONLY_READ,
            OpenError::NoRoom { .. } => OpenError::ROOM_LATER,
            OpenError::Wanted { cause, .. } => return cause.endings(written),
            OpenError::NotAllowed { beside, target, .. } => {
                return [allowing(*beside, target, &as_in_a_flag), allowing(*beside, target, written)];
            }
            _ => "",
        };
        [hint.to_owned(), with_settings(hint, written)]
    }
}

/// The hint with each setting in it as `written` gives it. Between backquotes are commands of other programs, which stay.
fn with_settings(hint: &str, written: Written<'_>) -> String {
    let parts = hint.split('`').enumerate().map(|(n, part)| match n % 2 {
        0 => part.split(' ').map(|word| with_setting(word, written)).collect::<Vec<String>>().join(" "),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<String>>().join("`")
}

fn with_setting(word: &str, written: Written<'_>) -> String {
    let core = word.trim_matches(|c: char| c.is_ascii_punctuation());
    let is_setting = core.split_once('=').is_some_and(|(key, value)| {
        !value.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
    });
    if is_setting { word.replacen(core, &written(core), 1) } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::super::error::Role;
    use super::*;

    fn in_a_file(setting: &str) -> String {
        setting.replace('=', " is ")
    }

    fn denied(path: &str) -> OpenError {
        let cause = io::Error::from_raw_os_error(libc::EROFS);
        OpenError::Denied { path: path.into(), cause, hint: "Open it with readonly=on." }
    }

    #[test]
    fn settings_in_hints_are_written_as_the_person_writes_them_and_names_of_files_stay() {
        let text = denied("/a readonly=on").with_settings(&in_a_file);
        assert!(text.starts_with("disk /a readonly=on: "), "{text}");
        assert!(text.ends_with("Open it with readonly is on."), "{text}");
    }

    #[test]
    fn a_hint_of_a_file_that_an_image_wants_is_written_so_as_well() {
        let wanted =
            OpenError::Wanted { image: "/i".into(), role: Role::Backing, cause: Box::new(denied("/base")) };
        assert!(wanted.with_settings(&in_a_file).ends_with("readonly is on."));
    }

    #[test]
    fn what_allows_a_file_is_written_so_whatever_its_path() {
        let target = PathBuf::from("/images/x=1 y=2");
        let error = |beside| OpenError::NotAllowed {
            image: "/images/i".into(),
            role: Role::Backing,
            name: "x=1 y=2".into(),
            beside,
            target: target.clone(),
        };
        let text = error(true).to_string();
        assert!(
            text.ends_with("chain=follow (any file beside the image) or chain=/images/x=1 y=2"),
            "{text}"
        );
        let quoted = |setting: &str| format!("<{setting}>");
        let text = error(true).with_settings(&quoted);
        assert!(
            text.ends_with("<chain=follow> (any file beside the image) or <chain=/images/x=1 y=2>"),
            "{text}"
        );
        assert!(error(false).with_settings(&quoted).ends_with("disk: <chain=/images/x=1 y=2>"));
    }

    #[test]
    fn commands_of_other_programs_and_keys_alone_stay() {
        let hint =
            "Copy it with `qemu-img convert key=on IMAGE`; format=raw (or snapshot=on) shows `queues`.";
        assert_eq!(
            with_settings(hint, &in_a_file),
            "Copy it with `qemu-img convert key=on IMAGE`; format is raw (or snapshot is on) shows `queues`."
        );
    }
}
