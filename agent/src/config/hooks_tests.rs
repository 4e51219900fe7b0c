use std::time::Duration;

use super::super::parse;
use super::super::texts::{NODE, errors as all_errors};

fn errors(hooks: &str) -> Vec<String> {
    all_errors(&format!("{NODE}{hooks}"))
}

#[test]
fn a_hook_is_named_by_its_program_unless_it_has_a_name() {
    let text = format!(
        "{NODE}[[hook]]\non = [\"takeover\", \"port\"]\nrun = [\"/usr/local/sbin/page\", \"--loud\"]\n\
         [[hook]]\nname = \"log\"\non = [\"all\"]\nrun = [\"/usr/local/sbin/page\"]\ntimeout = \"500ms\"\n"
    );
    let hooks = parse(&text, "f").expect("good").agent.hooks;
    assert_eq!((hooks[0].name.as_str(), hooks[0].timeout), ("page", Duration::from_secs(10)));
    assert_eq!(hooks[0].on, ["takeover", "port"]);
    assert_eq!(hooks[0].run, ["/usr/local/sbin/page", "--loud"]);
    assert_eq!((hooks[1].name.as_str(), hooks[1].timeout), ("log", Duration::from_millis(500)));
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_what_to_do() {
    let table = [
        (
            "[[hook]]\n",
            vec![
                "12:1: [[hook]] has no `on`: it would never run; add on",
                "12:1: [[hook]] has no `run`; add run",
            ],
        ),
        (
            "[[hook]]\non = []\nrun = []\n",
            vec!["13:6: `on` in [[hook]] is empty", "14:7: `run` in [[hook]] is empty"],
        ),
        (
            "[[hook]]\non = [\"takover\"]\nrun = [\"/x\"]\n",
            vec!["13:8: there is no event \"takover\"; did you mean \"takeover\"?"],
        ),
        (
            "[[hook]]\non = [\"weather\"]\nrun = [\"/x\"]\n",
            vec!["13:8: there is no event \"weather\"; known are all, "],
        ),
        (
            "[[hook]]\non = [\"all\", 1]\nrun = [\"/x\"]\n",
            vec!["13:14: `on` in [[hook]] is a number; write names of events"],
        ),
        (
            "[[hook]]\non = [\"all\"]\nrun = [\"page\"]\n",
            vec!["14:9: `run` in [[hook]] begins with \"page\", not the path"],
        ),
        (
            "[[hook]]\non = [\"all\"]\nrun = \"/bin/page x\"\n",
            vec!["14:8: `run` in [[hook]] is a text; write a list"],
        ),
        (
            "[[hook]]\non = [\"all\"]\nrun = [\"/x\", \"a\\u0000\"]\n",
            vec!["14:15: `run` in [[hook]] has a character"],
        ),
        (
            "[[hook]]\non = [\"all\"]\nrun = [\"/x\"]\ntimeout = \"1h\"\n",
            vec!["15:12: `timeout` in [[hook]] is \"1h\"; choose"],
        ),
        (
            "[[hook]]\non = [\"all\"]\nrun = [\"/x\"]\ntime = \"1s\"\n",
            vec!["15:1: unknown key in [[hook]]: `time`; did you mean"],
        ),
        (
            "[[hook]]\nname = \"a b\"\non = [\"all\"]\nrun = [\"/x\"]\n",
            vec!["13:9: hook name \"a b\"; use up to 63 letters"],
        ),
        (
            "[[hook]]\non = [\"all\"]\nrun = [\"/x/a b\"]\n",
            vec!["14:9: the program's name, \"a b\", can't be the hook's; give"],
        ),
        (
            "[[hook]]\non = [\"all\"]\nrun = [\"/x/page\"]\n[[hook]]\non = [\"all\"]\nrun = [\"/y/page\"]\n",
            vec!["17:9: two hooks are called \"page\", first in line 14; give them"],
        ),
        (
            "[hook]\non = [\"all\"]\n",
            vec!["12:1: [[hook]] is a section, not a list of sections; write [[hook]]"],
        ),
    ];
    for (text, wanted) in table {
        let errors = errors(text);
        let fits = errors.len() == wanted.len() && errors.iter().zip(&wanted).all(|(e, w)| e.starts_with(w));
        assert!(fits, "{text}\n{errors:#?}\nwanted {wanted:#?}");
    }
}

/// Hooks are a node's own.
#[test]
fn the_cluster_has_no_hooks() {
    let text = "[cluster]\nmembers = [\"a\", \"b\", \"c\"]\n[[segment]]\nname = \"o\"\nsubnets = [\"10.0.0.0/24\"]\n[[hook]]\non = [\"all\"]\nrun = [\"/x\"]\n";
    let errors = super::super::Definitions::parse(text, "f").expect_err("accepted").to_string();
    assert!(errors.contains("`hook` belongs to a node, not to the cluster; put it"), "{errors}");
}
