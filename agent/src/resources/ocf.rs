//! The driver of OCF resource agents (the Open Cluster Framework's resource agent API, 1.1).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Failure;
use super::command::{Command, Done};
use super::folder::Record;
use super::metadata::Metadata;
use super::orders::Patience;
use super::process::Ended;
use super::service::Place;
use crate::config::{Ocf, Service};

/// Exit statuses by their names.
const NAMES: [(i32, &str); 12] = [
    (0, "success"),
    (1, "generic error"),
    (2, "invalid arguments"),
    (3, "action not implemented"),
    (4, "insufficient privileges"),
    (NOT_INSTALLED, "not installed"),
    (6, "not configured"),
    (NOT_RUNNING, "not running"),
    (8, "running as promoted"),
    (9, "failed as promoted"),
    (190, "degraded"),
    (191, "degraded as promoted"),
];
const NOT_RUNNING: i32 = 7;
const NOT_INSTALLED: i32 = 5;
/// What a monitor says of something that works, if not as well as it could.
const WORKS: [i32; 4] = [0, 8, 190, 191];

/// A program with its arguments, and variables of its environment.
type Told = (Vec<String>, Vec<(String, String)>);

/// What an action is told.
fn told(
    place: &Place<'_>,
    agent: &Ocf,
    service: &Service,
    action: &str,
    patience: &Patience<'_>,
) -> Result<Told, Failure> {
    let program = program(place, agent)?;
    let argv = vec![program.display().to_string(), action.to_owned()];
    let temporary = place.folder.path().join("ocf");
    if let Err(e) = fs::create_dir_all(&temporary) {
        return Err(Failure::Failed(format!("{}: {e}", temporary.display())));
    }
    let mut variables = vec![
        ("OCF_ROOT", place.ocf_root.display().to_string()),
        ("OCF_RA_VERSION_MAJOR", "1".to_owned()),
        ("OCF_RA_VERSION_MINOR", "1".to_owned()),
        ("OCF_RESOURCE_INSTANCE", format!("{}-{}", place.server, agent.agent)),
        ("OCF_RESOURCE_PROVIDER", agent.provider.clone()),
        ("OCF_RESOURCE_TYPE", agent.agent.clone()),
        ("OCF_RESKEY_CRM_meta_timeout", patience.left().as_millis().to_string()),
        ("HA_RSCTMP", temporary.display().to_string()),
    ];
    if action == "monitor" {
        let every = service.monitor_every.as_millis().to_string();
        variables.push(("OCF_RESKEY_CRM_meta_interval", every));
    }
    let mut variables: Vec<(String, String)> =
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let parameter = |(name, value): (&String, &String)| (format!("OCF_RESKEY_{name}"), value.clone());
    variables.extend(agent.parameters.iter().map(parameter));
    Ok((argv, variables))
}

/// Runs an action. One that starts something is told so, for its descendants are the service.
fn act(
    place: &Place<'_>,
    agent: &Ocf,
    service: &Service,
    action: &str,
    starts: Option<&Record>,
    patience: &Patience<'_>,
) -> Result<Done, Failure> {
    let (argv, variables) = told(place, agent, service, action, patience)?;
    match starts {
        Some(record) => place.starting(&argv, &variables, record, patience),
        None => place.command(&argv, &variables, patience).map_err(|fault| Failure::from(fault).of(action)),
    }
}

/// Is it there, and does it take the parameters that are configured? One that doesn't say which it takes is taken at its word.
///
/// # Errors
/// [`Failure`]: what it doesn't know, or lacks.
pub fn may_start(
    place: &Place<'_>,
    agent: &Ocf,
    service: &Service,
    patience: &Patience<'_>,
) -> Result<(), Failure> {
    const ACTION: &str = "meta-data";
    let limited = patience.at_most(service.monitor_limit);
    let (argv, variables) = told(place, agent, service, ACTION, &limited)?;
    let printed = match place.output(&argv, &variables, &limited) {
        Ok((Done { ended: Ended::Exit(0), .. }, printed)) => Metadata::parse(&printed),
        Ok((done, _)) => Err(why(ACTION, &done)),
        Err(fault) => match Failure::from(fault) {
            Failure::Told => return Err(Failure::Told),
            Failure::Failed(why) => Err(format!("{ACTION}: {why}")),
        },
    };
    match printed.map(|metadata| metadata.complaints(&agent.parameters)) {
        Ok(complaints) if complaints.is_empty() => Ok(()),
        Ok(complaints) => Err(Failure::Failed(complaints.join("; "))),
        Err(why) => {
            let name = format!("{}/{}", agent.provider, agent.agent);
            tracing::warn!("{}: {name}: its parameters can't be checked: {why}", place.server);
            Ok(())
        }
    }
}

/// The agent.
///
/// # Errors
/// There is none.
pub fn program(place: &Place<'_>, agent: &Ocf) -> Result<PathBuf, Failure> {
    let path = place.ocf_root.join("resource.d").join(&agent.provider).join(&agent.agent);
    match fs::metadata(&path) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => Ok(path),
        Ok(_) => Err(Failure::Failed(format!("{} is no program", path.display()))),
        Err(e) => {
            let text = format!("{}: {e}; is the package resource-agents installed?", path.display());
            Err(Failure::Failed(text))
        }
    }
}

/// What an agent says against its parameters, asked without a virtual server; nothing, if it isn't installed here or doesn't say.
pub fn complaints(agent: &Ocf, ocf_root: &Path, patience: &Patience<'_>) -> Vec<String> {
    let program = ocf_root.join("resource.d").join(&agent.provider).join(&agent.agent);
    let argv = [program.display().to_string(), "meta-data".to_owned()];
    let variables = [("OCF_ROOT".to_owned(), ocf_root.display().to_string())];
    match (Command { argv: &argv, variables: &variables, group: None, input: &[] }).read(patience) {
        Ok((Done { ended: Ended::Exit(0), .. }, printed)) => {
            Metadata::parse(&printed).map_or(Vec::new(), |metadata| metadata.complaints(&agent.parameters))
        }
        Ok(_) | Err(_) => Vec::new(),
    }
}

/// "monitor: not running (7): no such process".
fn why(action: &str, done: &Done) -> String {
    let ended = match done.ended {
        Ended::Exit(code) => match NAMES.iter().find(|(known, _)| *known == code) {
            Some((_, name)) => format!("{name} ({code})"),
            None => format!("exit status {code}, which OCF doesn't know"),
        },
        Ended::Signal(_) => done.ended.to_string(),
    };
    if done.said.is_empty() {
        format!("{action}: {ended}")
    } else {
        format!("{action}: {ended}: {}", done.said)
    }
}

/// Starts it.
///
/// # Errors
/// [`Failure`].
pub fn start(
    place: &Place<'_>,
    agent: &Ocf,
    service: &Service,
    record: &Record,
    patience: &Patience<'_>,
) -> Result<(), Failure> {
    let done = act(place, agent, service, "start", Some(record), patience)?;
    match done.ended {
        Ended::Exit(0) => Ok(()),
        _ => Err(Failure::Failed(why("start", &done))),
    }
}

/// Stops it; one that doesn't run is stopped.
///
/// # Errors
/// [`Failure`].
pub fn stop(
    place: &Place<'_>,
    agent: &Ocf,
    service: &Service,
    patience: &Patience<'_>,
) -> Result<(), Failure> {
    let done = act(place, agent, service, "stop", None, patience)?;
    match done.ended {
        Ended::Exit(0 | NOT_RUNNING) => Ok(()),
        _ => Err(Failure::Failed(why("stop", &done))),
    }
}

/// Does it work?
///
/// # Errors
/// [`Failure`]: it doesn't, or nobody knows.
pub fn check(
    place: &Place<'_>,
    agent: &Ocf,
    service: &Service,
    patience: &Patience<'_>,
) -> Result<(), Failure> {
    let done = act(place, agent, service, "monitor", None, patience)?;
    match done.ended {
        Ended::Exit(code) if WORKS.contains(&code) => Ok(()),
        _ => Err(Failure::Failed(why("monitor", &done))),
    }
}

/// Does its monitor say that it doesn't run, or that there is nothing that could?
pub fn is_stopped(place: &Place<'_>, agent: &Ocf, service: &Service, patience: &Patience<'_>) -> bool {
    let done = act(place, agent, service, "monitor", None, patience);
    done.is_ok_and(|done| matches!(done.ended, Ended::Exit(NOT_RUNNING | NOT_INSTALLED)))
}
