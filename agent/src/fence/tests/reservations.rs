//! sg_persist as it behaves, for a device that has no reservations.

use baton_lab::LoopDevice;

use super::*;
use crate::io::kernel::name_hash;

/// What the device holds is in files beside the program. `refuse`: so many commands fail; `deaf`: nothing is taken away.
const PROGRAM: &str = r#"cd "$(dirname "$0")"; echo "$*" >> log
if [ -s refuse ]; then sed -i 1d refuse; echo "PR out: Unit attention" >&2; exit 6; fi
for word; do case "$word" in --param-rk=*) rk=${word#*=};; --param-sark=*) sark=${word#*=};; esac; done
touch keys
case "$*" in
*--register-ignore*) grep -qx "$sark" keys || echo "$sark" >> keys;;
*--register*) sed -i "/^$rk\$/d" keys; [ -s keys ] || rm -f held;;
*--preempt-abort*) grep -qx "$rk" keys || exit 24; [ -e deaf ] || sed -i "/^$sark\$/d" keys;;
*--reserve*) grep -qx "$rk" keys || exit 24; echo "Write Exclusive, registrants only" > held;;
*--read-keys*)
  if [ -s keys ]; then echo "  PR generation=0x1, registered reservation keys follow:"; sed 's/^/    /' keys
  else echo "  PR generation=0x1, there are NO registered reservation keys"; fi;;
*--read-reservation*)
  if [ -e held ]; then echo "  PR generation=0x1, Reservation follows:"; echo "    Key=0x1"; echo "    scope: LU_SCOPE,  type: $(cat held)"
  else echo "  PR generation=0x1, there is NO reservation held"; fi;;
*) exit 1;;
esac"#;

fn keys(world: &World) -> Vec<String> {
    world.text("keys").lines().map(str::to_owned).collect()
}

/// As the device shows it.
pub(crate) fn key(node: &str) -> String {
    format!("{:#x}", name_hash(node))
}

/// Makes the program in this folder.
pub(crate) fn sg_persist(folder: &Path) -> PathBuf {
    let path = folder.join("sg_persist");
    script(&path, PROGRAM);
    path
}

/// A world whose virtual server "projects" has a file system on a device.
fn world() -> (World, LoopDevice) {
    let device = LoopDevice::new(1 << 20).expect("a loop device");
    let mut world = World::new(Fence::ScsiPr);
    sg_persist(world.folder.path());
    world.resources[0].filesystems.push(crate::config::Filesystem {
        device: device.path().to_owned(),
        mount: "/nowhere".into(),
        kind: "ext4".into(),
        options: String::new(),
        fsck: false,
        start_limit: LONG,
        stop_limit: LONG,
    });
    (world, device)
}

fn hold(world: &World, nodes: &[&str]) {
    let text: String = nodes.iter().map(|node| key(node) + "\n").collect();
    fs::write(world.path("keys"), text).expect("written");
}

#[test]
fn the_registration_of_a_node_is_taken_away() {
    let (world, _device) = world();
    hold(&world, &["fs2", "fs3"]);
    assert_eq!(world.fence("projects", "fs2"), None);
    assert_eq!(keys(&world), [key("fs3"), key("fs1")]);
    assert_eq!(world.text("held").trim(), "Write Exclusive, registrants only");
    // And again, where there is nothing to be done.
    assert_eq!(world.fence("projects", "fs2"), None);
}

#[test]
fn one_that_was_not_registered_may_not_write_either() {
    let (world, _device) = world();
    assert_eq!(world.fence("projects", "fs2"), None);
    assert_eq!(keys(&world), [key("fs1")]);
    assert!(!world.text("held").is_empty());
}

#[test]
fn what_is_not_certain_is_a_failure() {
    let (mut world, device) = world();
    hold(&world, &["fs2"]);
    fs::write(world.path("deaf"), "").expect("written");
    let why = world.fence("projects", "fs2").expect("still registered");
    assert!(why.ends_with("a registration that was taken away is still there"), "{why}");
    fs::remove_file(world.path("deaf")).expect("removed");
    fs::write(world.path("held"), "Exclusive Access").expect("written");
    let why = world.fence("projects", "fs2").expect("another type");
    assert!(why.contains("a reservation of another type"), "{why}");
    fs::remove_file(world.path("held")).expect("removed");
    // Refused once and twice, but not for ever.
    fs::write(world.path("refuse"), "1\n2\n").expect("written");
    assert_eq!(world.fence("projects", "fs2"), None);
    fs::write(world.path("refuse"), "1\n2\n3\n").expect("written");
    let why = world.fence("projects", "fs2").expect("refused");
    assert!(why.contains("--register-ignore: exit status 6: PR out: Unit attention"), "{why}");
    script(&world.path("sg_persist"), "echo what; exit 0");
    let why = world.fence("projects", "fs2").expect("not understood");
    assert!(why.ends_with("is not understood"), "{why}");
    world.resources[0].filesystems[0].device = "/dev/null".into();
    let why = world.fence("projects", "fs2").expect("no device");
    assert_eq!(why, "/dev/null: it is no block device");
    drop(device);
}

#[test]
fn whoever_mounts_is_alone() {
    let (world, device) = world();
    hold(&world, &["fs2", "fs3"]);
    let orders = Orders::new().expect("an eventfd");
    let patience = patience(&orders, LONG);
    let own = Reservations::new(&world.path("sg_persist"), "fs1");
    assert_eq!(own.acquire(device.path(), &patience), Ok(()));
    assert_eq!(keys(&world), [key("fs1")]);
    let other = Reservations::new(&world.path("sg_persist"), "fs2");
    assert_eq!(other.release(device.path(), &patience), Ok(()), "nothing of it is there");
    assert_eq!(keys(&world), [key("fs1")]);
    assert_eq!(own.release(device.path(), &patience), Ok(()));
    assert_eq!((keys(&world).len(), world.text("held").as_str()), (0, ""));
    orders.give(Order::Leave);
    assert_eq!(own.acquire(device.path(), &patience), Err(None));
}
