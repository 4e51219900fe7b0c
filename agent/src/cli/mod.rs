//! The command line. Everything that shows an agent asks it over the control socket; nothing here decides.
//!
//! Exit status: 0 done, 1 refused or failed (one line on standard error: what, why, what to do), 2 wrong usage,
//! 64 bad configuration.

mod check;
mod cluster;
mod doctor;
mod events;
mod log;
mod paths;
mod plan;
mod reload;
mod replay;
#[cfg(test)]
mod samples;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod top;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{self, ConfigErrors, DEFAULT_FILE, Loaded, Places};
use crate::control::ClientError;
use crate::slow::clean::{self, Cleaned};
use crate::telemetry::Action;
use crate::{demo, import, secrets, slow, telemetry};

pub(crate) use events::sentence;
pub(crate) use plan::as_json as plan_as_json;

/// Exit status of a bad configuration (EX_USAGE of sysexits.h, as in the program's documentation).
pub const BAD_CONFIGURATION: u8 = 64;

/// Failover and load balancing for file servers
#[derive(Debug, Parser)]
#[command(name = "baton", version, arg_required_else_help = true)]
struct Cli {
    /// Configuration file [default: /etc/baton/baton.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run,
    /// Check a configuration and touch nothing
    ///
    /// Reads the file alone, so that it can be checked anywhere; `baton doctor` looks at the machine that it is for.
    Check {
        /// The file, instead of --config
        file: Option<PathBuf>,
    },
    /// Look at this machine: is it fit for Baton, and is anything in its way?
    ///
    /// Looks at the kernel, privileges, ports, settings, clocks, the store, keys, and at what else manages addresses here. Changes
    /// nothing, and works with and without a running agent; `baton check` reads the configuration alone. Exit status 1 if there is
    /// a problem.
    Doctor(doctor::Options),
    /// Write what is defined for the whole cluster
    Apply {
        /// The file, with `[cluster]`, `[timing]`, `[[segment]]` and `[[virtual_server]]`
        file: PathBuf,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Move a virtual server to another node
    Move {
        /// Its name
        server: String,
        /// The node
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Move all virtual servers off a node, and let it take none
    Drain {
        /// The node
        node: String,
    },
    /// Let a node take virtual servers again
    Resume {
        /// The node
        node: String,
    },
    /// Answer for it that a node is off, where it could not be fenced
    ConfirmOff {
        /// The node
        node: String,
        /// You have seen that it is off: nothing that it had mounted is written any more
        #[arg(long)]
        it_is_off: bool,
    },
    /// Show which node should have what, and why, without doing it
    Plan(plan::Options),
    /// Show ports, virtual servers and conflicts
    Status {
        /// As JSON, one line
        #[arg(long)]
        json: bool,
        /// Go on with every change
        #[arg(long)]
        watch: bool,
    },
    /// Watch ports, virtual servers, traffic and events in the terminal
    Top,
    /// Show what happened and why
    Events(events::Options),
    /// Run a recorded input log through the decisions again
    Replay {
        /// The log
        file: PathBuf,
    },
    /// Read the configuration file anew, and change what is different without touching the rest
    Reload {
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove everything Baton made on this node; only while no agent runs
    Clean,
    /// Make a configuration out of one of keepalived or CTDB
    Import {
        /// keepalived.conf, or CTDB's public_addresses
        file: PathBuf,
        /// Whose it is; by default its content says
        #[arg(long, value_enum)]
        kind: Option<import::Kind>,
    },
    /// Show failovers in a lab of network namespaces, without any configuration
    Demo(demo::Options),
    /// Print a page of the documentation that is made of the program itself
    #[command(hide = true)]
    Reference {
        /// Which
        #[arg(value_enum)]
        page: Page,
    },
}

/// Pages that are made of the program itself.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Page {
    Configuration,
    Metrics,
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// Exit status 64.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// A file that describes something is bad: exit status 64.
    #[error("{0}")]
    BadFile(String),
    /// The reader of our output has gone: nothing more to do, and nothing wrong.
    #[error("nobody reads the output")]
    Unread,
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("cannot write the output: {0}; check where it goes")]
    Output(io::Error),
    #[error("the agent sent something unknown ({0}); is it of another version? restart it")]
    Answer(#[from] serde_json::Error),
    #[error("{0}")]
    Other(String),
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::Unread,
            _ => CliError::Output(error),
        }
    }
}

/// The definition of the command line, for manual pages and shell completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The whole program.
pub fn main() -> ExitCode {
    // On wrong usage, clap prints why and exits with 2; on --help and --version with 0.
    let cli = Cli::parse();
    let _flushed = log::init(matches!(cli.command, Command::Run));
    match cli.run() {
        Ok(()) | Err(CliError::Unread) => ExitCode::SUCCESS,
        Err(CliError::Config(errors)) => {
            eprintln!("{errors}");
            ExitCode::from(BAD_CONFIGURATION)
        }
        Err(CliError::BadFile(error)) => {
            eprintln!("{error}");
            ExitCode::from(BAD_CONFIGURATION)
        }
        Err(error) => {
            eprintln!("baton: {}", text::one_line(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn run(self) -> Result<(), CliError> {
        let file = self.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
        match self.command {
            Command::Run => {
                let loaded = load(file)?;
                secrets::refuse(&secrets::named(&loaded)).map_err(|e| CliError::BadFile(e.to_string()))?;
                slow::run(file, loaded).map_err(|e| CliError::Other(e.to_string()))
            }
            Command::Check { file: named } => check::check(named.as_deref().unwrap_or(file)),
            Command::Doctor(ref options) => doctor::command(file, options),
            Command::Apply { file: definitions, dry_run } => {
                cluster::apply(&load(file)?, &definitions, dry_run)
            }
            Command::Move { server, to } => {
                cluster::change_owner(&load(file)?, &server, &to, &mut io::stdout())
            }
            Command::Drain { node } => cluster::drain(&load(file)?, &node, &mut io::stdout()),
            Command::Resume { node } => cluster::resume(&load(file)?, &node, &mut io::stdout()),
            Command::ConfirmOff { node, it_is_off } => {
                cluster::confirm_off(&load(file)?, &node, it_is_off, &mut io::stdout())
            }
            Command::Plan(ref options) => plan::command(options, || Ok(self.places()?.socket)),
            Command::Status { json, watch } => status::command(&self.places()?.socket, json, watch),
            Command::Top => top::command(&self.places()?.socket),
            Command::Events(ref options) => events::command(&self.places()?, file, options),
            Command::Replay { file } => replay::command(&file),
            Command::Clean => clean(&self.places()?),
            Command::Import { ref file, kind } => import_file(file, kind),
            Command::Demo(ref options) => Ok(demo::run(options)?),
            Command::Reference { page } => {
                let text = match page {
                    Page::Configuration => config::reference::page(),
                    Page::Metrics => telemetry::reference::page(),
                };
                Ok(io::stdout().write_all(text.as_bytes())?)
            }
            Command::Reload { dry_run } => reload::command(&self.places()?.socket, dry_run),
        }
    }

    /// Where the agent and what it made are to be found. A file with mistakes will do, and so will none if none was named: who
    /// looks after a running agent, or removes it, must not be stopped by a half-edited file.
    fn places(&self) -> Result<Places, CliError> {
        match (&self.config, Path::new(DEFAULT_FILE)) {
            (None, file) if !file.exists() => Ok(Places::default()),
            (None, file) => Ok(config::places(file)?),
            (Some(file), _) => Ok(config::places(file)?),
        }
    }
}

/// Does what was asked for on the web page, as the command of the same name does; returns what that would print.
pub(crate) fn act(loaded: &Loaded, action: &Action) -> Result<String, String> {
    let mut out = Vec::new();
    let done = match action {
        Action::Check {} => Ok(()),
        Action::Move { server, to } => cluster::change_owner(loaded, server, to, &mut out),
        Action::Drain { node } => cluster::drain(loaded, node, &mut out),
        Action::Resume { node } => cluster::resume(loaded, node, &mut out),
        Action::ConfirmOff { node, it_is_off } => cluster::confirm_off(loaded, node, *it_is_off, &mut out),
    };
    done.map_err(|e| text::one_line(&e.to_string()))?;
    Ok(String::from_utf8_lossy(&out).trim_end().to_owned())
}

/// Loads the configuration; warnings go to the log.
fn load(file: &Path) -> Result<Loaded, CliError> {
    let loaded = config::load(file)?;
    for line in loaded.warnings.to_string().lines() {
        tracing::warn!("{line}");
    }
    Ok(loaded)
}

/// The configuration goes to standard output, what is to be known of it to standard error.
fn import_file(file: &Path, kind: Option<import::Kind>) -> Result<(), CliError> {
    let imported = import::import(file, kind).map_err(|e| CliError::BadFile(e.to_string()))?;
    for remark in &imported.remarks {
        eprintln!("{remark}");
    }
    Ok(io::stdout().write_all(imported.text.as_bytes())?)
}

fn clean(places: &Places) -> Result<(), CliError> {
    let gone = clean::clean(places).map_err(|e| CliError::Other(e.to_string()))?;
    let Cleaned { addresses, routes, rules } = gone;
    writeln!(
        io::stdout(),
        "removed {addresses} addresses, {routes} routes, {rules} rules, and the kernel programs"
    )?;
    Ok(())
}
