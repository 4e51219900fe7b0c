//! `baton check`.

use std::io::Write;
use std::path::Path;

use super::CliError;
use super::text::count;
use crate::config::Loaded;
use crate::doctor::Level;
use crate::storage::mmp;
use crate::{config, resources, secrets};

/// Refuses files with secrets that others may read, as `baton run` does. Prints warnings on standard error and one line about the whole on standard output.
pub(super) fn check(file: &Path) -> Result<(), CliError> {
    let loaded = config::load(file)?;
    secrets::refuse(&secrets::named(&loaded)).map_err(|e| CliError::BadFile(e.to_string()))?;
    for (level, line) in remarks(&loaded) {
        eprintln!("{}: {line}", level.word());
    }
    let core = &loaded.core;
    writeln!(
        std::io::stdout(),
        "{}: good; node {} with {}, {}, {}, {}",
        file.display(),
        core.node,
        count(core.ports.len(), "port"),
        count(core.segments.len(), "segment"),
        count(core.servers.len(), "virtual server"),
        count(core.servers.iter().map(|s| s.addresses.len()).sum(), "address"),
    )?;
    Ok(())
}

/// What there is to say of a configuration that is good.
pub(super) fn remarks(loaded: &Loaded) -> Vec<(Level, String)> {
    let warnings = loaded.warnings.to_string();
    let warnings = warnings.lines().map(|line| (Level::Warning, line.to_owned()));
    let notes = mmp::announce(&loaded.agent.resources).into_iter().map(|line| (Level::Note, line));
    let agents = resources::check_agents(&loaded.agent.resources, Path::new(resources::OCF_ROOT));
    warnings.chain(notes).chain(agents.into_iter().map(|line| (Level::Warning, line))).collect()
}
