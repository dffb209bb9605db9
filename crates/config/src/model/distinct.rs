//! Lists without repetition.

use std::ops::Deref;

use crate::values::Repeated;

/// Something of which a VM may have several, but each only once.
pub trait Identified {
    /// What makes it the same thing as another one, in words: "disk /dev/sda". `None` when it is like no other.
    fn identity(&self) -> Option<String>;
}

/// A list in which nothing is twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distinct<T>(Vec<T>);

impl<T> Default for Distinct<T> {
    fn default() -> Distinct<T> {
        Distinct(Vec::new())
    }
}

impl<T: Identified> TryFrom<Vec<T>> for Distinct<T> {
    type Error = Repeated;

    fn try_from(items: Vec<T>) -> Result<Distinct<T>, Repeated> {
        let mut seen = std::collections::HashSet::new();
        match items.iter().filter_map(T::identity).find(|identity| !seen.insert(identity.clone())) {
            Some(what) => Err(Repeated { what }),
            None => Ok(Distinct(items)),
        }
    }
}

impl<T: Identified> Distinct<T> {
    /// The items without those that are there a second time.
    pub(crate) fn first_of_each(items: impl Iterator<Item = T>) -> Distinct<T> {
        let mut seen = std::collections::HashSet::new();
        Distinct(items.filter(|item| item.identity().is_none_or(|identity| seen.insert(identity))).collect())
    }
}

impl<T> Deref for Distinct<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'a, T> IntoIterator for &'a Distinct<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Assign;

    #[test]
    fn a_list_that_repeats_an_entry_cannot_be_made() {
        let assign = |text: &str| Assign::new(text.parse().unwrap());
        assert!(Distinct::try_from(vec![assign("01:00.0"), assign("01:00.1")]).is_ok());
        let error = Distinct::try_from(vec![assign("01:00.0"), assign("0000:01:00.0")]).unwrap_err();
        assert!(error.to_string().contains("PCI device 0000:01:00.0"), "{error}");
    }
}
