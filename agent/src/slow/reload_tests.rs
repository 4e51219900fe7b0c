use super::*;
use crate::config::texts::NODE;

/// A node with a virtual server that has two addresses.
fn file() -> String {
    NODE.replace("10.0.0.10/24", "10.0.0.10/24\", \"10.0.0.11/24")
}

fn parsed(text: &str) -> Loaded {
    config::parse(text, "baton.toml").expect("a good file")
}

#[test]
fn what_is_different_is_said_and_changed_in_place_where_that_can_be() {
    let telemetry = "[telemetry]\nlisten = \"off\"\n[[port]]";
    let service = "[[virtual_server.service]]\nkind = \"systemd\"\nunit = \"a.service\"\n";
    let table: [(&str, &str, How, &[&str]); 8] = [
        ("# none", "# none", How::Nothing, &[]),
        (", \"10.0.0.11/24\"", "", How::InPlace, &["~ virtual server projects: - address 10.0.0.11/24"]),
        (
            "10.0.0.11/24",
            "10.0.0.12/24",
            How::InPlace,
            &["~ virtual server projects: - address 10.0.0.11/24, + address 10.0.0.12/24"],
        ),
        (
            "\"projects\"",
            "\"homes\"\npriority = 7",
            How::InPlace,
            &["- virtual server projects", "+ virtual server homes"],
        ),
        ("[[port]]", telemetry, How::InPlace, &["node: telemetry.listen 127.0.0.1:9477 -> off"]),
        (
            "name = \"fs1\"",
            "name = \"fs1\"\nagent_grace = \"3s\"",
            How::InPlace,
            &["node: agent_grace 2s -> 3s"],
        ),
        (
            "[[port]]",
            "[[port]]\ninterface = \"eth1\"\nsegment = \"office\"\n[[port]]",
            How::InPlace,
            &["+ port eth1"],
        ),
        (
            "\"10.0.0.11/24\"]\n",
            &format!("\"10.0.0.11/24\"]\n{service}"),
            How::Anew,
            &["+ file systems and services of projects"],
        ),
    ];
    let text = file() + "# none\n";
    for (from, to, how_expected, lines) in table {
        let (old, new) = (parsed(&text), parsed(&text.replacen(from, to, 1)));
        assert_eq!(how(&old, &new), how_expected, "{to}");
        let found = config::difference(&old, &new);
        // A virtual server with services is another one for core, too.
        let found: Vec<&str> =
            found.iter().map(String::as_str).filter(|l| *l != "~ virtual server projects").collect();
        assert_eq!(found, lines, "{to}");
    }
}

/// What can't be changed is refused with its place and what to do; so is whatever `baton check` refuses.
#[tokio::test]
async fn refusals_have_line_column_and_remedy() {
    let good = file();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("baton.toml");
    let configuration = Configuration::new(file.clone(), parsed(&good));
    let refused = async |text: &str| {
        std::fs::write(&file, text).expect("written");
        check(&configuration).await.map(|_| ()).expect_err("refused")
    };
    let error = refused(&good.replace("fs1", "fs2")).await;
    assert!(error.ends_with("baton.toml:2:9: `name` in [node] can't be changed while the agent runs; set it back, or restart the agent (`systemctl restart baton`: what it serves stays served)"), "{error}");
    let error = refused(&good.replace("[[port]]", "[store]\npath = \"/x/y\"\n[[port]]")).await;
    assert!(error.contains(":4:9: `path` in [store] can't be changed"), "{error}");
    let error = refused(&good.replace("10.0.0.11/24", "10.0.0.300/24")).await;
    assert!(error.contains("baton.toml:11:"), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("its address");
    let error =
        refused(&good.replace("[[port]]", &format!("[telemetry]\nlisten = \"{listen}\"\n[[port]]"))).await;
    assert!(error.contains("can't be used") && error.contains("choose another"), "{error}");
    std::fs::write(&file, &good).expect("written");
    let (_, how, changes) = check(&configuration).await.expect("accepted");
    assert_eq!((how, changes), (How::Nothing, Vec::new()));
}
