use std::time::Instant;

use super::super::orders::{Order, Orders};
use super::*;
use crate::testing::LONG;

fn sh(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

fn run(script: &str, limit: Duration) -> Result<Done, Fault> {
    let orders = Orders::new().expect("an eventfd");
    let variables = [("GREETING".to_owned(), "good morning".to_owned())];
    let argv = sh(script);
    let command = Command { argv: &argv, variables: &variables, group: None, input: &[] };
    command.run(&Patience::new(&orders, 0, None, limit))
}

#[test]
fn a_command_tells_how_it_ended_and_what_it_said_last() {
    let done = run("echo first; echo \"$GREETING\" >&2; exit 3", LONG).expect("it ran");
    assert_eq!((done.ended, done.said.as_str()), (Ended::Exit(3), "good morning"));
    assert_eq!(done.why(), "exit status 3: good morning");
    let done = run("kill -9 $$", LONG).expect("it ran");
    assert_eq!(done.why(), "SIGKILL");
}

#[test]
fn it_has_a_session_of_its_own_and_nothing_from_systemd() {
    let done = run("[ \"$(ps -o sid= -p $$ | tr -d ' ')\" = $$ ] && [ -z \"$NOTIFY_SOCKET\" ]", LONG);
    assert_eq!(done.expect("it ran").ended, Ended::Exit(0));
}

#[test]
fn a_program_that_isnt_there_is_told() {
    let orders = Orders::new().expect("an eventfd");
    let argv = ["/nowhere/program".to_owned()];
    let command = Command { argv: &argv, variables: &[], group: None, input: &[] };
    let fault = command.run(&Patience::new(&orders, 0, None, LONG)).expect_err("there is none");
    assert!(matches!(fault, Fault::Start(_)), "{fault}");
}

#[test]
fn what_takes_too_long_is_killed_with_all_it_started() {
    let variable = format!("BATON_COMMAND_TEST={}", std::process::id());
    // The children take no notice of SIGTERM, and one is stopped.
    let script =
        format!("export {variable}; trap '' TERM; sleep 1000 & sleep 1000 & kill -STOP $!; sleep 1000");
    let fault = run(&script, Duration::from_millis(300)).expect_err("too long");
    assert!(matches!(fault, Fault::Late), "{fault}");
    let left = process::with_variable(&variable);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn another_order_ends_it_at_once() {
    let orders = Orders::new().expect("an eventfd");
    orders.give(Order::Stop);
    let argv = sh("sleep 1000");
    let command = Command { argv: &argv, variables: &[], group: None, input: &[] };
    let fault = command.run(&Patience::new(&orders, 0, None, LONG)).expect_err("told otherwise");
    assert!(matches!(fault, Fault::Told), "{fault}");
}

#[test]
fn system_calls_of_a_child_give_their_error_and_can_be_given_up() {
    let orders = Orders::new().expect("an eventfd");
    let patience = Patience::new(&orders, 0, None, LONG);
    assert_eq!(in_child(&patience, || Ok(())).expect("done"), Ok(()));
    assert_eq!(in_child(&patience, || Err(Errno::EBUSY)).expect("done"), Err(Errno::EBUSY));
    let hang = || loop {
        nix::unistd::pause();
    };
    let began = Instant::now();
    let fault = in_child(&patience.within(Duration::from_millis(50)), hang).expect_err("too long");
    assert!(matches!(fault, Fault::Late), "{fault}");
    assert!(began.elapsed() < LONG);
}

#[test]
fn logs_are_cut_while_they_are_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    let mut log = log_file(&path).expect("a log");
    log.write_all(b"one\ntwo \x1b[1m\n\n").expect("written");
    assert_eq!(last_line(&log), "two [1m");
    shorten(&path, 5);
    log.write_all(b"three\n").expect("written");
    assert_eq!(fs::read_to_string(&path).expect("read"), "three\n");
    shorten(&path, 50);
    assert_eq!(last_line(&log), "three");
}
