//! The disk that several hosts reach: what each sees, and how its paths fail.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::{Host, Lun, Process, Way};

const LONG: Duration = Duration::from_secs(30);
const LINK: &str = "/run/lab/lun";
const MOUNT: &str = "/run/lab/mount";

fn connected(lun: &mut Lun, name: &str) -> Result<Host> {
    let host = Host::create(name)?;
    lun.connect(&host, LINK)?;
    host.enter(|| std::fs::create_dir_all(MOUNT))??;
    Ok(host)
}

/// Done by a process: a thread of this one must not hang on a disk that this one serves.
fn run(host: &Host, argv: &[&str]) -> Result<bool> {
    Ok(host.run(argv[0], argv[1..].iter().copied())?.status.success())
}

fn spawn(host: &Host, argv: &[&str]) -> Result<Process> {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]);
    Ok(host.spawn(command)?)
}

fn mount(host: &Host) -> Result<bool> {
    run(host, &["mount", "-t", "ext4", LINK, MOUNT])
}

#[test]
fn a_file_system_goes_from_host_to_host_and_a_dead_host_loses_what_it_has_not_synced() -> Result<()> {
    let mut lun = Lun::new(64 << 20)?;
    lun.format()?;
    let one = connected(&mut lun, "one")?;
    let two = connected(&mut lun, "two")?;
    let watch = lun.watch()?;
    ensure!(mount(&one)? && lun.users() == ["one"]);
    ensure!(run(&one, &["sh", "-c", "echo first >/run/lab/mount/a"])?);
    ensure!(run(&one, &["umount", MOUNT])? && lun.users().is_empty());

    ensure!(mount(&two)? && run(&two, &["grep", "-q", "first", "/run/lab/mount/a"])?);
    ensure!(run(&two, &["sh", "-c", "echo synced >/run/lab/mount/b; sync -f /run/lab/mount/b"])?);
    ensure!(run(&two, &["sh", "-c", "echo lost >/run/lab/mount/c"])?);
    lun.lose("two")?;
    ensure!(!run(&two, &["sync", "-f", "/run/lab/mount/c"])?, "synced what it doesn't reach");
    ensure!(lun.users().is_empty(), "it is still said to write");

    ensure!(mount(&one)? && run(&one, &["grep", "-q", "synced", "/run/lab/mount/b"])?);
    ensure!(!run(&one, &["grep", "-q", "lost", "/run/lab/mount/c"])?, "what was not synced is there");
    // The dead host starts again, while its earlier file system still stands about; it sees what the other one wrote.
    ensure!(run(&two, &["umount", "-l", MOUNT])?);
    lun.connect(&two, LINK)?;
    ensure!(run(&one, &["sh", "-c", "echo second >/run/lab/mount/a"])? && run(&one, &["umount", MOUNT])?);
    ensure!(mount(&two)? && run(&two, &["grep", "-q", "second", "/run/lab/mount/a"])?);
    let (_, doubles) = watch.finish();
    ensure!(doubles.is_empty(), "{doubles:?}");
    Ok(())
}

#[test]
fn a_file_system_that_two_hosts_have_mounted_is_seen() -> Result<()> {
    let mut lun = Lun::new(64 << 20)?;
    lun.format()?;
    let one = connected(&mut lun, "one")?;
    let two = connected(&mut lun, "two")?;
    let watch = lun.watch()?;
    ensure!(mount(&one)? && mount(&two)?);
    ensure!(lun.users() == ["one", "two"]);
    std::thread::sleep(Duration::from_millis(50));
    ensure!(run(&one, &["umount", MOUNT])? && run(&two, &["umount", MOUNT])?);
    ensure!(!watch.finish().1.is_empty(), "nobody has seen it");
    Ok(())
}

fn read(host: &Host) -> Result<Process> {
    spawn(host, &["dd", &format!("if={LINK}"), "of=/dev/null", "bs=4096", "count=1", "iflag=direct"])
}

#[test]
fn a_path_fails_hangs_and_is_slow_and_the_other_one_is_not() -> Result<()> {
    let mut lun = Lun::new(16 << 20)?;
    let one = connected(&mut lun, "one")?;
    let two = connected(&mut lun, "two")?;
    lun.set("one", Way::Fails)?;
    ensure!(!read(&one)?.wait(LONG)?.success() && read(&two)?.wait(LONG)?.success());
    lun.set("one", Way::Hangs)?;
    let mut hung = read(&one)?;
    ensure!(read(&two)?.wait(LONG)?.success());
    std::thread::sleep(Duration::from_millis(200));
    ensure!(hung.exited()?.is_none(), "it did not hang");
    lun.set("one", Way::Well)?;
    ensure!(hung.wait(LONG)?.success());
    lun.set("one", Way::Slow(Duration::from_millis(100)))?;
    let start = std::time::Instant::now();
    ensure!(read(&one)?.wait(LONG)?.success() && start.elapsed() >= Duration::from_millis(100));
    Ok(())
}

/// Whoever hangs on it goes on when it is gone, and fails.
#[test]
fn a_disk_that_hangs_can_be_taken_away() -> Result<()> {
    let mut lun = Lun::new(64 << 20)?;
    lun.format()?;
    let host = connected(&mut lun, "one")?;
    ensure!(mount(&host)?);
    let device = lun.device("one")?;
    lun.set("one", Way::Hangs)?;
    let mut hung = read(&host)?;
    let mut syncing = spawn(&host, &["sh", "-c", "echo a >/run/lab/mount/a; sync -f /run/lab/mount/a"])?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(hung.exited()?.is_none() && syncing.exited()?.is_none(), "nobody hangs");
    drop(lun);
    ensure!(!hung.wait(LONG)?.success());
    syncing.wait(LONG)?;
    drop(host);
    let name = device.file_name().unwrap_or_default().to_owned();
    let gone = || !std::path::Path::new("/sys/fs/ext4").join(&name).exists();
    wait_until("the file system to be gone", LONG, gone)?;
    Ok(())
}
