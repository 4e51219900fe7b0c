use super::*;

const FILE: &str = r#"
[node]
name = "fs1"

[[port]]
interface = "eth0"
segment = "office"

[[segment]]
name = "office"
subnets = ["10.0.0.0/24"]

[[virtual_server]]
name = "projects"
addresses = ["10.0.0.10/24", "10.0.0.11/24"]
"#;

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
    let text = format!("{FILE}# none\n");
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
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("baton.toml");
    let configuration = Configuration::new(file.clone(), parsed(FILE));
    let refused = async |text: &str| {
        std::fs::write(&file, text).expect("written");
        check(&configuration).await.map(|_| ()).expect_err("refused")
    };
    let error = refused(&FILE.replace("fs1", "fs2")).await;
    assert!(error.ends_with("baton.toml:3:9: `name` in [node] can't be changed while the agent runs; set it back, or restart the agent (`systemctl restart baton`: what it serves stays served)"), "{error}");
    let error = refused(&FILE.replace("[[port]]", "[store]\npath = \"/x/y\"\n[[port]]")).await;
    assert!(error.contains(":6:9: `path` in [store] can't be changed"), "{error}");
    let error = refused(&FILE.replace("10.0.0.11/24", "10.0.0.300/24")).await;
    assert!(error.contains("baton.toml:15:"), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("its address");
    let error =
        refused(&FILE.replace("[[port]]", &format!("[telemetry]\nlisten = \"{listen}\"\n[[port]]"))).await;
    assert!(error.contains("can't be used") && error.contains("choose another"), "{error}");
    let token = folder.path().join("token");
    std::fs::write(&token, "0123456789abcdef").expect("written");
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(&token, mode(0o644)).expect("set");
    let with_token = FILE.replace("[[port]]", &format!("[telemetry]\ntoken_file = {token:?}\n[[port]]"));
    let error = refused(&with_token).await;
    assert!(error.contains(&format!("(mode 644): run `chmod 600 {}`", token.display())), "{error}");
    std::fs::set_permissions(&token, mode(0o600)).expect("set");
    std::fs::write(&file, &with_token).expect("written");
    assert!(check(&configuration).await.is_ok());
    std::fs::write(&file, FILE).expect("written");
    let (_, how, changes) = check(&configuration).await.expect("accepted");
    assert_eq!((how, changes), (How::Nothing, Vec::new()));
}
