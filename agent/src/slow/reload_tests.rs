use super::*;
use crate::config::texts::NODE;
use crate::telemetry::tls_tests;

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
        check(&configuration, None).await.map(|_| ()).expect_err("refused")
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
    let token = folder.path().join("token");
    std::fs::write(&token, "0123456789abcdef").expect("written");
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(&token, mode(0o644)).expect("set");
    let with_token = good.replace("[[port]]", &format!("[telemetry]\ntoken_file = {token:?}\n[[port]]"));
    let error = refused(&with_token).await;
    assert!(error.contains(&format!("(mode 644): run `chmod 600 {}`", token.display())), "{error}");
    std::fs::set_permissions(&token, mode(0o600)).expect("set");
    std::fs::write(&file, &with_token).expect("written");
    assert!(check(&configuration, None).await.is_ok());
    std::fs::write(&file, &good).expect("written");
    let checked = check(&configuration, None).await.expect("accepted");
    assert_eq!((checked.how, checked.changes), (How::Nothing, Vec::new()));
}

/// An agent without its fast thread, which takes up whatever comes.
fn reloading() -> Reloading {
    let (fast, mut reloads) = mpsc::channel::<fast::Reload>(1);
    tokio::spawn(async move {
        while let Some(reload) = reloads.recv().await {
            let _ = reload.done.send(());
        }
    });
    let (_, published) = telemetry::channel();
    let metrics = Arc::new(Metrics::new(published.clone()));
    let (events, _) = mpsc::channel(8);
    let (sampled, _) = watch::channel(parsed(&file()).core);
    Reloading { fast, events, sampled, metrics, published, http: None, tls: None, traces: None }
}

#[tokio::test]
async fn a_renewed_certificate_is_served_after_a_reload_and_a_broken_one_changes_nothing() {
    let folder = tls_tests::folder();
    let file = folder.path().join("baton.toml");
    // An address that no other process has: loopback has many.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let address = std::net::SocketAddr::from(([127, 64 | a & 0x3f, b, c], 9477));
    let path = |name: &str| folder.path().join(name).display().to_string();
    let text = format!(
        "[telemetry]\nlisten = \"{address}\"\ntls_certificate = {:?}\ntls_key = {:?}\n{NODE}",
        path("page.pem"),
        path("page.key")
    );
    std::fs::write(&file, &text).expect("written");
    let mut configuration = Configuration::new(file.clone(), parsed(&text));
    let mut agent = reloading();
    agent.start_telemetry(&configuration.loaded.clone()).await;
    let shown = async || {
        let end = tokio::time::Instant::now() + crate::testing::LONG;
        loop {
            match tls_tests::connect(&folder, address, None).await {
                Ok(stream) => {
                    let (_, session) = stream.get_ref();
                    return session.peer_certificates().expect("a certificate")[0].to_vec();
                }
                // It listens as soon as it has come round to it.
                Err(e) => assert!(tokio::time::Instant::now() < end, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reload = async |agent: &mut Reloading, configuration: &mut Configuration, dry_run: bool| {
        let (answer, answered) = oneshot::channel();
        assert!(!agent.reload(configuration, Some(ReloadCall { dry_run, answer })).await);
        serde_json::to_string(&answered.await.expect("an answer")).expect("JSON")
    };
    let first = shown().await;
    let said = reload(&mut agent, &mut configuration, false).await;
    assert!(said.contains("nothing") && !said.contains("certificates"), "{said}");
    tls_tests::issue(&folder, "page", "ca");
    assert_eq!(shown().await, first, "until it is told");
    let said = reload(&mut agent, &mut configuration, true).await;
    assert!(said.contains("other certificates in the files"), "{said}");
    assert_eq!(shown().await, first, "only asked");
    let said = reload(&mut agent, &mut configuration, false).await;
    assert!(said.contains("in_place") && said.contains("other certificates in the files"), "{said}");
    let second = shown().await;
    assert_ne!(second, first);
    // A key that is not the certificate's.
    std::fs::copy(path("me.key"), path("page.key")).expect("copied");
    let said = reload(&mut agent, &mut configuration, false).await;
    assert!(said.contains("baton.toml: telemetry.tls_certificate = "), "{said}");
    assert!(said.contains("the one for that key"), "{said}");
    assert_eq!(shown().await, second);
    agent.http.expect("served").abort();
}
