//! The program as a user calls it: exit status, what goes where, and that nothing is touched.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const GOOD: &str = r#"[node]
name = "fs1"
[[port]]
interface = "eth0"
segment = "office"
[[port]]
interface = "eth1"
segment = "office"
[[segment]]
name = "office"
subnets = ["10.0.0.0/24"]
gateway = ["10.0.0.1"]
[[virtual_server]]
name = "projects"
addresses = ["10.0.0.10/24"]
"#;

fn baton(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command.args(arguments).env_remove("RUST_LOG").env_remove("JOURNAL_STREAM");
    command.output().expect("the program runs")
}

/// (exit status, standard output, standard error)
fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code().expect("not killed"), text(&output.stdout), text(&output.stderr))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn write(folder: &Path, text: &str) -> String {
    let file = folder.join("baton.toml");
    fs::write(&file, text).expect("written");
    file.to_str().expect("UTF-8").to_owned()
}

/// A good file whose socket and state are in `folder`.
fn with_places(folder: &Path) -> String {
    let (socket, state) = (folder.join("sock"), folder.join("state"));
    write(folder, &format!("{GOOD}[control]\nsocket = {socket:?}\n[paths]\nstate = {state:?}\n"))
}

#[test]
fn a_good_file_is_good() {
    let folder = folder();
    let file = write(folder.path(), GOOD);
    let expected = format!("{file}: good; node fs1 with 2 ports, 1 segment, 1 virtual server, 1 address\n");
    assert_eq!(said(&baton(&["check", &file])), (0, expected.clone(), String::new()));
    assert_eq!(said(&baton(&["--config", &file, "check"])), (0, expected.clone(), String::new()));
    assert_eq!(said(&baton(&["check", "--config", "/nonexistent", &file])), (0, expected, String::new()));
}

#[test]
fn warnings_are_told_and_do_no_harm() {
    let folder = folder();
    let text = GOOD.split("[[virtual_server]]").next().expect("a part");
    let file = write(folder.path(), text);
    let (status, out, err) = said(&baton(&["check", &file]));
    assert_eq!(status, 0);
    assert!(out.contains("0 virtual servers"), "{out}");
    assert!(err.starts_with(&format!("warning: {file}:1:1: no [[virtual_server]]")), "{err}");
}

#[test]
fn a_bad_file_ends_with_64_and_every_error() {
    let folder = folder();
    let text = GOOD.replace("name = \"fs1\"", "nam = \"fs1\"").replace("10.0.0.10/24", "10.0.0.300/24");
    let file = write(folder.path(), &text);
    for arguments in [vec!["check", &file], vec!["--config", &file, "run"]] {
        let (status, out, err) = said(&baton(&arguments));
        assert_eq!((status, out.as_str()), (64, ""), "{arguments:?}: {err}");
        let lines: Vec<&str> = err.lines().collect();
        assert_eq!(lines.len(), 2, "{err}");
        assert!(lines[0].starts_with(&format!("{file}:2:1: unknown key in [node]: `nam`")), "{err}");
        assert!(lines[1].starts_with(&format!("{file}:15:15: ")), "{err}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 1, "nothing was made");
}

/// Neither `check` nor `run` takes it; before anything is touched.
#[test]
fn a_secret_that_others_may_read_is_bad_configuration() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let token = folder.path().join("token");
    fs::write(&token, "0123456789abcdef").expect("written");
    let file = write(folder.path(), &format!("{GOOD}[telemetry]\ntoken_file = {token:?}\n"));
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).expect("set");
    for arguments in [vec!["check", &file], vec!["--config", &file, "run"]] {
        let (status, out, err) = said(&baton(&arguments));
        assert_eq!((status, out.as_str()), (64, ""), "{arguments:?}: {err}");
        let token = token.display();
        let wanted = format!(
            "{token}: others than its owner may read or write the page's token, `token_file` in [telemetry] (mode 644): run `chmod 600 {token}`, and make a new one if somebody may have read it"
        );
        // An agent also logs that nobody needs a token on a node that is alone.
        assert!(err.lines().any(|line| line == wanted), "{arguments:?}: {err}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 2, "nothing was made");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("set");
    assert_eq!(said(&baton(&["check", &file])).0, 0);
}

#[test]
fn a_file_that_cannot_be_read_is_bad_configuration() {
    let (status, _, err) = said(&baton(&["check", "/nonexistent/baton.toml"]));
    assert_eq!(status, 64);
    assert!(err.starts_with("/nonexistent/baton.toml: cannot be read: "), "{err}");
    assert_eq!(said(&baton(&["--config", "/", "run"])).0, 64);
}

#[test]
fn wrong_usage_ends_with_2_and_help_with_0() {
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["status", "--bogus"],
        &["replay"],
        &["events", "--since", "yesterday"],
        &["check", "a", "b"],
    ] {
        let (status, out, err) = said(&baton(arguments));
        assert_eq!((status, out.as_str()), (2, ""), "{arguments:?}");
        assert!(!err.is_empty());
    }
    for arguments in [&["--help"][..], &["--version"], &["events", "--help"]] {
        let (status, out, err) = said(&baton(arguments));
        assert_eq!((status, err.as_str()), (0, ""), "{arguments:?}");
        assert!(!out.is_empty());
    }
}

#[test]
fn without_an_agent_status_says_how_to_start_one() {
    let folder = folder();
    let file = with_places(folder.path());
    for command in [&["status"][..], &["status", "--json"], &["status", "--watch"], &["events", "--follow"]] {
        let (status, out, err) = said(&baton(&[&["--config", &file], command].concat()));
        assert_eq!((status, out.as_str()), (1, ""), "{command:?}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(
            err.starts_with("baton: the agent isn't running") && err.contains("systemctl start baton"),
            "{err}"
        );
    }
    let (status, _, err) = said(&baton(&["--config", &file, "top"]));
    assert_eq!(status, 1);
    assert_eq!(err, "baton: `top` needs a terminal; use `baton status --watch`\n");
    assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 1, "nothing was made");
}

#[test]
fn a_half_edited_file_does_not_hide_the_agent() {
    let folder = folder();
    let file = with_places(folder.path());
    let text = fs::read_to_string(&file).expect("read").replace("10.0.0.10/24", "10.0.0.300/24");
    fs::write(&file, text).expect("written");
    let (status, _, err) = said(&baton(&["--config", &file, "status"]));
    assert_eq!(status, 1);
    let socket = folder.path().join("sock");
    assert!(err.contains(socket.to_str().expect("UTF-8")), "{err}");
}

#[test]
fn events_of_an_agent_that_has_gone_are_read_from_its_journal() {
    let folder = folder();
    let file = with_places(folder.path());
    let state = folder.path().join("state");
    fs::create_dir(&state).expect("made");
    let line = |time: &str, rest: &str| format!("{{\"time\":\"{time}\",\"at\":1,{rest}}}\n");
    let text = line("2026-01-01T00:00:00.000001Z", "\"event\":\"resynced\"")
        + &line("2026-01-02T00:00:00.000001Z", "\"event\":\"serving\",\"server\":\"projects\",\"epoch\":3");
    fs::write(state.join("events.jsonl"), &text).expect("written");
    let (status, out, err) = said(&baton(&["--config", &file, "events"]));
    assert_eq!(status, 0);
    assert!(err.starts_with("baton: the agent isn't running; this is the journal it left in "), "{err}");
    assert_eq!(
        out,
        "2026-01-01 00:00:00.000001Z  notifications were lost; links and addresses have been read again\n\
         2026-01-02 00:00:00.000001Z  serving projects, epoch 3\n"
    );
    let (_, out, _) = said(&baton(&["--config", &file, "events", "--json", "--since", "2026-01-02"]));
    assert_eq!(out, text.lines().nth(1).expect("two lines").to_owned() + "\n");
    let (_, out, _) = said(&baton(&["--config", &file, "events", "--server", "projects"]));
    assert_eq!(out.lines().count(), 1, "{out}");
    let (status, _, err) = said(&baton(&["--config", &file, "events", "--server", "nobody"]));
    assert_eq!(status, 1);
    assert!(err.contains("there is no virtual server \"nobody\""), "{err}");
}

#[test]
fn clean_refuses_while_an_agent_runs() {
    let folder = folder();
    let file = with_places(folder.path());
    let lock = baton::control::lock(&folder.path().join("state")).expect("locked");
    let (status, out, err) = said(&baton(&["--config", &file, "clean"]));
    assert_eq!((status, out.as_str()), (1, ""));
    let pid = std::process::id();
    assert_eq!(err, format!("baton: another agent runs on this node (process {pid}); stop it first\n"));
    drop(lock);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let folder = folder();
    let file = write(folder.path(), GOOD);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    let output = command.args(["check", &file]).stdout(writer).output().expect("the program runs");
    assert_eq!(said(&output), (0, String::new(), String::new()));
}

#[test]
fn what_is_imported_passes_the_check_and_remarks_go_to_standard_error() {
    let folder = folder();
    let file = folder.path().join("keepalived.conf");
    let text = "vrrp_instance A {\n interface eth0\n virtual_router_id 7\n virtual_ipaddress {\n 10.0.0.10/24\n }\n}\n";
    fs::write(&file, text).expect("written");
    let file = file.to_str().expect("UTF-8");
    let (status, out, err) = said(&baton(&["import", file]));
    assert_eq!(status, 0, "{err}");
    assert!(err.starts_with(&format!("{file}:3: not needed: virtual_router_id: ")), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    let made = write(folder.path(), &out);
    assert_eq!(said(&baton(&["check", &made])).0, 0, "{out}");

    fs::write(folder.path().join("public_addresses"), "# none yet\n").expect("written");
    let none = folder.path().join("public_addresses");
    let none = none.to_str().expect("UTF-8");
    let (status, out, err) = said(&baton(&["import", "--kind", "ctdb", none]));
    assert_eq!((status, out.as_str()), (64, ""));
    assert!(err.contains("there is no address in it that Baton could serve"), "{err}");
    assert_eq!(said(&baton(&["import", "/nonexistent/keepalived.conf"])).0, 64);
    assert_eq!(said(&baton(&["import"])).0, 2);
}

#[test]
fn without_a_demonstration_commands_for_it_say_how_to_start_one() {
    // Sockets like its own belong to a network namespace: in a new one there is none.
    let mut command = Command::new("unshare");
    command.args(["--net", env!("CARGO_BIN_EXE_baton"), "demo", "cut", "n1", "p0"]);
    let (status, out, err) = said(&command.output().expect("unshare"));
    assert_eq!((status, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("baton demo --keep"), "{err}");
}
