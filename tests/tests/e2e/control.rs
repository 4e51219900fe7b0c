//! Who may talk to an agent.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Result, ensure};
use baton_lab::agent::CONFIG_FILE;
use baton_lab::process::{Process, baton_binary};
use baton_lab::{Agent, Cable};

use crate::common::*;

/// Where everybody may start the program from, in the host's own `/run`.
const PROGRAM: &str = "/run/baton-for-all";
/// The group `daemon`, which every Debian has.
const GROUP: &str = "1";

#[test]
fn the_control_socket_is_for_root_and_the_group() -> Result<()> {
    let lab = lab("control", 2, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &["10.0.0.10/24"]);
    let node = lab.host("fs1")?;
    let agent = Agent::start_text(node, &format!("{}\n[control]\ngroup = \"daemon\"\n", config.text()))?;
    for address in config.addresses() {
        agent.wait_served(client(&lab)?, address, LONG)?;
    }
    let binary = baton_binary()?;
    node.enter(|| {
        std::fs::copy(&binary, PROGRAM)?;
        std::fs::set_permissions(PROGRAM, std::fs::Permissions::from_mode(0o755))?;
        std::fs::set_permissions(CONFIG_FILE, std::fs::Permissions::from_mode(0o644))
    })??;
    let ask = |groups: &str, arguments: &[&str]| -> Result<(i32, String)> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", groups, "--", PROGRAM, "--config", CONFIG_FILE]);
        command.args(arguments);
        let mut process = Process::spawn(node.namespaces(), command)?;
        let status = process.wait(LONG)?;
        Ok((status.code().unwrap_or(-1), format!("{}{}", process.stdout(), process.stderr())))
    };
    let (stranger, member) = ("--clear-groups", &*format!("--groups={GROUP}"));
    for arguments in [&["status"][..], &["events"], &["reload", "--dry-run"], &["reload"]] {
        let (code, said) = ask(stranger, arguments)?;
        ensure!(code == 1 && said.contains("ermission"), "{arguments:?}: {code}: {said}");
    }
    let (code, said) = ask(member, &["status"])?;
    ensure!(code == 0 && said.contains("projects"), "{code}: {said}");
    let (code, said) = ask(member, &["reload", "--dry-run"])?;
    ensure!(code == 0, "{code}: {said}");
    let (code, said) = ask(member, &["reload"])?;
    ensure!(code == 1 && said.contains("only root"), "{code}: {said}");
    let mode = || std::fs::metadata("/var/lib/baton/probe.key").map(|data| data.permissions().mode() & 0o777);
    let mode = node.enter(mode)??;
    ensure!(mode == 0o600, "the key of the probe frames has mode {mode:o}");
    Ok(())
}
