//! Programs that do what they should, fail, hang, say too much, are missing, and outlive the agent.

use std::fs;
use std::path::{Path, PathBuf};

use baton_core::{Reason, Time};

use super::*;
use crate::testing::{LONG, script, until};

struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        Lab { folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A hook that runs these lines, with the folder as its first argument.
    fn hook(&self, name: &str, on: &[&str], lines: &str) -> Hook {
        let program = self.path(name);
        script(&program, &format!("cd \"$1\" || exit 9\n{lines}"));
        Hook {
            name: name.to_owned(),
            on: on.iter().map(|w| (*w).to_owned()).collect(),
            run: vec![program.display().to_string(), self.folder.path().display().to_string()],
            timeout: LONG,
        }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

fn event(kind: EventKind) -> Record {
    Record::now(Event { at: Time(1), failover: Some(3), kind })
}

fn drained(node: &str) -> Record {
    event(EventKind::Draining { node: node.to_owned() })
}

fn runs(hooks: &Hooks, hook: &str, result: &'static str) -> u64 {
    hooks.runs().get_or_create(&RunLabels { hook: hook.to_owned(), result }).get()
}

/// The processes whose environment has this: other tests run at the same time.
fn processes(folder: &Path) -> usize {
    let wanted = folder.display().to_string();
    let has = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&wanted)
    };
    fs::read_dir("/proc").expect("/proc").flatten().filter_map(|e| has(e).then_some(())).count()
}

#[test]
fn a_hook_runs_once_for_each_event_that_it_wants_and_in_order() {
    let lab = Lab::new();
    let lines = "cat >> seen\nenv | sort > environment\necho \"$BATON_EVENT\" >> words";
    let hooks =
        Hooks::start("fs1", vec![lab.hook("page", &["draining", "port_failover"], lines)]).expect("started");
    for n in 0..20 {
        hooks.tell(&drained(&format!("n{n}")));
        hooks.tell(&event(EventKind::StoreLost));
    }
    let (kind, reason) = (FailoverKind::Port, Reason::CarrierLost);
    hooks.tell(&event(EventKind::Failover { kind, reason, moves: Vec::new() }));
    hooks.tell(&event(EventKind::Failover { kind: FailoverKind::Move, reason, moves: Vec::new() }));
    until("21 runs", || runs(&hooks, "page", "ok") == 21);
    let seen: Vec<serde_json::Value> =
        lab.read("seen").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<&str> = seen.iter().filter_map(|e| e.get("event")?.as_str()).collect();
    assert_eq!(names.len(), 21, "{names:?}");
    for (n, event) in seen[..20].iter().enumerate() {
        let told = event["sentence"].as_str().expect("a sentence");
        assert_eq!(told, format!("n{n} is being drained"));
        assert_eq!(event["failover"], 3);
    }
    assert_eq!((&seen[20]["event"], &seen[20]["reason"]), (&"failover".into(), &"carrier_lost".into()));
    assert_eq!(lab.read("words").lines().last(), Some("failover"));
    // Nothing of this process' environment.
    let environment = lab.read("environment");
    let known = [
        "BATON_EVENT=",
        "BATON_HOOK=page",
        "BATON_NODE=fs1",
        "LANG=",
        "PATH=",
        "PWD=",
        "OLDPWD=",
        "SHLVL=",
        "_=",
    ];
    for line in environment.lines() {
        assert!(known.iter().any(|k| line.starts_with(k)), "{line}");
    }
    let results = ["failed", "timeout", "not_started", "dropped"];
    assert_eq!(results.map(|result| runs(&hooks, "page", result)), [0; 4]);
}

#[test]
fn one_that_fails_or_is_missing_is_told_of_the_next_event_all_the_same() {
    let lab = Lab::new();
    let missing = Hook {
        name: "missing".to_owned(),
        on: vec!["all".to_owned()],
        run: vec![lab.path("nowhere").display().to_string()],
        timeout: LONG,
    };
    let failing = lab.hook("failing", &["all"], "echo one; echo two >&2; exit 3");
    assert!(complaint(&missing).expect("a complaint").contains("nowhere"));
    assert_eq!(complaint(&failing), None);
    let alone = run::run(&failing, "fs1", "draining", b"{}").expect_err("it fails");
    assert_eq!((alone.result(), alone.to_string().as_str()), ("failed", "exit status 3: one | two"));
    let hooks = Hooks::start("fs1", vec![missing, failing]).expect("started");
    (0..3).for_each(|_| hooks.tell(&drained("n1")));
    until("three failures of each", || {
        runs(&hooks, "missing", "not_started") == 3 && runs(&hooks, "failing", "failed") == 3
    });
}

#[test]
fn one_that_hangs_is_killed_with_its_children_and_holds_up_nobody_else() {
    let lab = Lab::new();
    let mut hanging =
        lab.hook("hanging", &["all"], "trap '' TERM\nsleep 1000 &\necho begun >> begun\nwait\nsleep 1000");
    hanging.timeout = Duration::from_millis(300);
    // The children's command lines don't have the folder: they are found by their group.
    let good = lab.hook("good", &["all"], "echo done >> done");
    let hooks = Hooks::start("fs1", vec![hanging.clone(), good]).expect("started");
    hooks.tell(&drained("n1"));
    hooks.tell(&drained("n2"));
    until("two runs of the good one", || runs(&hooks, "good", "ok") == 2);
    until("two that were killed", || runs(&hooks, "hanging", "timeout") == 2);
    until("no process of it", || processes(lab.folder.path()) == 0);
    let fault = run::run(&hanging, "fs1", "draining", b"{}").expect_err("it hangs");
    assert_eq!(fault.to_string(), "it took longer than 300ms, and was killed");
}

#[test]
fn its_children_die_with_it() {
    let lab = Lab::new();
    let mut hook = lab.hook("parent", &["all"], "sh -c 'echo $$ > child; sleep 1000; :' \"$1\" &\nwait");
    hook.timeout = Duration::from_millis(500);
    // Long enough for the child to begin, also on a busy machine.
    let child: i32 = loop {
        hook.timeout = (hook.timeout * 2).clamp(Duration::from_secs(1), LONG);
        let fault = run::run(&hook, "fs1", "draining", b"{}").expect_err("it hangs");
        assert_eq!(fault.result(), "timeout");
        match lab.read("child").trim().parse() {
            Ok(child) => break child,
            Err(_) => assert!(hook.timeout < LONG, "the child has not begun"),
        }
    };
    let lives = || crate::resources::process::Process::of(child).is_some_and(|p| p.is_alive());
    until("its child to be gone", || !lives());
}

#[test]
fn one_that_says_too_much_is_killed() {
    let lab = Lab::new();
    let hook = lab.hook("loud", &["all"], "exec yes");
    let fault = run::run(&hook, "fs1", "draining", b"{}").expect_err("it never ends");
    assert_eq!(fault.result(), "timeout");
}

#[test]
fn a_full_queue_drops_events_and_waits_for_nobody() {
    let lab = Lab::new();
    let hook = lab.hook("slow", &["all"], "while [ ! -e go ]; do sleep 0.02; done; cat > /dev/null");
    let hooks = Hooks::start("fs1", vec![hook]).expect("started");
    let all = QUEUE + 10;
    (0..all).for_each(|_| hooks.tell(&drained("n1")));
    let dropped = runs(&hooks, "slow", "dropped");
    // One may have been taken from the queue by then.
    assert!((9..=10).contains(&dropped), "{dropped}");
    fs::write(lab.path("go"), "").expect("written");
    until("all others", || runs(&hooks, "slow", "ok") + dropped == all as u64);
}

#[test]
fn so_many_run_at_the_same_time_and_no_more() {
    let lab = Lab::new();
    let line = "echo $$ > running-$$; ls | grep -c ^running- >> counted; while [ ! -e go ]; do sleep 0.02; done; rm running-$$";
    let names: Vec<String> = (0..AT_ONCE + 3).map(|n| format!("h{n}")).collect();
    let all = names.iter().map(|name| lab.hook(name, &["all"], line)).collect();
    let hooks = Hooks::start("fs1", all).expect("started");
    hooks.tell(&drained("n1"));
    until("as many as may", || lab.read("counted").lines().count() == AT_ONCE);
    thread::sleep(Duration::from_millis(200)); // in which no other one begins
    assert_eq!(lab.read("counted").lines().count(), AT_ONCE);
    fs::write(lab.path("go"), "").expect("written");
    until("all", || names.iter().all(|name| runs(&hooks, name, "ok") == 1));
    let most = lab.read("counted").lines().filter_map(|n| n.parse::<usize>().ok()).max();
    assert!(most <= Some(AT_ONCE), "{most:?}");
}

/// A hook whose agent is gone has its limit from the kernel.
#[test]
fn the_kernel_knows_the_limit_too() {
    let lab = Lab::new();
    // What alarm(2) returns when it is set anew is what was left of it.
    let script = "exec perl -e 'print alarm(0); exit 7'";
    let hook = Hook { timeout: Duration::from_secs(20), ..lab.hook("alarm", &["all"], script) };
    let said = run::run(&hook, "fs1", "draining", b"{}").expect_err("status 7").to_string();
    let left: u32 = said.strip_prefix("exit status 7: ").and_then(|n| n.parse().ok()).unwrap_or_default();
    assert!((1..=23).contains(&left), "{said}");
}

/// The words are those that the journal has: what serde names when it meets another one.
#[test]
fn there_is_a_word_for_each_event() {
    let error =
        serde_json::from_str::<EventKind>("{\"event\":\"nothing\"}").expect_err("no such event").to_string();
    let known = error.split_once("expected one of ").expect("a list").1;
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    assert!(known.len() > 30, "{error}");
    assert_eq!(WORDS[4..], known[..]);
    for kind in [EventKind::StoreLost, EventKind::LeaseBegins, EventKind::Draining { node: "n".to_owned() }] {
        assert_eq!(serde_json::to_value(&kind).expect("JSON")["event"], words::of(&kind));
    }
}
