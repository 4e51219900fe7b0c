//! Fence agents: programs that switch a node off (<https://github.com/ClusterLabs/fence-agents>, doc/FenceAgentAPI.md). They read
//! `name=value` lines from their standard input, and end with status 0 when the node is off.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use crate::config::{FenceAgent, Parameter};
use crate::resources::command::{Command, Done, Fault};
use crate::resources::orders::Patience;
use crate::resources::process::Ended;

/// The most that is shown of what an agent says.
const SAID: usize = 200;

/// Switches a node off: all agents of the lowest level, or else all of the next one.
///
/// # Errors
/// Why not; `None`: something else was ordered.
pub(super) fn switch_off<'a>(
    node: &str,
    agents: &[&FenceAgent],
    patience: impl Fn(Duration) -> Patience<'a>,
) -> Result<(), Option<String>> {
    if agents.is_empty() {
        return Err(Some(format!("there is no [[fence]] for {node}")));
    }
    let levels: BTreeSet<u32> = agents.iter().map(|agent| agent.level).collect();
    let mut failures = Vec::new();
    for level in levels {
        let mut good = true;
        for agent in agents.iter().filter(|agent| agent.level == level) {
            match run(agent, &patience(agent.limit)) {
                Ok(()) => {}
                Err(None) => return Err(None),
                Err(Some(why)) => {
                    failures.push(format!("{}: {why}", agent.program.display()));
                    good = false;
                    break;
                }
            }
        }
        if good {
            if !failures.is_empty() {
                tracing::warn!("{node}: fenced by level {level}, after {}", failures.join("; "));
            }
            return Ok(());
        }
    }
    Err(Some(failures.join("; ")))
}

fn run(agent: &FenceAgent, patience: &Patience<'_>) -> Result<(), Option<String>> {
    let (input, secrets) = input(agent).map_err(Some)?;
    let argv = [agent.program.display().to_string()];
    let command = Command { argv: &argv, variables: &[], group: None, input: input.as_bytes() };
    match command.read(patience) {
        Ok((Done { ended: Ended::Exit(0), .. }, _)) => Ok(()),
        Ok((Done { ended, .. }, text)) => {
            let said = said(&text, &secrets);
            Err(Some(if said.is_empty() { ended.to_string() } else { format!("{ended}: {said}") }))
        }
        Err(Fault::Told) => Err(None),
        Err(fault) => Err(Some(fault.to_string())),
    }
}

/// What the agent reads, and what of that must not be shown.
fn input(agent: &FenceAgent) -> Result<(String, Vec<String>), String> {
    let mut text = format!("action={}\n", agent.action.word());
    let mut secrets = Vec::new();
    for (name, parameter) in &agent.parameters {
        let value = match parameter {
            Parameter::Text(value) => value.clone(),
            Parameter::File(path) => {
                let failed = |why: String| format!("{name}: {}: {why}", path.display());
                let value = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
                let value = value.trim_end_matches(['\n', '\r']).to_owned();
                if value.is_empty() || value.contains('\n') {
                    return Err(failed("it has not one line".to_owned()));
                }
                value
            }
        };
        text += &format!("{name}={value}\n");
        let is_secret = matches!(parameter, Parameter::File(_)) || name.contains("pass");
        secrets.extend(is_secret.then_some(value).filter(|value| !value.is_empty()));
    }
    // A secret may be a part of another one.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    Ok((text, secrets))
}

/// The last line of what an agent said, without its secrets.
fn said(text: &str, secrets: &[String]) -> String {
    let text = secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "…"));
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(SAID).collect()
}
