//! `baton plan --trace`: what it prints, and what it says of bad files.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/cluster.json");

fn baton(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command.args(arguments).env_remove("RUST_LOG").env_remove("JOURNAL_STREAM");
    let Output { status, stdout, stderr } = command.output().expect("the program runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("not killed"), text(stdout), text(stderr))
}

/// Writes a file and plans it.
fn plan(text: &str, more: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cluster.json");
    fs::write(&file, text).expect("written");
    let file = file.to_str().expect("UTF-8");
    let (status, out, err) = baton(&[&["plan", "--trace", file], more].concat());
    (status, out, err.replace(file, "FILE"))
}

fn json_of(text: &Value) -> (i32, Value) {
    let (status, out, _) = plan(&text.to_string(), &["--json"]);
    (status, serde_json::from_str(&out).expect("JSON"))
}

#[test]
fn the_example_is_planned_for_people() {
    let (status, out, err) = baton(&["plan", "--trace", EXAMPLE]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(out.starts_with("1 start, "), "{out}");
    assert!(out.contains("highest node load 80.0 % before, "), "{out}");
    assert!(out.contains("STEP  WHAT   VIRTUAL SERVER  FROM  TO"), "{out}");
    assert!(out.contains("balance: the higher of the two from 80.0 % to "), "{out}");
    assert!(out.contains("\nfs1   up     80.0 %  "), "{out}");
}

#[test]
fn json_has_the_agreed_keys_and_the_moves_lead_to_the_placements() {
    let (status, out, err) = baton(&["plan", "--json", "--trace", EXAMPLE]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert_eq!(out.lines().count(), 1);
    let plan: Value = serde_json::from_str(&out).expect("JSON");
    let mut keys: Vec<&str> = plan.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["highest_load", "lower_bound", "moves", "placements", "unplaced"]);
    let mut example: Value = serde_json::from_str(&fs::read_to_string(EXAMPLE).expect("read")).expect("JSON");
    let servers = example["virtual_servers"].as_array_mut().expect("a list");
    let placements = plan["placements"].as_array().expect("a list");
    assert_eq!(placements.len(), servers.len());
    let place = |name: &Value| {
        placements.iter().find(|p| p["virtual_server"] == *name).map(|p| p["node"].clone()).expect("placed")
    };
    let moves = plan["moves"].as_array().expect("a list");
    assert!(!moves.is_empty());
    for server in servers.iter_mut() {
        let moved = moves.iter().find(|m| m["virtual_server"] == server["name"]);
        if let Some(moved) = moved {
            assert_eq!(moved["from"], server["owner"]);
            assert_eq!(moved["to"], place(&server["name"]));
            assert!(moved["why"].as_str().is_some_and(|w| !w.is_empty()));
        } else if !server["owner"].is_null() {
            assert_eq!(server["owner"], place(&server["name"]));
        }
        server["owner"] = place(&server["name"]);
    }
    let (highest, bound) = (plan["highest_load"].as_f64().unwrap(), plan["lower_bound"].as_f64().unwrap());
    assert!(bound <= highest && highest <= 1.05 * bound, "{highest} {bound}");
    // Carried out, it leaves nothing to do.
    let (status, again) = json_of(&example);
    assert_eq!((status, &again["moves"]), (0, &json!([])));
    assert_eq!(again["placements"], plan["placements"]);
}

#[test]
fn without_a_node_its_servers_go_to_several_and_pinned_ones_nowhere() {
    let (status, out, err) = baton(&["plan", "--json", "--trace", EXAMPLE, "--without", "fs1"]);
    assert_eq!((status, err.as_str()), (0, ""));
    let plan: Value = serde_json::from_str(&out).expect("JSON");
    let to: std::collections::BTreeSet<&str> =
        plan["moves"].as_array().expect("a list").iter().filter_map(|m| m["to"].as_str()).collect();
    assert_eq!(to.into_iter().collect::<Vec<_>>(), ["fs2", "fs3"]);
    assert!(
        plan["moves"]
            .as_array()
            .expect("a list")
            .iter()
            .all(|m| m["from"] == "fs1" && m["kind"] == "takeover")
    );

    let (status, out, err) = baton(&["plan", "--trace", EXAMPLE, "--without", "fs2"]);
    assert_eq!(status, 1);
    assert!(
        out.ends_with("CANNOT BE PLACED\n  measurements: it may not leave fs2, which is dead\n"),
        "{out}"
    );
    assert_eq!(err, "baton: 1 virtual server cannot be placed: measurements; see the reasons in the plan\n");

    let (status, out, err) = baton(&["plan", "--trace", EXAMPLE, "--without", "fs9"]);
    assert_eq!((status, out.as_str()), (1, ""));
    assert_eq!(err, "baton: there is no node \"fs9\"; there are fs1, fs2, fs3\n");
}

#[test]
fn what_cannot_be_placed_is_in_the_answer_and_the_exit_status() {
    let (status, plan) = json_of(&json!({
        "nodes": [{"name": "fs1", "capacity": 1, "segments": ["office"]}],
        "virtual_servers": [
            {"name": "a", "load": 0.2},
            {"name": "b", "load": 0.2, "segments": ["lab"]},
            {"name": "c", "load": 0.9},
        ],
    }));
    assert_eq!(status, 1);
    assert_eq!(plan["placements"], json!([{"virtual_server": "c", "node": "fs1"}]));
    assert_eq!(
        plan["unplaced"],
        json!([
            {"virtual_server": "a", "reason": "its load of 0.2 fits on no node; fs1 has the most room, 0.1"},
            {"virtual_server": "b", "reason": "no node that may have it has a good port in segment lab"},
        ])
    );
}

#[test]
fn defaults_are_as_documented() {
    let (status, plan) = json_of(&json!({
        "nodes": [{"name": "fs1"}, {"name": "fs2", "state": "draining"}],
        "virtual_servers": [{"name": "a", "load": 0.25}, {"name": "b", "load": 0.25, "owner": "fs2"}],
    }));
    assert_eq!(status, 0);
    assert_eq!((&plan["highest_load"], &plan["lower_bound"]), (&json!(0.5), &json!(0.5)));
    let (status, plan) = json_of(&json!({"nodes": [], "virtual_servers": []}));
    assert_eq!(status, 0);
    assert_eq!(
        plan,
        json!({"placements": [], "moves": [], "highest_load": 0.0, "lower_bound": 0.0, "unplaced": []})
    );
}

#[test]
fn bad_files_get_one_clear_error_and_64() {
    let with =
        |nodes: &str, servers: &str| format!("{{\"nodes\": [{nodes}],\n \"virtual_servers\": [{servers}]}}");
    let node = r#"{"name": "fs1"}"#;
    let cases = [
        ("", "FILE:1:1: EOF while parsing a value; the file ends too early"),
        ("{\"nodes\": [", "FILE:1:11: EOF while parsing a list; the file ends too early"),
        ("{\n  \"nodes\": oops", "FILE:2:12: expected value; correct the JSON at this place"),
        ("{\"nodes\": []}", "FILE:1:13: missing field `virtual_servers`; `baton plan --help`"),
        (&with(r#"{"name": "fs1", "color": 1}"#, ""), "FILE:1:"),
        (&with(node, r#"{"name": "a", "load": 0.1, "weight": 2}"#), "FILE:2:"),
        (&with(node, r#"{"name": "a"}"#), "FILE:2:"),
        (&with(node, r#"{"name": "a", "load": NaN}"#), "FILE:2:"),
        (&with(node, r#"{"name": "a", "load": 1e999}"#), "FILE:2:"),
        (&with(node, r#"{"name": "a", "load": "much"}"#), "FILE:2:"),
        (&with(node, r#"{"name": "a", "load": 1, "load": 1}"#), "FILE:2:"),
        (&with(r#"{"name": "fs1", "state": "sleepy"}"#, ""), "FILE:1:"),
        (&with(r#"{"name": "fs1", "capacity": 0}"#, ""), "FILE: node \"fs1\": its capacity is 0; it must be"),
        (&with(r#"{"name": "fs1"}, {"name": "fs1"}"#, ""), "FILE: two nodes are called \"fs1\"; give each"),
        (&with(r#"{"name": ""}"#, ""), "FILE: a node has an empty name; give it one"),
        (
            &with(node, r#"{"name": "a", "load": -0.1}"#),
            "FILE: virtual server \"a\": its load is -0.1; it must be",
        ),
        (
            &with(node, r#"{"name": "a", "load": 0}, {"name": "a", "load": 0}"#),
            "FILE: two virtual servers are called \"a\"; give each",
        ),
        (
            &with(node, r#"{"name": "a", "load": 0, "owner": "fs7"}"#),
            "FILE: virtual server \"a\": owner names \"fs7\", which is no node; add the node",
        ),
        (
            &with(node, r#"{"name": "a", "load": 0, "preferred_nodes": ["fs7"]}"#),
            "FILE: virtual server \"a\": preferred_nodes names \"fs7\", which is no node",
        ),
        (
            &with(node, r#"{"name": "a", "load": 0, "never_with": ["b"]}"#),
            "FILE: virtual server \"a\": never_with names \"b\", which is no virtual server",
        ),
    ];
    for (text, expected) in cases {
        let (status, out, err) = plan(text, &["--json"]);
        assert_eq!((status, out.as_str()), (64, ""), "{text}: {err}");
        assert_eq!(err.lines().count(), 1, "{text}: {err}");
        assert!(err.starts_with(expected), "{text}: {err}");
        assert!(err.contains("; "), "says what to do: {err}");
    }
    let (status, _, err) = baton(&["plan", "--trace", "/nonexistent/cluster.json"]);
    assert_eq!(status, 64);
    assert!(err.starts_with("/nonexistent/cluster.json: cannot be read: "), "{err}");
}

#[test]
fn without_a_trace_it_asks_the_agent() {
    let folder = std::env::temp_dir().join(format!("baton-plan-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("baton.toml");
    let socket = folder.join("none.sock");
    std::fs::write(&file, format!("[node]\nname = \"fs1\"\n[control]\nsocket = {socket:?}\n")).unwrap();
    let (status, out, err) = baton(&["plan", "--config", file.to_str().unwrap()]);
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.contains("none.sock") && err.lines().count() == 1, "{err}");
}
