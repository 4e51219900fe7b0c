use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn open(path: &Path) -> FileStore {
    match FileStore::open(path) {
        Ok(store) => store,
        Err(e) => panic!("{e}"),
    }
}

fn refused(path: &Path) -> StoreError {
    match FileStore::open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(e) => e,
    }
}

#[test]
fn a_boot_keeps_its_incarnation_and_a_new_one_takes_a_higher() {
    let folder = folder();
    let path = folder.path().join("db");
    let mut store = open(&path);
    assert_eq!(store.next_incarnation("a").expect("a"), 1);
    assert_eq!(store.next_incarnation("a").expect("a again"), 1);
    drop(store);
    let mut store = open(&path);
    assert_eq!(store.next_incarnation("a").expect("a, after a restart"), 1);
    assert_eq!(store.next_incarnation("b").expect("b"), 2);
    assert_eq!(store.next_incarnation("a").expect("a is over"), 3);
}

#[test]
fn the_epoch_counts_changes_of_owner_only() {
    let folder = folder();
    let mut store = open(&folder.path().join("db"));
    let owner = |incarnation, epoch| Owner { incarnation, epoch };
    assert_eq!(store.take("p", 4).expect("first"), owner(4, 1));
    assert_eq!(store.take("p", 4).expect("touch"), owner(4, 1));
    assert_eq!(store.take("p", 6).expect("next boot"), owner(6, 2));
    assert_eq!(store.take("q", 6).expect("another server"), owner(6, 1));
    let error = store.take("p", 5).expect_err("an older incarnation");
    assert!(matches!(&error, StoreError::Stale { owner: 6, incarnation: 5, .. }), "{error}");
    let all = store.owners().expect("owners");
    assert_eq!(
        all.into_iter().collect::<Vec<_>>(),
        [("p".to_owned(), owner(6, 2)), ("q".to_owned(), owner(6, 1))]
    );
}

#[test]
fn only_the_first_original_is_kept() {
    let folder = folder();
    let path = folder.path().join("db");
    let mut store = open(&path);
    assert!(store.save_original("net/x", "0").expect("saved"));
    assert!(!store.save_original("net/x", "1").expect("kept"));
    assert!(store.save_original("net/y", "").expect("saved"));
    drop(store);
    let mut store = open(&path);
    assert_eq!(store.originals().expect("read")["net/x"], "0");
    store.forget_original("net/x").expect("forgotten");
    store.forget_original("net/x").expect("not there: no error");
    assert_eq!(store.originals().expect("read").into_keys().collect::<Vec<_>>(), ["net/y"]);
}

#[test]
fn half_a_change_is_no_change() {
    let folder = folder();
    let path = folder.path().join("db");
    let mut store = open(&path);
    store.take("p", 1).expect("taken");
    let half = store.db.begin_write().expect("a transaction");
    half.open_table(OWNERS).expect("table").insert("p", (9, 9)).expect("written");
    drop(half);
    assert_eq!(store.owners().expect("read")["p"], Owner { incarnation: 1, epoch: 1 });
}

#[test]
fn an_open_store_is_locked() {
    let folder = folder();
    let path = folder.path().join("db");
    let _first = open(&path);
    let error = refused(&path);
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
}

/// Another process: takes "p" again and again, higher each time, and says each epoch once it is on the disk.
/// Does nothing unless a test below has started it.
#[test]
fn as_child() {
    let Some(path) = std::env::var_os("BATON_STORE_CHILD") else { return };
    let mut store = open(Path::new(&path));
    for incarnation in 1.. {
        let owner = store.take("p", incarnation).expect("taken");
        println!("epoch {}.", owner.epoch);
        std::io::stdout().flush().expect("flushed");
    }
}

/// Kills and waits, also after a panic.
struct Other(Child);

impl Other {
    fn start(path: &Path) -> (Other, std::process::ChildStdout) {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["store::file::tests::as_child", "--exact", "--nocapture"])
            .env("BATON_STORE_CHILD", path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let out = child.stdout.take().expect("its output");
        (Other(child), out)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(out: &mut impl Read, word: &str) {
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains(word) {
        let mut byte = [0];
        assert_eq!(out.read(&mut byte).expect("read"), 1, "ended before it said {word:?}");
        said.push(byte[0]);
    }
}

#[test]
fn a_store_in_another_process_is_locked_and_what_it_committed_outlives_its_killing() {
    for epochs in [1, 2, 5] {
        let folder = folder();
        let path = folder.path().join("db");
        let (other, mut out) = Other::start(&path);
        wait_for(&mut out, &format!("epoch {epochs}."));
        let error = refused(&path);
        assert!(matches!(error, StoreError::Locked { .. }), "{error}");
        drop(other);
        let mut said = String::new();
        out.read_to_string(&mut said).expect("the rest");
        let owner = open(&path).owners().expect("read")["p"];
        let last = said.matches("epoch ").count() as u64 + epochs;
        // The one being committed when it was killed may be there or not.
        assert!((last..=last + 1).contains(&owner.epoch), "{owner:?} after {last}");
        assert_eq!(owner.epoch, owner.incarnation);
    }
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let folder = folder();
    let path = folder.path().join("db");
    let text = "not a database at all, but long enough to look into\n".repeat(2000);
    std::fs::write(&path, &text).expect("written");
    let error = refused(&path);
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("move it away"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
}

#[test]
fn a_cut_store_is_refused() {
    let folder = folder();
    let path = folder.path().join("db");
    let mut store = open(&path);
    for i in 0..500 {
        store.take(&format!("server-{i}"), 1).expect("taken");
    }
    drop(store);
    let size = std::fs::metadata(&path).expect("there").len();
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    file.set_len(size / 2).expect("cut");
    drop(file);
    let error = refused(&path);
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

#[test]
fn another_format_is_refused() {
    let folder = folder();
    let path = folder.path().join("db");
    let store = open(&path);
    store.write("", |t| Ok(t.open_table(NUMBERS)?.insert("format", 9)?.map(|_| ()))).expect("written");
    drop(store);
    let error = refused(&path);
    assert!(matches!(error, StoreError::Format { found: 9, known: 1, .. }), "{error}");
}

#[test]
fn a_folder_that_is_not_there_and_a_full_disk_are_named() {
    let error = refused(Path::new("/nonexistent/baton/db"));
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(error.to_string().starts_with("store /nonexistent/baton/db: cannot open it: "), "{error}");
    let full = explain(Path::new("/x"), "write it", redb::Error::Io(io::ErrorKind::StorageFull.into()));
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    assert_eq!(full.to_string(), "store /x: no space left; free some on its file system");
}

/// A file system of a megabyte, in a mount namespace of its own, unmounted when its only thread ends.
#[test]
fn a_full_disk_is_one_clear_error_and_loses_nothing() {
    use nix::mount::{MsFlags, mount};
    let folder = folder();
    let at: PathBuf = folder.path().join("small");
    std::fs::create_dir(&at).expect("made");
    let work = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace (needs root)");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some("size=4m"))
            .expect("a small file system");
        let path = at.join("db");
        let mut store = open(&path);
        store.take("p", 1).expect("taken");
        let name = "x".repeat(4000);
        let error = (0..10_000).find_map(|i| store.save_original(&format!("{name}{i}"), &name).err());
        let error = error.expect("4 MiB hold less than that");
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        drop(store);
        assert_eq!(open(&path).owners().expect("read")["p"].epoch, 1);
    };
    std::thread::spawn(work).join().expect("no panic");
}
