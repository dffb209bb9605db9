//! Which processes have a file or device of this host open.

use std::fs::Metadata;

use own::Openers;

use crate::Host;

impl Host {
    /// The processes that have a file or block device open: [`Openers::of`].
    pub fn openers(&self, file: &Metadata, which: Openers) -> Vec<String> {
        which.of(file, &self.path("/proc"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fake::FakeHost;

    #[test]
    fn a_file_that_this_process_has_open_is_found_and_another_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let facts = file.as_file().metadata().unwrap();
        let host = Host::here();
        assert_eq!(host.openers(&facts, Openers::All), ["this process itself (is it given twice?)"]);
        assert_eq!(host.openers(&facts, Openers::WithLock), [""; 0]);
        drop(file);
        assert_eq!(host.openers(&facts, Openers::All), [""; 0]);
    }

    #[test]
    fn processes_come_in_order_and_those_with_a_lock_alone_where_they_are_asked_for() {
        let fake = FakeHost::new();
        fake.file("/run/it", "");
        for (pid, name, info) in [(91, "smartd", "pos:\t0\n"), (7, "skep", "pos:\t0\nlock:\t1: FLOCK\n")] {
            fake.opens(pid, name, "/run/it");
            fake.file(format!("/proc/{pid}/fdinfo/3"), info);
        }
        let facts = fs::metadata(fake.path("/run/it")).unwrap();
        let host = fake.host();
        assert_eq!(host.openers(&facts, Openers::All), ["process 7 (skep)", "process 91 (smartd)"]);
        assert_eq!(host.openers(&facts, Openers::WithLock), ["process 7 (skep)"]);
    }
}
