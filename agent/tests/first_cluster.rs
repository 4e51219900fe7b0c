//! The first page of the documentation, followed to the letter: its commands are run in their order, and what it promises must be
//! printed. Needs root and what `make setup-demo` installs.
//!
//! In a block `console`, a line that begins with `$ ` is a command, and what follows is promised: each line must be printed, in
//! this order; `…` stands for anything, in a line or instead of lines. The command of a block `console,stays` goes on until the
//! page says Ctrl-C. A link to this machine is opened in a browser, until what its title says is to be seen there; the page that is
//! open already is only looked at.

#[path = "web/browser.rs"]
#[expect(dead_code, reason = "shared with the tests of the web page, which do more")]
mod browser;

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use browser::Browser;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Long enough for everything that happens at all.
const LONG: Duration = Duration::from_secs(180);

/// What the page asks for.
#[derive(Debug)]
enum Step {
    /// A command, whether it stays, and the lines that it prints.
    Run { command: String, stays: bool, promised: Vec<String> },
    /// A page to be opened, and what is to be seen there.
    Open { url: String, shows: String },
    /// Ctrl-C in the terminal of the command that stays.
    Interrupt,
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the sources").to_owned()
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        match (&block, line.strip_prefix("```")) {
            (None, Some(info)) => block = Some(info.to_owned()),
            (Some(_), Some(_)) => block = None,
            (Some(info), None) if info.starts_with("console") => match line.strip_prefix("$ ") {
                Some(command) => steps.push(Step::Run {
                    command: command.to_owned(),
                    stays: info == "console,stays",
                    promised: Vec::new(),
                }),
                None => match steps.last_mut() {
                    Some(Step::Run { promised, .. }) => promised.push(line.to_owned()),
                    _ => panic!("{line}: of which command?"),
                },
            },
            (Some(_), None) => {}
            (None, None) => {
                let links = line.split("](http://127.0.0.1:").skip(1);
                steps.extend(links.map(|rest| {
                    let link = rest.split(')').next().expect("an end");
                    let (path, title) = link.split_once(' ').expect("a title, which says what is to be seen");
                    let (url, shows) =
                        (format!("http://127.0.0.1:{path}"), title.trim_matches('"').to_owned());
                    Step::Open { url, shows }
                }));
                if line.contains("**Ctrl-C**") {
                    steps.push(Step::Interrupt);
                }
            }
        }
    }
    steps
}

/// Does a line look as promised? `…` stands for anything; spaces are as many as there are.
fn fits(line: &str, promised: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, promised) = (squeeze(line), squeeze(promised));
    let parts: Vec<&str> = promised.split('…').map(str::trim).collect();
    let mut rest = line.as_str();
    for (n, part) in parts.iter().enumerate() {
        let Some(at) = rest.find(part) else { return false };
        if n == 0 && at > 0 {
            return false;
        }
        rest = &rest[at + part.len()..];
    }
    parts.last().is_some_and(|last| last.is_empty())
        || rest.is_empty()
        || line.ends_with(parts[parts.len() - 1])
}

/// The first promise that is not kept.
fn broken<'a>(printed: &str, promised: &'a [String]) -> Option<&'a str> {
    let mut lines = printed.lines();
    let mut kept = |p: &str| p.trim() == "…" || lines.any(|line| fits(line, p));
    promised.iter().find(|p| !kept(p)).map(String::as_str)
}

/// A command that stays, with everything that it has started. Dropped: all of it is killed.
struct Staying {
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Staying {
    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(self.output.path()).unwrap_or_default()
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("bash");
    // The program is there: it is what runs this test. `make` is to build nothing.
    shell.args(["-c", command]).current_dir(sources()).env("CARGO", "true").stdin(Stdio::null());
    shell
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Processes whose line of ancestors has this one in it, by their numbers and starts, without those that have ended.
fn descendants(of: u32) -> Vec<(u32, String)> {
    let mut all: Vec<(u32, u32, String)> = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // proc(5): the name is in parentheses; then state, parent, ... and, as the 22nd, the start.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = rest.split(' ').collect();
        if fields[0] != "Z" {
            all.push((pid, fields[1].parse().unwrap_or(0), fields[19].to_owned()));
        }
    }
    let mut found: Vec<(u32, String)> =
        all.iter().filter(|p| p.0 == of).map(|p| (p.0, p.2.clone())).collect();
    let mut next = 0;
    while next < found.len() {
        let parent = found[next].0;
        found.extend(all.iter().filter(|p| p.1 == parent).map(|p| (p.0, p.2.clone())));
        next += 1;
    }
    found
}

fn follow(steps: &[Step]) {
    let mut staying: Option<Staying> = None;
    let mut opened: Option<(String, Browser)> = None;
    for step in steps {
        match step {
            Step::Run { command, stays: true, promised } => {
                let output = tempfile::NamedTempFile::new().expect("a file");
                let file = || File::options().append(true).open(output.path()).expect("the file");
                let child =
                    shell(command).process_group(0).stdout(file()).stderr(file()).spawn().expect(command);
                let mut running = Staying { child, output };
                wait_for(&format!("`{command}` does not print what is promised"), || {
                    let ended = running.child.try_wait().expect("asked");
                    let printed = running.printed();
                    let broken = broken(&printed, promised);
                    assert!(
                        ended.is_none(),
                        "`{command}` has ended ({ended:?}); missing {broken:?} in:\n{printed}"
                    );
                    broken.is_none().then_some(())
                });
                staying = Some(running);
            }
            Step::Run { command, stays: false, promised } => {
                let output = shell(command).output().expect(command);
                let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
                assert!(output.status.success(), "`{command}`: {}\n{printed}", output.status);
                let broken = broken(&printed, promised);
                assert!(broken.is_none(), "`{command}` did not print {broken:?} but:\n{printed}");
            }
            Step::Open { url, shows } => {
                let (open, browser) = opened.get_or_insert_with(|| (String::new(), Browser::start()));
                if open != url {
                    browser.open(url, (1280, 1400), false);
                    url.clone_into(open);
                }
                browser.wait_for(shows);
                let pictures = sources().join("target/web");
                std::fs::create_dir_all(&pictures).expect("a folder for pictures");
                let name: String = shows.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
                browser.picture(&pictures.join(format!("first-cluster-{name}.png")));
            }
            Step::Interrupt => {
                let mut running = staying.take().expect("something that stays");
                let all = descendants(running.child.id());
                assert!(all.len() > 6, "agents and etcd run: {all:?}");
                killpg(running.group(), Signal::SIGINT).expect("interrupted");
                wait_for("it goes on after Ctrl-C", || running.child.try_wait().expect("asked"));
                wait_for("something goes on after Ctrl-C", || {
                    let gone = |(pid, start): &(u32, String)| {
                        !descendants(*pid).iter().any(|(other, began)| other == pid && began == start)
                    };
                    all.iter().all(gone).then_some(())
                });
            }
        }
    }
    assert!(staying.is_none(), "the page doesn't say how to end it");
}

#[test]
fn the_first_page_does_what_it_says() {
    let text = std::fs::read_to_string(sources().join("docs/src/first-cluster.md")).expect("the page");
    let steps = steps(&text);
    let count = |wanted: fn(&Step) -> bool| steps.iter().filter(|s| wanted(s)).count();
    assert!(count(|s| matches!(s, Step::Run { promised, .. } if !promised.is_empty())) > 5, "{steps:#?}");
    assert!(
        count(|s| matches!(s, Step::Open { .. })) > 2 && count(|s| matches!(s, Step::Interrupt)) == 1,
        "{steps:#?}"
    );
    // Addresses and sockets of its own: what runs beside it on this machine has the same ones. A thread that has left for another
    // namespace takes what it starts with it, and doesn't come back.
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; this needs root");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip");
        assert!(up.success());
        follow(&steps);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn promises_are_compared_as_they_are_meant() {
    let lines = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    let printed = "one   1\ntwo 2 of 3\nthree\n";
    assert_eq!(broken(printed, &lines(&["one 1", "…", "two … of 3", "three"])), None);
    assert_eq!(broken(printed, &lines(&["two …", "one 1"])), Some("one 1"));
    assert_eq!(broken(printed, &lines(&["two 2"])), Some("two 2"));
    assert_eq!(broken(printed, &lines(&["wo …"])), Some("wo …"));
}
