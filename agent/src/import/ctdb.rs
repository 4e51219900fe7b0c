//! CTDB's `public_addresses`: an address with its prefix length in each line, and the interfaces that it may be on.

use ipnet::IpNet;

use super::model::{Address, Model, Server};
use super::{Place, Remarks, shown};

pub(super) fn read(text: &str, remarks: &mut Remarks) -> Model {
    let mut model = Model::default();
    let mut first = None;
    for (line, words) in (1..).zip(text.lines()) {
        let place = Place { file: None, line };
        let mut words = words.split_whitespace();
        let Some(address) = words.next().filter(|w| !w.starts_with('#')) else { continue };
        let Ok(net) = address.parse::<IpNet>() else {
            remarks.add(
                &place,
                format!(
                    "left out: \"{}\" is no address with a prefix length, as 10.0.0.10/24",
                    shown(address)
                ),
            );
            continue;
        };
        let interfaces: Vec<String> =
            words.next().unwrap_or("").split(',').filter(|i| !i.is_empty()).map(str::to_owned).collect();
        if interfaces.is_empty() {
            remarks.add(
                &place,
                "assumed: no interface is named here; add a [[port]] for each that leads to this subnet",
            );
        }
        first.get_or_insert_with(|| place.clone());
        model.servers.push(Server {
            name: net.addr().to_string(),
            place: place.clone(),
            addresses: vec![Address { net, is_exact: true, interfaces, place }],
            ..Server::default()
        });
    }
    if let Some(place) = first {
        for what in [
            "assumed: each address is a virtual server of its own, for CTDB moves each of them alone; put those together that \
             clients of one file system use",
            "not expressed: what CTDB starts by its event scripts (50.samba, 60.nfs) is not in this file; add \
             [[virtual_server.filesystem]] and [[virtual_server.service]]",
            "not expressed: the other nodes, and the recovery lock, are not in this file; what serves as both is [store] with etcd, \
             and `members` in the file for `baton apply`",
        ] {
            remarks.add(&place, what);
        }
    }
    model
}
