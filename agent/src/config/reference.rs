//! What every key of the configuration means: the page `configuration.md` of the documentation is made of this. Tests hold it
//! against the reader, both ways: the same keys, the same limits and words, and defaults that make no difference when they are
//! written out.

use std::fmt::Write as _;

/// In which file a section stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The node's own.
    Node,
    /// The node's own, where the store is etcd.
    Member,
    /// Where the store is etcd, the file for `baton apply`; else the node's own.
    Common,
    /// The file for `baton apply`.
    Cluster,
}

/// What may stand behind a key.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A text, and which.
    Text(&'static str),
    /// One of these texts.
    Word(&'static [&'static str]),
    /// A duration within limits, as the reader calls them.
    Duration(&'static str),
    /// A whole number within limits.
    Number(&'static str),
    /// True or false.
    Flag,
    /// An absolute path.
    Path,
    /// A list, and of what.
    List(&'static str),
    /// A table, or a list of tables: another section of this page.
    Section,
    /// A table of names and texts.
    Texts,
}

/// What holds without the key.
#[derive(Clone, Copy, Debug)]
pub enum Without {
    /// It must be there.
    Required,
    /// This, in words.
    Words(&'static str),
    /// This, as it would be written.
    Is(&'static str),
}

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What may stand there.
    pub value: Value,
    /// What holds without it.
    pub default: Without,
    /// What it does.
    pub what: &'static str,
}

/// A section.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// As it is written.
    pub title: &'static str,
    /// Which file.
    pub place: Place,
    /// What it is for.
    pub what: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
    /// Titles of sections whose keys may stand here too.
    pub also: &'static [&'static str],
    /// The section with what must be there; a key may be added at its end. What is missing of a whole file is [`complete`]d.
    pub shape: &'static str,
    /// An example; empty: the shape is one.
    pub example: &'static str,
}

use Value::{Duration, Flag, List, Number, Path, Text, Texts, Word};
use Without::{Is, Required, Words};

const fn key(name: &'static str, value: Value, default: Without, what: &'static str) -> Key {
    Key { name, value, default, what }
}

const LIMIT: Value = Duration("100ms to 1h");
const SERVER: &str =
    "[[virtual_server]]\nname = \"projects\"\naddresses = [\"10.0.0.10/24\"]\nfence = \"watchdog\"\n";

/// Every section.
pub const SECTIONS: &[Section] = &[
    Section {
        title: "[node]",
        place: Place::Node,
        what: "This node.",
        keys: &[
            key(
                "name",
                Text("1 to 63 letters, digits, dots, underscores and hyphens"),
                Words("the host's name"),
                "How the other nodes know it.",
            ),
            key(
                "agent_grace",
                Duration("100ms to 1m"),
                Is("\"2s\""),
                "A node whose agent stays away for longer is given up; a restart within that changes nothing.",
            ),
            key(
                "capacity_percent",
                Number("1 to 10000"),
                Is("100"),
                "What it can bear, in percent of an ordinary node of its cluster.",
            ),
            key(
                "watchdog",
                Path,
                Is("\"/dev/watchdog\""),
                "The device for virtual servers with `fence = \"watchdog\"`.",
            ),
        ],
        also: &[],
        shape: "[node]\n",
        example: "[node]\nname = \"fs1\"\ncapacity_percent = 200\n",
    },
    Section {
        title: "[[port]]",
        place: Place::Node,
        what: "An interface that clients use; one section for each. It may appear later.",
        keys: &[
            key("interface", Text("as `ip link` shows it"), Required, "The interface."),
            key("segment", Text("the name of a `[[segment]]`"), Required, "Where its cable leads to."),
            key(
                "speed_mbits",
                Number("1 to 4294967295"),
                Words("what the interface says"),
                "Its speed in Mbit/s, where it doesn't say it or says it wrongly.",
            ),
        ],
        also: &[],
        shape: "[[port]]\ninterface = \"eth0\"\nsegment = \"office\"\n",
        example: "",
    },
    Section {
        title: "[store]",
        place: Place::Member,
        what: "Where definitions and ownership live: in a file, for a node that is alone, or in etcd.",
        keys: &[
            key("kind", Word(&["file", "etcd"]), Words("`\"file\"`"), "Which."),
            key(
                "path",
                Path,
                Is("\"/var/lib/baton/baton.db\""),
                "The embedded database, which holds what is this node's alone also where the rest is in etcd. By default it is in `paths.state`.",
            ),
            key(
                "endpoints",
                List("URLs"),
                Words("required with etcd"),
                "etcd's client URLs: the local member first.",
            ),
            key("tls", Value::Section, Words("no encryption"), "Whom to trust, and who this node is."),
            key("credentials", Value::Section, Words("none"), "A user of etcd."),
        ],
        also: &[],
        shape: "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n",
        example: "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\", \"http://10.99.0.2:2379\", \"http://10.99.0.3:2379\"]\n",
    },
    Section {
        title: "tls of [store]",
        place: Place::Member,
        what: "With `https` only. PEM files.",
        keys: &[
            key("ca", Path, Required, "The certificate of the authority that has signed etcd's."),
            key("certificate", Path, Words("none"), "This node's own, where etcd asks for one; with `key`."),
            key("key", Path, Words("none"), "Its key."),
        ],
        also: &[],
        shape: "[store]\nkind = \"etcd\"\nendpoints = [\"https://127.0.0.1:2379\"]\n[store.tls]\nca = \"/etc/baton/ca.pem\"\n",
        example: "[store]\nkind = \"etcd\"\nendpoints = [\"https://127.0.0.1:2379\"]\ntls = { ca = \"/etc/baton/ca.pem\", certificate = \"/etc/baton/me.pem\", key = \"/etc/baton/me.key\" }\n",
    },
    Section {
        title: "credentials of [store]",
        place: Place::Member,
        what: "",
        keys: &[
            key("user", Text("its name"), Required, "The user."),
            key("password_file", Path, Required, "A file with the password, for root alone."),
        ],
        also: &[],
        shape: "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n[store.credentials]\nuser = \"baton\"\npassword_file = \"/etc/baton/etcd.password\"\n",
        example: "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\ncredentials = { user = \"baton\", password_file = \"/etc/baton/etcd.password\" }\n",
    },
    Section {
        title: "[cluster] of a node",
        place: Place::Member,
        what: "What a node must know before it can ask the store. Only with the store etcd.",
        keys: &[
            key("name", Text("as of a node"), Is("\"baton\""), "All keys in etcd are below `/baton/NAME/`."),
            key(
                "key_file",
                Path,
                Required,
                "A file with 32 hexadecimal digits, the same on all nodes, mode 600: the key of probe frames.",
            ),
            key("witness", Flag, Is("false"), "The node has a vote, and takes no virtual servers."),
        ],
        also: &["[cluster] of the cluster"],
        shape: "[cluster]\nkey_file = \"/etc/baton/probe.key\"\n",
        example: "[cluster]\nname = \"nas\"\nkey_file = \"/etc/baton/probe.key\"\n",
    },
    Section {
        title: "[control]",
        place: Place::Node,
        what: "The socket that the command line talks to.",
        keys: &[
            key("socket", Path, Is("\"/run/baton/baton.sock\""), "Its path; at most 107 bytes."),
            key(
                "group",
                Text("a group"),
                Is("\"baton\""),
                "Who may use it besides root; nobody if there is no such group.",
            ),
        ],
        also: &[],
        shape: "[control]\n",
        example: "[control]\ngroup = \"storage\"\n",
    },
    Section {
        title: "[paths]",
        place: Place::Node,
        what: "Folders.",
        keys: &[
            key(
                "state",
                Path,
                Is("\"/var/lib/baton\""),
                "The agent's files: database, journal, input record, key.",
            ),
            key(
                "bpffs",
                Path,
                Is("\"/sys/fs/bpf/baton\""),
                "Pinned kernel objects, in a mounted BPF file system.",
            ),
        ],
        also: &[],
        shape: "[paths]\n",
        example: "[paths]\nstate = \"/srv/baton\"\n",
    },
    Section {
        title: "[telemetry]",
        place: Place::Node,
        what: "HTTP: the web page, `/metrics`, `/status.json`. Nobody who only looks is asked who he is: keep it on a trusted address. See [Security](security.md) for actions.",
        keys: &[
            key(
                "listen",
                Text("address and port, or `\"off\"`"),
                Is("\"127.0.0.1:9477\""),
                "Where it is served.",
            ),
            key(
                "token_file",
                Path,
                Words("nothing can be changed through the page"),
                "A file with a token of 16 to 1024 bytes, which only root may read. Who knows it may move, drain, resume and confirm through the page of a node of a cluster, from that node itself: HTTP is not encrypted.",
            ),
        ],
        also: &[],
        shape: "[telemetry]\n",
        example: "[telemetry]\nlisten = \"10.99.0.1:9477\"\ntoken_file = \"/etc/baton/page.token\"\n",
    },
    Section {
        title: "[[hook]]",
        place: Place::Node,
        what: "A program that is told of events, one after the other; at most 16. It gets the event as JSON on its standard input, as `baton events --json` shows it, with the node and a sentence; no shell is between. Where it can't keep up, events are dropped and counted: `baton_hook_runs_total`.",
        keys: &[
            key(
                "on",
                List("names of events"),
                Required,
                "`all`, `port_failover`, `takeover`, `move`, or what stands behind `event` in `baton events --json`.",
            ),
            key("run", List("a path and arguments"), Required, "The program and its arguments."),
            key(
                "name",
                Text("1 to 63 letters, digits, dots, underscores and hyphens"),
                Words("the program's file name"),
                "What it is called in metrics and in the log.",
            ),
            key(
                "timeout",
                Duration("100ms to 10m"),
                Is("\"10s\""),
                "How long it may take; then it and what it has started are killed.",
            ),
        ],
        also: &[],
        shape: "[[hook]]\non = [\"takeover\"]\nrun = [\"/usr/local/sbin/page\"]\n",
        example: "[[hook]]\non = [\"takeover\", \"fence_failed\"]\nrun = [\"/usr/local/sbin/page\", \"storage\"]\ntimeout = \"30s\"\n",
    },
    Section {
        title: "[cluster] of the cluster",
        place: Place::Cluster,
        what: "Who belongs to it. Members join and leave one at a time.",
        keys: &[
            key("members", List("names of nodes"), Required, "All nodes, witnesses too; 1 to 5."),
            key(
                "two_nodes_never_take_over",
                Flag,
                Is("false"),
                "Says that two nodes without a third vote are meant: neither takes over from the other, and when one dies both stop serving.",
            ),
        ],
        also: &["[cluster] of a node"],
        shape: "[cluster]\nmembers = [\"fs1\", \"fs2\", \"fs3\"]\n",
        example: "",
    },
    Section {
        title: "[timing]",
        place: Place::Common,
        what: "Times. The [tuning](tuning.md) page says what they cost.",
        keys: &[
            key(
                "probe_interval",
                Duration("1ms to 1s"),
                Is("\"10ms\""),
                "Between two probes of a port to another one, and of a node to another one. Three that stay away in a row make a path silent.",
            ),
            key(
                "lease",
                Duration("5ms to 1m"),
                Is("\"50ms\""),
                "A node that a majority has not heard for so long serves nothing any more. At least two of `probe_interval`; better four.",
            ),
            key(
                "slack",
                Duration("1ms to 1m"),
                Words("a tenth of `lease`, at least 1 ms"),
                "How much longer than the lease others wait before they call a node dead: what rounding and queueing may take.",
            ),
            key(
                "hold_down",
                Duration("0s to 1h"),
                Is("\"1s\""),
                "A port that comes back waits so long before it takes addresses; twice as long after each failure.",
            ),
            key("hold_down_max", Duration("0s to 1day"), Is("\"60s\""), "And at most so long."),
            key(
                "announce_repeat",
                List("durations, 1ms to 1m"),
                Is("[\"10ms\", \"100ms\", \"1s\"]"),
                "When an address that has moved is announced again, after the first announcement.",
            ),
            key(
                "watchdog",
                Duration("5s to 5m"),
                Is("\"10s\""),
                "A node that doesn't feed its watchdog for so long is reset, with `fence = \"watchdog\"`. Whole seconds.",
            ),
        ],
        also: &[],
        shape: "[timing]\n",
        example: "[timing]\nprobe_interval = \"2ms\"\nlease = \"10ms\"\n",
    },
    Section {
        title: "[balance]",
        place: Place::Common,
        what: "How load is measured, and what is done when it is uneven. The load of a virtual server is its largest share of any one thing that a node has, each multiplied by its weight in percent; a weight of 0 leaves a thing out.",
        keys: &[
            key(
                "mode",
                Word(&["off", "advise", "on"]),
                Is("\"advise\""),
                "`\"advise\"`: an event and a metric say what would help; `\"on\"`: virtual servers move.",
            ),
            key(
                "half_life",
                Duration("1s to 1h"),
                Is("\"30s\""),
                "Of measured loads: bursts that are shorter move nothing.",
            ),
            key(
                "start_percent",
                Number("101 to 4294967295"),
                Is("150"),
                "A node is relieved when its load is above this part of its fair share.",
            ),
            key(
                "stop_percent",
                Number("101 to 4294967295"),
                Is("110"),
                "And then until all are below this part of theirs; at most `start_percent`.",
            ),
            key(
                "quiet_percent",
                Number("0 to 100"),
                Is("20"),
                "A node with less load than this part of its capacity is never relieved.",
            ),
            key("at_once", Number("1 to 4294967295"), Is("2"), "Virtual servers that move in one go."),
            key(
                "server_cooldown",
                Duration("0s to 7days"),
                Is("\"30m\""),
                "A virtual server that has moved is not moved for balance for so long.",
            ),
            key(
                "cluster_cooldown",
                Duration("0s to 7days"),
                Is("\"5m\""),
                "Nor is anything else after a go.",
            ),
            key(
                "horizon",
                Duration("1s to 7days"),
                Is("\"10m\""),
                "A move must take more off the busier node within this time than its clients miss while it moves.",
            ),
            key(
                "packets_per_second",
                Number("1 to 4294967295"),
                Is("1000000"),
                "What an ordinary node can handle, both directions.",
            ),
            key(
                "network_percent",
                Number("0 to 1000"),
                Is("100"),
                "Weight of bytes against the speed of the ports.",
            ),
            key(
                "packets_percent",
                Number("0 to 1000"),
                Is("100"),
                "Weight of packets against `packets_per_second`.",
            ),
            key(
                "cpu_percent",
                Number("0 to 1000"),
                Is("100"),
                "Weight of processors that work or are waited for.",
            ),
            key("memory_percent", Number("0 to 1000"), Is("100"), "Weight of memory that is waited for."),
            key(
                "storage_percent",
                Number("0 to 1000"),
                Is("100"),
                "Weight of the busiest device of its file systems.",
            ),
        ],
        also: &[],
        shape: "[balance]\n",
        example: "[balance]\nmode = \"on\"\nstorage_percent = 50\n",
    },
    Section {
        title: "[[segment]]",
        place: Place::Common,
        what: "A client subnet, or several in one broadcast domain. Subnets never overlap.",
        keys: &[
            key("name", Text("as of a node"), Required, "Its name."),
            key("subnets", List("subnets, IPv4 and IPv6"), Required, "What clients and addresses are in."),
            key(
                "gateway",
                List("addresses"),
                Is("[]"),
                "Routers, at most one of each family. Also probe targets.",
            ),
            key(
                "probe_targets",
                List("addresses"),
                Is("[]"),
                "Hosts that are always up: asked by each port, so that a silent one is told from a silent switch.",
            ),
            key(
                "port_failback",
                Word(&["spread", "stay"]),
                Is("\"spread\""),
                "`\"stay\"`: a port that comes back waits for the next failover.",
            ),
        ],
        also: &[],
        shape: "[[segment]]\nname = \"office\"\nsubnets = [\"10.0.0.0/24\"]\n",
        example: "[[segment]]\nname = \"office\"\nsubnets = [\"10.0.0.0/24\", \"fd00:10::/64\"]\ngateway = [\"10.0.0.1\"]\nprobe_targets = [\"10.0.0.5\"]\n",
    },
    Section {
        title: "[[virtual_server]]",
        place: Place::Common,
        what: "Addresses that are served together, by one node at a time.",
        keys: &[
            key("name", Text("as of a node"), Required, "Its name."),
            key(
                "addresses",
                List("addresses, each with the prefix length of its subnet"),
                Required,
                "What it is reached by; in one segment or in several.",
            ),
            key(
                "priority",
                Number("0 to 4294967295"),
                Is("100"),
                "Which one is taken first, and gets the better place.",
            ),
            key("migrate", Flag, Is("true"), "False: it stays with its node, whatever happens."),
            key(
                "reroute",
                Flag,
                Is("false"),
                "Where its node has lost every port of a segment, a peer answers there and routes to it.",
            ),
            key(
                "preferred_nodes",
                List("names of members"),
                Is("[]"),
                "Who has it when all are well, the first one that can.",
            ),
            key(
                "failback",
                Text("`\"manual\"`, `\"immediate\"` or a daily window as `\"01:00-04:00\"`, local time"),
                Is("\"manual\""),
                "When it goes back to a preferred node that is well again.",
            ),
            key(
                "never_with",
                List("names of virtual servers"),
                Is("[]"),
                "Those that may never be on the same node; it is enough to say it on one side.",
            ),
            key(
                "only_on",
                List("names of members"),
                Is("[]"),
                "The only nodes that may have it; none named: all.",
            ),
            key(
                "fence",
                Word(&["none", "scsi-pr", "agent", "watchdog"]),
                Is("\"none\""),
                "How a node that had it and did not release it is kept from writing to its file systems.",
            ),
            key(
                "i_accept_corruption",
                Flag,
                Is("false"),
                "Needed with `fence = \"none\"` and a file system that only one node may have mounted.",
            ),
            key(
                "private_mounts",
                Flag,
                Is("false"),
                "Its file systems are mounted where its own services see them, and nobody else: not the host, and no other virtual server.",
            ),
            key(
                "reset_connections",
                Flag,
                Is("true"),
                "After it has come to another node, or its services were started again, its clients are told by TCP resets that their connections are gone, so that they connect again at once. Only in a cluster, and only where it has services.",
            ),
            key("filesystem", Value::Section, Words("none"), "`[[virtual_server.filesystem]]`"),
            key("service", Value::Section, Words("none"), "`[[virtual_server.service]]`"),
        ],
        also: &[],
        shape: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\n",
        example: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\npriority = 200\npreferred_nodes = [\"fs1\", \"fs2\"]\nfailback = \"01:00-04:00\"\n",
    },
    Section {
        title: "[[virtual_server.filesystem]]",
        place: Place::Common,
        what: "A file system of the virtual server above it; mounted in the order of the file, before services start.",
        keys: &[
            key("device", Path, Required, "The block device, best by a name that is the same on all nodes."),
            key("mount", Path, Required, "Where it is mounted."),
            key("type", Text("as in /proc/filesystems"), Required, "Its type."),
            key("storage_unit", Text("the name of a `[[storage_unit]]`"), Words("none"), "What it is on."),
            key("options", Text("as for mount(8)"), Is("\"\""), "Mount options."),
            key("fsck", Flag, Is("false"), "`fsck -p` before it is mounted."),
            key("start_limit", LIMIT, Is("\"30s\""), "How long checking and mounting may take."),
            key("stop_limit", LIMIT, Is("\"30s\""), "How long unmounting may take."),
        ],
        also: &[],
        shape: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\nfence = \"watchdog\"\n\n[[virtual_server.filesystem]]\ndevice = \"/dev/disk/by-id/scsi-3600a0b8000\"\nmount = \"/srv/media\"\ntype = \"xfs\"\n",
        example: "",
    },
    Section {
        title: "[[virtual_server.service]]",
        place: Place::Common,
        what: "A service of the virtual server above it; started in the order of the file, stopped in the reverse one. What more it has depends on its kind.",
        keys: &[
            key("kind", Word(&["exec", "ocf", "nfs-ganesha", "systemd", "samba"]), Required, "What it is."),
            key("start_limit", LIMIT, Is("\"30s\""), "How long its start may take."),
            key("stop_limit", LIMIT, Is("\"30s\""), "How long its stop may take, before it is killed."),
            key("monitor_every", LIMIT, Is("\"10s\""), "Time between two checks."),
            key("monitor_limit", LIMIT, Is("\"10s\""), "A check that takes longer has failed."),
            key(
                "restarts",
                Number("0 to 1000"),
                Is("3"),
                "How often it is started again in its place, in ten minutes; then it moves to another node.",
            ),
        ],
        also: &["service of kind \"systemd\""],
        shape: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\n\n[[virtual_server.service]]\nkind = \"systemd\"\nunit = \"vsftpd@media.service\"\n",
        example: "",
    },
    Section {
        title: "service of kind \"exec\"",
        place: Place::Common,
        what: "Programs with their arguments, without a shell.",
        keys: &[
            key(
                "start",
                List("a program and its arguments"),
                Required,
                "Without `stop` the service itself, in the foreground; with it a command that returns when the service runs.",
            ),
            key(
                "stop",
                List("a program and its arguments"),
                Words("SIGTERM, then SIGKILL"),
                "A command that returns when it is stopped.",
            ),
            key(
                "monitor",
                List("a program and its arguments"),
                Words("it is alive"),
                "A command that succeeds while it works.",
            ),
        ],
        also: &["[[virtual_server.service]]"],
        shape: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\n\n[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/usr/sbin/exportd\", \"-F\"]\n",
        example: "",
    },
    Section {
        title: "service of kind \"ocf\"",
        place: Place::Common,
        what: "A resource agent of the package resource-agents.",
        keys: &[
            key("agent", Text("provider and name, as `\"heartbeat/nfsserver\"`"), Required, "Which."),
            key("parameters", Texts, Is("{}"), "Its parameters."),
        ],
        also: &["[[virtual_server.service]]"],
        shape: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\n\n[[virtual_server.service]]\nkind = \"ocf\"\nagent = \"heartbeat/nfsserver\"\n",
        example: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\n\n[[virtual_server.service]]\nkind = \"ocf\"\nagent = \"heartbeat/nfsserver\"\nparameters = { nfs_ip = \"10.0.0.11\" }\n",
    },
    Section {
        title: "service of kind \"systemd\"",
        place: Place::Common,
        what: "A unit that systemd starts and stops. It must not be enabled.",
        keys: &[key("unit", Text("with its type"), Required, "Which.")],
        also: &["[[virtual_server.service]]"],
        shape: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\n\n[[virtual_server.service]]\nkind = \"systemd\"\nunit = \"vsftpd@media.service\"\n",
        example: "",
    },
    Section {
        title: "service of kind \"nfs-ganesha\"",
        place: Place::Common,
        what: "An NFS server of its own at the virtual server's first address.",
        keys: &[
            key("exports", Value::Section, Words("every file system, for everybody"), "What is exported."),
            key("protocols", List("3 and 4"), Is("[4]"), "Versions of NFS; 3 needs rpcbind on the node."),
            key("program", Text("on PATH, or a path"), Is("\"ganesha.nfsd\""), "The daemon."),
        ],
        also: &["[[virtual_server.service]]"],
        shape: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\nfence = \"watchdog\"\n\n[[virtual_server.filesystem]]\ndevice = \"/dev/disk/by-id/scsi-3600a0b8000\"\nmount = \"/srv/media\"\ntype = \"xfs\"\n\n[[virtual_server.service]]\nkind = \"nfs-ganesha\"\n",
        example: "",
    },
    Section {
        title: "exports of \"nfs-ganesha\"",
        place: Place::Common,
        what: "",
        keys: &[
            key("path", Path, Required, "The folder."),
            key("pseudo", Path, Words("as `path`"), "Its name for NFSv4 clients."),
            key("read_only", Flag, Is("false"), "Nobody may write."),
            key("squash", Word(&["none", "root", "all"]), Is("\"root\""), "Who becomes nobody."),
            key(
                "clients",
                List("addresses, subnets, names or `\"*\"`"),
                Is("[]"),
                "Who may mount it; none named: everybody.",
            ),
        ],
        also: &[],
        shape: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\n\n[[virtual_server.service]]\nkind = \"nfs-ganesha\"\n[[virtual_server.service.exports]]\npath = \"/srv/media\"\n",
        example: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\n\n[[virtual_server.service]]\nkind = \"nfs-ganesha\"\nexports = [{ path = \"/srv/media\", clients = [\"10.0.0.0/24\"] }]\n",
    },
    Section {
        title: "service of kind \"samba\"",
        place: Place::Common,
        what: "An SMB server of its own at the virtual server's addresses.",
        keys: &[
            key(
                "shares",
                Value::Section,
                Words("every file system, named after its folder, for everybody with a password"),
                "What is shared.",
            ),
            key("include", Path, Words("none"), "A file with more settings for `[global]`."),
            key("program", Text("on PATH, or a path"), Is("\"smbd\""), "The daemon."),
        ],
        also: &["[[virtual_server.service]]"],
        shape: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\nfence = \"watchdog\"\n\n[[virtual_server.filesystem]]\ndevice = \"/dev/disk/by-id/scsi-3600a0b8000\"\nmount = \"/srv/media\"\ntype = \"xfs\"\n\n[[virtual_server.service]]\nkind = \"samba\"\n",
        example: "",
    },
    Section {
        title: "shares of \"samba\"",
        place: Place::Common,
        what: "",
        keys: &[
            key("path", Path, Required, "The folder."),
            key("name", Text("at most 80 bytes"), Words("the folder's"), "Its name for clients."),
            key("read_only", Flag, Is("false"), "Nobody may write."),
            key("guest", Flag, Is("false"), "Those without a password may use it."),
            key(
                "valid_users",
                List("users, and groups as `\"@staff\"`"),
                Is("[]"),
                "Who may use it; none named: everybody who has a password.",
            ),
            key(
                "force_user",
                Text("a user of the node"),
                Words("each himself"),
                "Whom everybody reads and writes as.",
            ),
        ],
        also: &[],
        shape: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\n\n[[virtual_server.service]]\nkind = \"samba\"\n[[virtual_server.service.shares]]\npath = \"/srv/media\"\n",
        example: "[[virtual_server]]\nname = \"media\"\naddresses = [\"10.0.0.11/24\"]\n\n[[virtual_server.service]]\nkind = \"samba\"\nshares = [{ path = \"/srv/media\", name = \"media\", valid_users = [\"alice\", \"@staff\"] }]\n",
    },
    Section {
        title: "[[fence]]",
        place: Place::Common,
        what: "How a node is switched off, for virtual servers with `fence = \"agent\"`.",
        keys: &[
            key("node", Text("the name of a member"), Required, "Whom it switches off."),
            key("agent", Text("a name in /usr/sbin, or an absolute path"), Required, "The fence agent."),
            key(
                "parameters",
                Texts,
                Is("{}"),
                "What it is told. `NAME_file` names a file whose line is handed over as `NAME`, and never shown.",
            ),
            key("action", Word(&["off", "reboot"]), Is("\"off\""), "What it is to do."),
            key("limit", Duration("1s to 10m"), Is("\"30s\""), "How long it may take."),
            key(
                "level",
                Number("1 to 9"),
                Is("1"),
                "All of one level are needed; those of the next are tried if one fails.",
            ),
        ],
        also: &[],
        shape: "[[fence]]\nnode = \"fs1\"\nagent = \"fence_ipmilan\"\n",
        example: "[[fence]]\nnode = \"fs1\"\nagent = \"fence_ipmilan\"\nparameters = { ip = \"10.1.0.1\", username = \"admin\", password_file = \"/etc/baton/ipmi\" }\n",
    },
    Section {
        title: "[[storage_unit]]",
        place: Place::Common,
        what: "A device, or a set of them, that file systems are on: read over and over, past the cache.",
        keys: &[
            key("name", Text("as of a node"), Required, "Its name."),
            key("device", Path, Words("that of the first file system that names the unit"), "What is read."),
            key("interval", Duration("10ms to 1m"), Is("\"100ms\""), "Time between two reads."),
            key("limit", Duration("50ms to 10m"), Is("\"1s\""), "A read that takes longer hangs."),
        ],
        also: &[],
        shape: "[[storage_unit]]\nname = \"array-1\"\ndevice = \"/dev/disk/by-id/scsi-3600a0b8000\"\n",
        example: "",
    },
];

/// What may be missing around a fragment to make it a whole file.
const AROUND: [(&str, &[Place], &str); 6] = [
    ("[[port]]", &[Place::Node, Place::Member], "[[port]]\ninterface = \"eth0\"\nsegment = \"office\"\n"),
    ("[store]", &[Place::Member], "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n"),
    ("[cluster]", &[Place::Member], "[cluster]\nkey_file = \"/etc/baton/probe.key\"\n"),
    ("[cluster]", &[Place::Cluster], "[cluster]\nmembers = [\"fs1\", \"fs2\", \"fs3\"]\n"),
    (
        "[[segment]]",
        &[Place::Node, Place::Cluster],
        "[[segment]]\nname = \"office\"\nsubnets = [\"10.0.0.0/24\", \"fd00:10::/64\"]\n",
    ),
    ("[[virtual_server]]", &[Place::Node, Place::Cluster], SERVER),
];

/// Makes a whole file of a part of one, for the place where it stands ([`Place::Common`]: the file for `baton apply`).
pub fn complete(part: &str, place: Place) -> String {
    let place = if place == Place::Common { Place::Cluster } else { place };
    let has = |header: &str| part.lines().any(|line| line.split('#').next().unwrap_or("").trim() == header);
    let mut text = String::new();
    for (header, places, lines) in AROUND {
        if places.contains(&place) && !has(header) {
            text.push_str(lines);
            text.push('\n');
        }
    }
    text + part
}

/// The page of the documentation.
pub fn page() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         <!-- Made by `baton reference configuration` from agent/src/config/reference.rs; tests compare them. Do not edit. -->\n\n\
         Every node has a file of its own, `/etc/baton/baton.toml`. `baton check` reads it and says what is wrong, with line and column,\n\
         all at once. Where the store is etcd, what is common to all nodes is in a second file, which any node writes to the store with\n\
         `baton apply` (`--dry-run` shows the difference first). A node that is alone has everything in its own.\n\n\
         Durations have a unit, as `\"10ms\"`, `\"2s\"` or `\"1min 30s\"`. Paths are absolute. A key without a default must be there.\n",
    );
    // Writing to a string can't fail.
    for section in SECTIONS {
        let place = match section.place {
            Place::Node => "In the node's own file.",
            Place::Member => "In the node's own file, where the store is etcd (`kind`, `path`: always).",
            Place::Common => "In the file for `baton apply` where the store is etcd, else in the node's own.",
            Place::Cluster => "In the file for `baton apply`.",
        };
        let place = if section.title.contains("[cluster]") {
            place.split(" (").next().unwrap_or(place)
        } else {
            place
        };
        let what = if section.what.is_empty() { String::new() } else { format!("{} ", section.what) };
        let _ = writeln!(
            text,
            "\n## {}\n\n{what}{place}\n\n| key | value | default | what |\n|---|---|---|---|",
            section.title
        );
        for k in section.keys {
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} |",
                k.name,
                written(&k.value),
                held(&k.default),
                k.what
            );
        }
        let info = match section.place {
            Place::Node => "toml",
            Place::Member => "toml,node",
            Place::Common | Place::Cluster => "toml,cluster",
        };
        let example =
            if section.example.is_empty() { section.shape.to_owned() } else { section.example.to_owned() };
        let _ = writeln!(text, "\n```{info}\n{}\n```", example.trim_end());
    }
    text
}

fn written(value: &Value) -> String {
    match value {
        Text(which) => format!("text: {which}"),
        Word(words) => words.iter().map(|w| format!("`\"{w}\"`")).collect::<Vec<_>>().join(", "),
        Duration(limits) => format!("duration, {limits}"),
        Number(limits) => format!("number, {limits}"),
        Flag => "`true` or `false`".to_owned(),
        Path => "path".to_owned(),
        List(of) => format!("list: {of}"),
        Value::Section => "section".to_owned(),
        Texts => "table of texts".to_owned(),
    }
}

fn held(default: &Without) -> String {
    match default {
        Required => String::new(),
        Words(words) => (*words).to_owned(),
        Is(value) => format!("`{value}`"),
    }
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
