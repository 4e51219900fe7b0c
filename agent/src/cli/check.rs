//! `baton check`.

use std::io::Write;
use std::path::Path;

use super::CliError;
use super::text::count;
use crate::storage::mmp;
use crate::{config, resources};

/// Prints warnings on standard error and one line about the whole on standard output.
pub(super) fn check(file: &Path) -> Result<(), CliError> {
    let loaded = config::load(file)?;
    for line in loaded.warnings.to_string().lines() {
        eprintln!("warning: {line}");
    }
    for line in mmp::announce(&loaded.agent.resources) {
        eprintln!("note: {line}");
    }
    for line in resources::check_agents(&loaded.agent.resources, Path::new(resources::OCF_ROOT)) {
        eprintln!("warning: {line}");
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
