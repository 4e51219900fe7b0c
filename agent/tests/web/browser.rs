//! A headless Chromium, told what to do by the DevTools protocol over a pair of pipes
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

/// Debian's package chromium-headless-shell; `make test` installs it.
const PROGRAM: &str = "chromium-headless-shell";
/// How long a page may take to show something.
const LONG: Duration = Duration::from_secs(60);

/// A browser with one page. Dropped: it is gone.
pub struct Browser {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Value,
    last: u64,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts it, with an empty page.
    pub fn start() -> Browser {
        let profile = tempfile::tempdir().expect("a folder");
        // The pipes are to be descriptors 3 and 4 there.
        let script = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, PROGRAM, "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
        command.args(["--remote-debugging-pipe", &format!("--user-data-dir={}", profile.path().display())]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let requests = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let session = Value::Null;
        let mut browser = Browser { child, requests, answers, session, last: 0, _profile: profile };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.ask("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].clone();
        browser
    }

    /// Asks for something, and waits for the answer.
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut request = json!({"id": self.last, "method": method, "params": params});
        if self.session.is_string() {
            request["sessionId"] = self.session.clone();
        }
        let gone = format!("{PROGRAM} has gone, or is not there: `make test` installs it");
        self.requests.write_all(format!("{request}\0").as_bytes()).expect(&gone);
        loop {
            let mut answer = Vec::new();
            let read = self.answers.read_until(0, &mut answer).expect("an answer");
            assert!(read > 0, "{gone}");
            answer.pop();
            let answer: Value = serde_json::from_slice(&answer).expect("JSON");
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// Opens a page in a window of this size, light or dark.
    pub fn open(&mut self, url: &str, (width, height): (u32, u32), dark: bool) {
        let screen = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": dark});
        self.ask("Emulation.setDeviceMetricsOverride", screen);
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.ask("Emulation.setEmulatedMedia", media);
        self.ask("Page.navigate", json!({"url": url}));
    }

    /// What an expression is on the page, as text.
    pub fn evaluate(&mut self, expression: &str) -> String {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let value = self.ask("Runtime.evaluate", asked)["result"]["value"].clone();
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    /// The text that is to be seen, once it has this part.
    pub fn wait_for(&mut self, part: &str) -> String {
        let begun = Instant::now();
        loop {
            let text = self.evaluate("document.body ? document.body.innerText : ''");
            if text.contains(part) {
                return text;
            }
            assert!(begun.elapsed() < LONG, "no {part:?} in:\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses a key.
    pub fn press(&mut self, key: &str, code: u32) {
        for kind in ["rawKeyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            self.ask("Input.dispatchKeyEvent", event);
        }
    }

    /// Writes what is to be seen into a file.
    pub fn picture(&mut self, file: &Path) {
        let taken = self.ask("Page.captureScreenshot", json!({"format": "png"}));
        let text = taken["data"].as_str().expect("a picture");
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
        std::fs::write(file, bytes).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Gone already: as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
