//! What apt would do, by its own words: asked before anything is installed.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// What an installation would do.
#[derive(Debug, PartialEq, Default)]
pub struct Plan {
    /// Packages that come, or come in a newer version.
    pub installs: Vec<String>,
    /// Installed packages that would go.
    pub removes: Vec<String>,
    /// What is to be downloaded, in bytes.
    pub download: u64,
}

impl Plan {
    /// Asks apt. Needs no root and changes nothing.
    pub fn of(packages: &[&str]) -> Result<Plan> {
        let simulation = ask(&["-s"], packages)?;
        let uris = ask(&["--print-uris"], packages)?;
        Ok(Plan::parse(&simulation, &uris))
    }

    /// Out of what `apt-get -s install` and `apt-get --print-uris install` say.
    fn parse(simulation: &str, uris: &str) -> Plan {
        let named = |action: &str| {
            let lines = simulation.lines().filter_map(|line| line.strip_prefix(action));
            lines.filter_map(|rest| Some(rest.split_whitespace().next()?.to_owned())).collect()
        };
        // 'URI' FILE SIZE HASH
        let size = |line: &str| line.strip_prefix('\'')?.split_whitespace().nth(2)?.parse::<u64>().ok();
        Plan {
            installs: named("Inst "),
            removes: named("Remv "),
            download: uris.lines().filter_map(size).sum(),
        }
    }

    /// What stands in the way of `wanted`: packages that somebody has installed are never removed for them.
    pub fn refusal(&self, wanted: &[&str]) -> Option<String> {
        if self.removes.is_empty() {
            return None;
        }
        let (wanted, removes) = (wanted.join(" "), self.removes.join(" "));
        Some(format!(
            "to install {wanted}, apt would remove {removes} from this machine, so nothing was installed. \
             If you can do without, run as root: apt-get remove {removes}. Otherwise install versions of {wanted} \
             that go with it (apt-cache policy {wanted} shows which there are)"
        ))
    }

    /// What is going to happen, in a line.
    pub fn announcement(&self, wanted: &[&str]) -> String {
        let others = self.installs.iter().filter(|name| !wanted.contains(&name.as_str())).count();
        let others = match others {
            0 => String::new(),
            1 => " and one package that they need".to_owned(),
            _ => format!(" and {others} packages that they need"),
        };
        format!("installing {}{others}: {} to download", wanted.join(", "), megabytes(self.download))
    }
}

/// A size as people say it.
fn megabytes(bytes: u64) -> String {
    match bytes {
        0 => "nothing".to_owned(),
        1..1_000_000 => "less than 1 MB".to_owned(),
        _ => format!("{} MB", bytes.div_ceil(1_000_000)),
    }
}

fn ask(how: &[&str], packages: &[&str]) -> Result<String> {
    let output = Command::new("apt-get")
        .env("LC_ALL", "C")
        .args(how)
        .args(["-o", "Debug::NoLocking=1", "-y", "install", "--no-install-recommends"])
        .args(packages)
        .output()
        .context("cannot start apt-get")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = errors.lines().filter_map(|line| line.strip_prefix("E: ")).collect();
        bail!("apt-get cannot install {}: {}", packages.join(" "), errors.join("; "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded on Debian 12.
    const SIMULATION: &str = "\
Reading package lists...
Building dependency tree...
Reading state information...
The following packages will be REMOVED:
  busybox-static
The following NEW packages will be installed:
  busybox
0 upgraded, 1 newly installed, 1 to remove and 80 not upgraded.
Remv busybox-static [1:1.35.0-4+deb12u1+b1]
Inst busybox (1:1.35.0-4+deb12u1+b1 Debian:12.14/oldstable [amd64])
Conf busybox (1:1.35.0-4+deb12u1+b1 Debian:12.14/oldstable [amd64])
";
    const URIS: &str = "\
Need to get 452 kB of archives.
After this operation, 1235 kB disk space will be freed.
'http://mirror.example/debian/pool/main/b/busybox/busybox_1.35.0-4%2bdeb12u1%2bb1_amd64.deb' busybox_1%3a1.35.0-4+deb12u1+b1_amd64.deb 452120 MD5Sum:9868385b599b31db1379edd0221a0020
";
    /// Recorded there when everything was installed.
    const NOTHING: &str = "\
Reading package lists...
nvme-cli is already the newest version (2.4+really2.3-3).
0 upgraded, 0 newly installed, 0 to remove and 80 not upgraded.
";

    #[test]
    fn an_installation_that_would_remove_a_package_is_refused_and_names_it() {
        let plan = Plan::parse(SIMULATION, URIS);
        assert_eq!(plan.installs, ["busybox"]);
        assert_eq!(plan.removes, ["busybox-static"]);
        let refusal = plan.refusal(&["busybox"]).unwrap();
        assert!(refusal.contains("would remove busybox-static"), "{refusal}");
    }

    #[test]
    fn what_is_downloaded_is_counted() {
        assert_eq!(Plan::parse(SIMULATION, URIS).download, 452_120);
        assert_eq!(
            Plan::parse(SIMULATION, &format!("{URIS}'http://h/b' b.deb 3000000 SHA256:0\n")).download,
            3_452_120
        );
    }

    #[test]
    fn nothing_to_do_is_no_refusal() {
        let plan = Plan::parse(NOTHING, NOTHING);
        assert_eq!(plan, Plan::default());
        assert_eq!(plan.refusal(&["nvme-cli"]), None);
    }

    #[test]
    fn the_announcement_says_what_comes_and_how_big_it_is() {
        let plan = Plan {
            installs: ["kmod", "libkmod2", "liblzma5"].map(str::to_owned).to_vec(),
            removes: Vec::new(),
            download: 5_400_000,
        };
        assert_eq!(
            plan.announcement(&["kmod"]),
            "installing kmod and 2 packages that they need: 6 MB to download"
        );
        assert!(Plan::default().announcement(&["kmod"]).ends_with("nothing to download"));
    }
}
