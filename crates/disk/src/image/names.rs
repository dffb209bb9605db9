//! Which files may be opened because an image names them.
//!
//! A name in an image is a wish of whoever made the image. It is compared with what the user allows, as text, before
//! anything on the host is touched by it.

use std::path::{Component, Path, PathBuf};

use crate::kernel::Named;
use crate::options::{Allowed, OpenError, Role};

/// A file to be opened, and at whose word.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) named: Named,
}

/// The file that the image at `image` means by `name`, if that is allowed.
pub(super) fn find(image: &Path, name: &str, role: Role, allowed: &[Allowed]) -> Result<Found, OpenError> {
    if has_driver(name) {
        return Err(OpenError::Driver { image: image.to_owned(), role, name: name.to_owned() });
    }
    let image_itself = image.canonicalize().or_else(|_| std::path::absolute(image));
    let folder = image_itself.as_deref().ok().and_then(Path::parent).unwrap_or(Path::new("/"));
    let target = normal(&folder.join(name));
    // Nobody is to allow this first.
    if role != Role::Extent && image_itself.as_ref().is_ok_and(|itself| *itself == target) {
        return Err(OpenError::Loop { image: image.to_owned(), role, path: target });
    }
    let stated = |allowed: &Allowed| match allowed {
        Allowed::File(path) if is(path, &target) => Some(path.clone()),
        Allowed::File(_) | Allowed::SameFolder => None,
    };
    if let Some(path) = allowed.iter().find_map(stated) {
        return Ok(Found { path, named: Named::ByTheUser });
    }
    let beside = target.parent() == Some(folder) && target.file_name().is_some();
    if beside && allowed.contains(&Allowed::SameFolder) {
        return Ok(Found { path: target, named: Named::ByAnImage });
    }
    Err(OpenError::NotAllowed { image: image.to_owned(), role, name: name.to_owned(), beside, target })
}

/// Whether QEMU takes the name for a driver's address (`nbd:`, `json:`, `file:`), not for a path.
pub(crate) fn has_driver(name: &str) -> bool {
    name.find([':', '/']).is_some_and(|at| name.as_bytes()[at] == b':')
}

/// Whether the user's path is this one, by its text or by where it leads.
fn is(path: &Path, target: &Path) -> bool {
    std::path::absolute(path).is_ok_and(|path| normal(&path) == target)
        || path.canonicalize().is_ok_and(|path| path == target)
}

/// An absolute path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(part) => normal.push(part),
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, allowed: &[Allowed]) -> Result<(PathBuf, Named), String> {
        find(Path::new("/nowhere/images/top.qcow2"), name, Role::Backing, allowed)
            .map(|Found { path, named }| (path, named))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_opened_because_an_image_names_it_unless_the_user_says_so() {
        for name in ["base", "/etc/shadow", "../base", "./base", "sub/base", "/nowhere/images/base"] {
            let error = found(name, &[]).unwrap_err();
            assert!(error.contains(&format!("{name:?}")) && error.contains("top.qcow2"), "{error}");
            assert!(error.contains("chain=/"), "it says how to allow it: {error}");
        }
    }

    #[test]
    fn the_same_folder_is_the_same_folder_and_nothing_else() {
        let beside = || Ok(("/nowhere/images/base".into(), Named::ByAnImage));
        for name in ["base", "./base", "/nowhere/images/base", "../images/base"] {
            assert_eq!(found(name, &[Allowed::SameFolder]), beside(), "{name}");
        }
        for name in
            ["/etc/shadow", "../base", "sub/base", ".", "..", "/", "/nowhere/images", "sub/../../base"]
        {
            let error = found(name, &[Allowed::SameFolder]).unwrap_err();
            assert!(!error.contains("follow"), "this would not allow it: {error}");
        }
    }

    #[test]
    fn an_image_that_names_itself_is_told_so_and_not_how_to_allow_it() {
        for name in ["top.qcow2", "./top.qcow2", "/nowhere/images/top.qcow2"] {
            for allowed in [&[][..], &[Allowed::SameFolder]] {
                let error = found(name, allowed).unwrap_err();
                assert!(error.contains("stands on itself") && !error.contains("chain="), "{error}");
            }
        }
    }

    #[test]
    fn a_file_that_the_user_states_is_opened_at_the_users_word() {
        let stated = Allowed::File("/nowhere/base".into());
        for name in ["/nowhere/base", "../base", "/nowhere/images/../base"] {
            assert_eq!(
                found(name, &[Allowed::SameFolder, stated.clone()]),
                Ok(("/nowhere/base".into(), Named::ByTheUser))
            );
        }
        found("base", &[stated]).unwrap_err();
    }

    #[test]
    fn an_address_of_a_driver_is_no_file_whatever_is_allowed() {
        let allowed = [Allowed::SameFolder, Allowed::File("/nowhere/images/nbd:x".into())];
        for name in [
            "nbd:x",
            "json:{\"driver\":\"raw\"}",
            "nbd://localhost/x",
            "file:base",
            "file:/etc/shadow",
            "a:b",
        ] {
            let error = found(name, &allowed).unwrap_err();
            assert!(error.contains("driver"), "{error}");
        }
        assert!(found("./a:b", &allowed).is_ok());
    }
}
