//! Files that tests of the configuration begin with, and what is said of them.

use std::fmt::Display;

use super::{Definitions, Loaded, parse};

macro_rules! port {
    () => {
        r#"[node]
name = "fs1"
[[port]]
interface = "eth0"
segment = "office"
[[segment]]
name = "office"
"#
    };
}

macro_rules! node {
    () => {
        concat!(port!(), "subnets = [\"10.0.0.0/24\"]\n")
    };
}

macro_rules! cluster {
    () => {
        r#"[cluster]
members = ["fs1", "fs2", "fs3"]
[[segment]]
name = "office"
subnets = ["10.0.0.0/24"]
"#
    };
}

macro_rules! projects {
    () => {
        r#"[[virtual_server]]
name = "projects"
addresses = ["10.0.0.10/24"]
"#
    };
}

macro_rules! homes {
    () => {
        r#"[[virtual_server]]
name = "homes"
addresses = ["10.0.0.11/24"]
"#
    };
}

/// A good file of a node that is alone, with one virtual server: 11 lines.
pub(crate) const NODE: &str = concat!(node!(), projects!());
/// The same with both families and a gateway: 12 lines.
pub(super) const NODE_WITH_GATEWAY: &str = concat!(
    port!(),
    r#"subnets = ["10.0.0.0/24", "fd00:10::/64"]
gateway = ["10.0.0.1"]
[[virtual_server]]
name = "projects"
addresses = ["10.0.0.10/24", "fd00:10::10/64"]
"#
);
/// The same, with two: 14 lines.
pub(super) const NODE_WITH_TWO: &str = concat!(node!(), projects!(), homes!());
/// A good file of a cluster, without a virtual server: 5 lines.
pub(super) const BARE_CLUSTER: &str = cluster!();
/// The same, with one: 8 lines.
pub(super) const CLUSTER: &str = concat!(cluster!(), projects!());
/// The same, with two: 11 lines.
pub(super) const CLUSTER_WITH_TWO: &str = concat!(cluster!(), projects!(), homes!());
/// A virtual server.
pub(super) const SERVER: &str = projects!();

/// A node's file, which is good.
pub(super) fn good(text: &str) -> Loaded {
    parse(text, "f").unwrap_or_else(|e| panic!("refused:\n{e}\n---\n{text}"))
}

/// A cluster's file, which is good, and its warnings.
pub(super) fn good_cluster(text: &str) -> (Definitions, Vec<String>) {
    let parsed = Definitions::parse(text, "f");
    let (definitions, warnings) = parsed.unwrap_or_else(|e| panic!("refused:\n{e}\n---\n{text}"));
    (definitions, said(&warnings))
}

/// `line:column: what` of every error in a node's file.
pub(super) fn errors(text: &str) -> Vec<String> {
    said(&parse(text, "f").expect_err("accepted"))
}

/// The same, of a cluster's.
pub(super) fn cluster_errors(text: &str) -> Vec<String> {
    said(&Definitions::parse(text, "f").expect_err("accepted"))
}

/// What is said of the file, line by line.
pub(super) fn said(problems: &impl Display) -> Vec<String> {
    let text = problems.to_string();
    text.lines().map(|l| l.strip_prefix("f:").expect("starts with the file").to_owned()).collect()
}

/// Warnings, but for that of the only port, which these small files have.
pub(super) fn warnings(problems: &impl Display) -> Vec<String> {
    let mut all = said(problems);
    all.retain(|w| !w.contains("has one port: "));
    all
}

/// With the lines counted from the first after `head`.
pub(super) fn below(head: &str, said: Vec<String>) -> Vec<String> {
    let first = head.lines().count();
    let counted = |line: String| {
        let (line, rest) = line.split_once(':').expect("a line");
        format!("{}:{rest}", line.parse::<usize>().expect("a number") - first)
    };
    said.into_iter().map(counted).collect()
}
