//! x
use baton::io::kernel::*;
#[test]
fn opens() {
    let dir = std::path::PathBuf::from(format!("/tmp/baton-fx-{}", std::process::id()));
    let k = Kernel::open(&dir);
    match k {
        Ok(_) => println!("ok"),
        Err(e) => {
            println!("{e}");
            remove_all(&dir).unwrap();
            panic!()
        }
    }
    let out = std::process::Command::new("bpftool").args(["prog", "show"]).output().unwrap();
    println!("{}", String::from_utf8_lossy(&out.stdout));
    drop(k);
    remove_all(&dir).unwrap();
    assert!(!dir.exists());
}
