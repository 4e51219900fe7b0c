use super::*;

#[test]
fn options_are_those_of_mount() {
    let (flags_of_kernel, data) =
        flags("defaults,ro,noatime,x-systemd.automount,_netdev,errors=panic,acl,,nosuid");
    assert_eq!(flags_of_kernel, MsFlags::MS_RDONLY | MsFlags::MS_NOATIME | MsFlags::MS_NOSUID);
    assert_eq!(data, "errors=panic,acl");
    assert_eq!(flags(""), (MsFlags::empty(), String::new()));
}

fn on(device: &str, mount: &str) -> Filesystem {
    Filesystem {
        device: device.into(),
        mount: mount.into(),
        kind: "ext4".into(),
        options: String::new(),
        fsck: false,
        start_limit: Duration::from_secs(1),
        stop_limit: Duration::from_secs(1),
    }
}

#[test]
fn a_mount_point_without_parent_is_not_mounted() {
    let fs = on("/dev/null", "/nowhere/at/all");
    assert!(!is_mounted(&fs));
    assert_eq!(trouble(&fs).as_deref(), Some("is no longer mounted"));
}

#[test]
fn somebody_elses_mount_is_told_apart() {
    let fs = on("/dev/null", "/proc");
    assert!(!is_mounted(&fs));
    assert!(trouble(&fs).is_some_and(|what| what.starts_with("is hidden by ")));
}
