//! Writes Baton's manual pages and shell completions into a folder: `baton-package FOLDER`.
//!
//! They are made from the command line's own definition, so they can't tell anything else than `--help`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

/// What else a page of the program tells.
const FILES: &str = r#".SH FILES
.TP
\fI/etc/baton/baton.toml\fR
The configuration: baton.toml(5).
.TP
\fI/var/lib/baton\fR
The store, the log of events, and the key of the probe frames.
.TP
\fI/run/baton/baton.sock\fR
The control socket, for root and for the group in [control].
.TP
\fI/sys/fs/bpf/baton\fR
The kernel programs and what they know. They go on while the agent is restarted.
.SH "EXIT STATUS"
.TP
\fB0\fR
Done.
.TP
\fB1\fR
Refused, or failed. One line on standard error says what, why, and what to do.
.TP
\fB2\fR
Wrong usage.
.TP
\fB64\fR
Bad configuration.
"#;
/// Before the example in the page of the configuration.
const CONFIGURATION: &str = r#".TH baton.toml 5 "" "baton" "File Formats"
.SH NAME
baton.toml \- configuration of Baton's agent
.SH DESCRIPTION
\fI/etc/baton/baton.toml\fR is read by \fBbaton run\fR and \fBbaton check\fR. It is TOML; keys that are not known are mistakes, and
durations have units. \fBbaton check\fR tells every mistake at once, with line and column, and what to do. Other folders than those below
\fI/var/lib/baton\fR have to be granted to the agent in its unit.
.PP
This is the file as it is installed. What is commented out there shows the default, unless it says otherwise.
.PP
.nf
"#;

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os().nth(1).context("usage: baton-package FOLDER")?;
    write_all(Path::new(&folder), &baton::cli::command(), include_str!("../../baton.toml"))
}

fn write_all(folder: &Path, program: &Command, example: &str) -> anyhow::Result<()> {
    // Pages of commands that are gone must not stay.
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for (name, page) in pages(program) {
        write(folder.join(name), page.as_bytes())?;
    }
    let page = format!("{CONFIGURATION}{}.fi\n.SH \"SEE ALSO\"\nbaton(1)\n", verbatim(example));
    write(folder.join("baton.toml.5"), page.as_bytes())?;
    // Under the names that each shell looks for.
    for (shell, name) in [(Shell::Bash, "baton"), (Shell::Zsh, "_baton"), (Shell::Fish, "baton.fish")] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut program.clone(), "baton", &mut text);
        write(folder.join(name), &text)?;
    }
    Ok(())
}

/// A page of the program, and one of each command: file names and contents.
fn pages(program: &Command) -> Vec<(String, String)> {
    let without_help = |command: Command| command.disable_help_subcommand(true);
    let mut program = without_help(program.clone()).mut_subcommands(without_help);
    program.build();
    let commands: Vec<Command> = program.get_subcommands().filter(|c| !c.is_hide_set()).cloned().collect();
    let see = |names: &mut dyn Iterator<Item = String>| {
        format!(".SH \"SEE ALSO\"\n{}\n", names.collect::<Vec<_>>().join(", "))
    };
    let named = |command: &Command| format!("baton\\-{}(1)", command.get_name().replace('-', "\\-"));
    let all = see(&mut commands.iter().map(named).chain(["baton.toml(5)".to_owned()]));
    let mut pages = vec![("baton.1".to_owned(), page(program) + FILES + &all)];
    for command in commands {
        let name = format!("baton-{}", command.get_name());
        let one = see(&mut ["baton(1)", "baton.toml(5)"].into_iter().map(str::to_owned));
        pages.push((format!("{name}.1"), page(command) + &one));
    }
    pages
}

fn page(command: Command) -> String {
    let mut text = Vec::new();
    let man = clap_mangen::Man::new(command).source("baton").manual("Baton");
    man.render(&mut text).expect("memory takes everything");
    String::from_utf8(text).expect("a page is text")
}

/// Text that troff leaves as it is.
fn verbatim(text: &str) -> String {
    let line = |line: &str| {
        let line = line.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
        if line.starts_with(['.', '\'']) { format!("\\&{line}\n") } else { line + "\n" }
    };
    text.lines().map(line).collect()
}

fn write(path: PathBuf, content: &[u8]) -> anyhow::Result<()> {
    fs::write(&path, content).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_is_completed() {
        let program = baton::cli::command();
        let pages = pages(&program);
        assert_eq!(pages.len(), program.get_subcommands().filter(|c| !c.is_hide_set()).count() + 1);
        for (name, page) in &pages {
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
            assert!(!page.contains("\\-help(1)"), "{name} refers to a page that there is not: {page}");
        }
        let mut bash = Vec::new();
        clap_complete::generate(Shell::Bash, &mut program.clone(), "baton", &mut bash);
        let bash = String::from_utf8(bash).expect("text");
        for command in program.get_subcommands().filter(|c| !c.is_hide_set()) {
            let name = command.get_name();
            assert!(bash.contains(&format!("baton,{name})")), "{name} is not completed: {bash}");
        }
    }

    #[test]
    fn what_troff_would_take_for_a_request_is_text() {
        assert_eq!(verbatim(".x \\n\n'y\n-z"), "\\&.x \\en\n\\&'y\n\\-z\n");
    }
}
