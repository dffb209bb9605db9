//! From a VM back to the TOML that describes it.

use std::fmt::{Display, Write};

use crate::vm::Vm;

impl Vm {
    /// The file that describes this VM, with every default written out. Read again, it gives an equal VM.
    pub fn to_toml(&self) -> String {
        let mut lines = Lines(String::new());
        lines.text("name", &self.name);
        lines.bare("cpus", self.cpus);
        lines.text("memory", self.memory);
        lines.text("kernel", &self.boot.kernel);
        if let Some(initrd) = &self.boot.initrd {
            lines.text("initrd", initrd);
        }
        lines.text("cmdline", &self.boot.cmdline);
        lines.text("console", &self.console);
        let assigned: Vec<String> = self.assigned.iter().map(|assign| quoted(assign.address)).collect();
        lines.bare("assign", format_args!("[{}]", assigned.join(", ")));
        for disk in &self.disks {
            lines.0.push_str("\n[[disk]]\n");
            lines.text("path", &disk.path);
            lines.text("model", disk.model.name());
            lines.bare("readonly", disk.readonly);
            if let Some(queues) = disk.queues {
                lines.bare("queues", queues);
            }
            if let Some(serial) = &disk.serial {
                lines.text("serial", serial);
            }
        }
        lines.0
    }
}

struct Lines(String);

impl Lines {
    fn text(&mut self, key: &str, value: impl Display) {
        self.bare(key, quoted(value));
    }

    fn bare(&mut self, key: &str, value: impl Display) {
        writeln!(self.0, "{key} = {value}").expect("a String takes all text");
    }
}

/// A TOML string, escaped where needed.
fn quoted(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}
