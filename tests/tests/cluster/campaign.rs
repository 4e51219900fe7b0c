//! A random campaign of faults: whatever happens, never two nodes for an address; after every fault is mended all addresses
//! are served again, and no node has an address that it doesn't serve.
//!
//! `BATON_CAMPAIGN_SEED` replays one (it is printed at the start), `BATON_CAMPAIGN_FAULTS` sets how many faults it makes (60).

use std::collections::BTreeMap;
use std::time::Instant;

use baton_lab::{Blackhole, Direction, Process};

use super::*;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    pub fn time(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(most.as_micros() as u64))
    }
}

pub fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(default),
    }
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const PORTS: [&str; 3] = ["p0", "p1", "p2"];

/// A fault that lasts, and how it ends.
enum Fault {
    Cut(Vec<Blackhole>),
    Pause(&'static str),
    Killed(&'static str),
    Etcd(&'static str),
    Hung(&'static str),
    Power(&'static str, Vec<Blackhole>),
    Port(&'static str, &'static str),
    Silent(Vec<Blackhole>),
    Drain(&'static str, Option<Process>),
}

impl Fault {
    /// What etcd needs, or the way to it.
    fn is_of_the_store(&self) -> bool {
        matches!(self, Fault::Etcd(_) | Fault::Hung(_) | Fault::Cut(_) | Fault::Power(..))
    }
}

struct Campaign {
    cluster: Cluster,
    random: Random,
    lasting: Vec<(String, Fault)>,
    story: Vec<String>,
    start: Instant,
    /// How many faults there were of each kind.
    kinds: BTreeMap<&'static str, u64>,
    /// `baton move` under way.
    moves: Vec<Process>,
}

impl Campaign {
    fn tell(&mut self, what: &str) {
        self.story.push(format!("{:8.3} {what}", self.start.elapsed().as_secs_f64()));
    }

    /// Is this node, or its member of the store, in no fault yet?
    fn is_free(&self, name: &str) -> bool {
        !self.lasting.iter().any(|(known, _)| known == name)
    }

    fn cut(&mut self, node: &str, direction: Option<Direction>) -> Result<Fault> {
        let ports = self.cluster.lab.ports().filter(|p| p.host().name() == node);
        let mut holes = Vec::new();
        for port in ports {
            match direction {
                Some(direction) => holes.push(port.lose(direction)?),
                None => holes.extend(port.lose_both()?),
            }
        }
        Ok(Fault::Cut(holes))
    }

    /// Where this fault lies: there is one at a time.
    fn place(kind: &str, node: &str) -> String {
        match kind {
            "etcd" | "hung" => format!("etcd-{node}"),
            "port" | "silent" => format!("port-{node}"),
            "drain" => format!("drain-{node}"),
            _ => node.to_owned(),
        }
    }

    fn break_something(&mut self) -> Result<bool> {
        const KINDS: [&str; 16] = [
            "cut",
            "deaf",
            "mute",
            "pair",
            "half-pair",
            "pause",
            "pause",
            "kill",
            "restart",
            "etcd",
            "hung",
            "power",
            "port",
            "silent",
            "drain",
            "delete",
        ];
        let node = *self.random.one_of(&NODES);
        let other = *self.random.one_of(&NODES);
        // Moves are nearly free, and make the others more likely to hit something in the middle.
        let kind = if self.random.below(5) == 0 { "move" } else { *self.random.one_of(&KINDS) };
        let name = Self::place(kind, node);
        let store = |f: &Fault| f.is_of_the_store();
        let free = self.is_free(&name)
            && (kind != "power" || self.is_free(&Self::place("etcd", node)))
            && (!kind.contains("pair") || node != other)
            && (!["etcd", "hung"].contains(&kind)
                || self.is_free(node)
                || !self.lasting.iter().any(|(_, f)| store(f)));
        if !free {
            return Ok(false);
        }
        self.tell(&format!("{kind} {node} {other}"));
        let fault = match kind {
            "cut" => self.cut(node, None)?,
            "deaf" => self.cut(node, Some(Direction::ToHost))?,
            "mute" => self.cut(node, Some(Direction::FromHost))?,
            "pair" => Fault::Cut(self.cluster.split(&[node], &[other])?),
            "half-pair" => Fault::Cut(self.cluster.deafen(&[node], &[other])?),
            "pause" => {
                self.cluster.agent_mut(node)?.process().pause()?;
                Fault::Pause(node)
            }
            "kill" => {
                self.cluster.agent_mut(node)?.kill()?;
                Fault::Killed(node)
            }
            "restart" => {
                self.cluster.agent_mut(node)?.start_again()?;
                return Ok(self.count(kind));
            }
            "etcd" => {
                self.cluster.etcd.kill(node)?;
                Fault::Etcd(node)
            }
            "hung" => {
                self.cluster.etcd.member(node)?.as_ref().map_or(Ok(()), |member| member.pause())?;
                Fault::Hung(node)
            }
            "power" => Fault::Power(node, self.cluster.power_off(node)?),
            "port" => {
                let port = *self.random.one_of(&PORTS);
                self.cluster.lab.port(node, port)?.cut()?;
                Fault::Port(node, port)
            }
            "silent" => {
                let port = *self.random.one_of(&PORTS);
                let port = self.cluster.lab.port(node, port)?;
                Fault::Silent(port.lose_both()?.into())
            }
            "delete" => {
                // One that Baton configured, by hand.
                let address = ip(ADDRESSES[self.random.below(3) as usize]);
                for port in ["p0", "p1"] {
                    let length = if address.is_ipv4() { 32 } else { 128 };
                    let net = ipnet::IpNet::new(address, length)?;
                    let _ = self.cluster.lab.port(node, port)?.delete_address(net); // it may not be there
                }
                return Ok(self.count(kind));
            }
            "move" => {
                let server = *self.random.one_of(&["projects", "homes"]);
                let process = self.cluster.agent(other)?.spawn(&["move", server, "--to", node])?;
                self.moves.push(process);
                return Ok(self.count(kind));
            }
            _ => {
                // The command waits for the drain to be done, which may be never.
                let process = self.cluster.agent(other)?.spawn(&["drain", node])?;
                Fault::Drain(node, Some(process))
            }
        };
        self.lasting.push((name, fault));
        Ok(self.count(kind))
    }

    fn count(&mut self, kind: &'static str) -> bool {
        *self.kinds.entry(kind).or_default() += 1;
        true
    }

    fn mend(&mut self, index: usize) -> Result<()> {
        let (name, fault) = self.lasting.remove(index);
        self.tell(&format!("mend {name}"));
        match fault {
            Fault::Cut(holes) | Fault::Silent(holes) => drop(holes),
            Fault::Hung(node) => {
                self.cluster.etcd.member(node)?.as_ref().map_or(Ok(()), |member| member.resume())?;
            }
            Fault::Power(node, holes) => {
                drop(holes);
                self.cluster.etcd.start_again(node)?;
                self.cluster.agent_mut(node)?.start_again()?;
            }
            Fault::Pause(node) => self.cluster.agent_mut(node)?.process().resume()?,
            Fault::Killed(node) => self.cluster.agent_mut(node)?.start_again()?,
            Fault::Etcd(node) => self.cluster.etcd.start_again(node)?,
            Fault::Port(node, port) => _ = self.cluster.lab.port(node, port)?.restore()?,
            Fault::Drain(node, process) => {
                drop(process); // kills it, if it still waits
                let key = format!("/baton/lab/drain/{node}");
                wait_until("the drain to be taken back", LONG, || {
                    self.cluster.etcd.ctl(&["del", &key]).is_ok_and(|o| o.status.success())
                })?;
            }
        }
        Ok(())
    }

    fn run(&mut self, faults: u64) -> Result<u64> {
        let mut made = 0;
        while made < faults {
            let before = self.lasting.len();
            if before == 0 || (before < 3 && self.random.below(3) > 0) {
                made += u64::from(self.break_something()?);
            } else {
                // What the store needs is mended before what needs the store.
                let index = self.random.below(before as u64) as usize;
                let store = self.lasting.iter().position(|(_, f)| f.is_of_the_store());
                let drain = matches!(self.lasting[index].1, Fault::Drain(..));
                self.mend(if drain { store.unwrap_or(index) } else { index })?;
            }
            self.moves.retain_mut(|m| m.exited().is_ok_and(|status| status.is_none()));
            let pause = self.random.time(Duration::from_millis(900));
            std::thread::sleep(pause);
        }
        while let Some(index) = self.lasting.iter().position(|(_, f)| !matches!(f, Fault::Drain(..))) {
            self.mend(index)?;
        }
        while !self.lasting.is_empty() {
            self.mend(0)?;
        }
        Ok(made)
    }

    /// Each address is on the node that serves it, and on no other.
    fn nothing_is_left(&self) -> Result<()> {
        for address in ADDRESSES.map(ip) {
            let holder = self.cluster.wait_held(address, |_| true)?;
            for node in NODES.iter().filter(|node| **node != holder) {
                wait_unconfigured(&self.cluster, node, address)?;
            }
            let has = |(_, net): &(u32, ipnet::IpNet)| net.addr() == address;
            let on = self.cluster.lab.host(&holder)?.netlink().addresses()?.iter().filter(|a| has(a)).count();
            ensure!(on == 1, "{address} is on {on} interfaces of {holder}");
        }
        Ok(())
    }
}

#[test]
fn whatever_happens_no_address_has_two_nodes_and_each_is_served_in_the_end() -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = setting("BATON_CAMPAIGN_SEED", now.as_nanos() as u64)?;
    let faults = setting("BATON_CAMPAIGN_FAULTS", 60)?;
    println!("BATON_CAMPAIGN_SEED={seed} BATON_CAMPAIGN_FAULTS={faults}");
    let mut spec = two_servers();
    spec.grace = Duration::from_millis(700);
    let cluster = Cluster::start("campaign", spec)?;
    let judge = cluster.judge()?;
    let start = Instant::now();
    let kinds = BTreeMap::new();
    let mut campaign = Campaign {
        cluster,
        random: Random(seed),
        lasting: vec![],
        story: vec![],
        start,
        kinds,
        moves: vec![],
    };
    let outcome = campaign.run(faults).and_then(|made| {
        campaign.cluster.wait_all_served()?;
        // Wishes to move that are still there may yet be fulfilled.
        campaign.moves.clear();
        for server in ["projects", "homes"] {
            campaign.cluster.etcd.ctl(&["del", &format!("/baton/lab/move/{server}")])?;
        }
        std::thread::sleep(Duration::from_secs(1));
        quiet(&campaign.cluster, Duration::from_secs(1))?;
        campaign.nothing_is_left()?;
        Ok(made)
    });
    let seen = judge.finish();
    let story = campaign.story.join("\n");
    let made = outcome.map_err(|e| anyhow::anyhow!("seed {seed}: {e:#}\n{story}"))?;
    println!("{made} faults {:?}, {} questions, longest gaps {:?}", campaign.kinds, seen.asked, seen.gaps);
    ensure!(seen.doubles.is_empty(), "seed {seed}: two nodes answered: {:?}\n{story}", seen.doubles);
    Ok(())
}
