//! How a node reaches etcd: what `[store]` and `[cluster]` of its file say.

use std::collections::HashMap;

use super::names::{check_name, unique};
use super::problem::Findings;
use super::reader::{At, values};
use super::sections::Raw;
use super::{ClusterConfig, EtcdConfig, EtcdCredentials, EtcdTls};

/// What the configuration says of etcd, if that is the store.
pub(super) fn check_store(raw: &Raw, f: &mut Findings) -> Option<(EtcdConfig, ClusterConfig)> {
    let Some(kind) = raw.store.kind.as_ref().filter(|k| k.value == "etcd") else {
        for key in &raw.store.etcd_keys {
            f.error(
                key.at,
                format!("`{}` in [store] belongs to the store \"etcd\"", key.value),
                "remove it: the store \"file\" has only `path`",
            );
        }
        if let Some(cluster) = &raw.cluster {
            f.error(
                cluster.at,
                "[cluster] needs the store \"etcd\"",
                "add kind = \"etcd\" and `endpoints` to [store], or remove [cluster]: this node then serves alone",
            );
        }
        return None;
    };
    let endpoints = &raw.store.endpoints;
    if endpoints.is_empty() {
        f.error(
            kind.at,
            "no `endpoints` in [store]",
            "name etcd's client URLs, the local member first: endpoints = [\"http://127.0.0.1:2379\"]",
        );
    }
    let mut seen = HashMap::new();
    for endpoint in endpoints {
        check_endpoint(endpoint, raw.store.tls.is_some(), f);
        unique(&mut seen, &endpoint.value, endpoint.at, f, || {
            (format!("{} is there twice", endpoint.value), "remove one of the two".to_owned())
        });
    }
    let tls = raw.store.tls.as_ref().map(|tls| {
        let identity = tls.certificate.clone().zip(tls.key.clone());
        if tls.ca.is_none() {
            f.error(
                tls.at,
                "no `ca` in tls",
                "name the certificate of the authority that signed etcd's: ca = \"/etc/baton/ca.pem\"",
            );
        }
        if identity.is_none() && (tls.certificate.is_some() || tls.key.is_some()) {
            f.error(tls.at, "`certificate` and `key` in tls belong together", "name both files, or neither");
        }
        EtcdTls { ca: tls.ca.clone().unwrap_or_default(), identity }
    });
    let credentials = raw.store.credentials.as_ref().and_then(|c| {
        Some(EtcdCredentials { user: c.user.clone()?, password_file: c.password_file.clone()? })
    });
    if raw.store.credentials.is_some() && credentials.is_none() {
        f.error(
            kind.at,
            "`credentials` in [store] lacks the user or the password",
            "name `user` and `password_file`",
        );
    }
    let cluster = raw.cluster.as_ref();
    if let Some(name) = cluster.and_then(|c| c.name.as_ref()) {
        check_name("cluster", name, f);
    }
    for key in cluster.map_or(&[][..], |c| &c.keys) {
        if matches!(key.value, "members" | "two_nodes_never_take_over") {
            f.error(
                key.at,
                format!("`{}` in [cluster] is cluster-wide", key.value),
                "put it into the file for `baton apply`, and remove it here",
            );
        }
    }
    let Some(key_file) = cluster.and_then(|c| c.key_file.as_ref()) else {
        f.error(
            cluster.map_or(0, |c| c.at),
            "no `key_file` in [cluster]",
            "name a file with 32 hexadecimal digits, the same on all nodes: key_file = \"/etc/baton/probe.key\"",
        );
        return None;
    };
    let name = cluster.and_then(|c| c.name.as_ref()).map_or("baton", |n| n.value.as_str()).to_owned();
    let endpoints = values(endpoints);
    let witness = cluster.and_then(|c| c.witness).unwrap_or(false);
    let key_file = key_file.value.clone();
    Some((EtcdConfig { cluster: name, endpoints, tls, credentials }, ClusterConfig { key_file, witness }))
}

fn check_endpoint(endpoint: &At<String>, tls: bool, f: &mut Findings) {
    let url = endpoint.value.as_str();
    let (secure, host) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(host), _) => (true, host),
        (_, Some(host)) => (false, host),
        (None, None) => (false, ""),
    };
    let host = host.trim_end_matches('/');
    let port = host
        .rsplit_once(':')
        .and_then(|(name, port)| (!name.is_empty()).then_some(port)?.parse::<u16>().ok());
    if port.is_none_or(|p| p == 0) {
        f.error(endpoint.at, format!("\"{url}\" is no client URL"), "write it as \"http://127.0.0.1:2379\"");
    } else if secure != tls {
        let (what, fix) = match secure {
            true => ("needs `tls`", "add tls = { ca = \"/etc/baton/ca.pem\" } to [store]"),
            false => ("is not encrypted, but there is `tls`", "write https://, or remove `tls`"),
        };
        f.error(endpoint.at, format!("{url} {what}"), fix);
    }
}
