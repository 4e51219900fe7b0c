//! A random campaign of faults: whatever happens, never two nodes for an address; and after every fault is mended all addresses
//! are served again.
//!
//! `BATON_CAMPAIGN_SEED` replays one (it is printed at the start), `BATON_CAMPAIGN_FAULTS` sets how many faults it makes (30).

use std::time::Instant;

use baton_lab::{Blackhole, Direction};

use super::*;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    fn time(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(most.as_micros() as u64))
    }
}

fn setting(name: &str, default: u64) -> Result<u64> {
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
    Port(&'static str, &'static str),
    Drain(&'static str),
}

struct Campaign {
    cluster: Cluster,
    random: Random,
    lasting: Vec<(String, Fault)>,
    story: Vec<String>,
    start: Instant,
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

    fn break_something(&mut self) -> Result<()> {
        let node = *self.random.one_of(&NODES);
        let (kind, name) = match self.random.below(10) {
            0 => ("cut", node.to_owned()),
            1 => ("deaf", node.to_owned()),
            2 => ("mute", node.to_owned()),
            3 | 4 => ("pause", node.to_owned()),
            5 => ("kill", node.to_owned()),
            6 => ("etcd", format!("etcd-{node}")),
            7 | 8 => ("port", format!("port-{node}")),
            _ => ("drain", format!("drain-{node}")),
        };
        if !self.is_free(&name) {
            return Ok(());
        }
        self.tell(&format!("{kind} {node}"));
        let fault = match kind {
            "cut" => self.cut(node, None)?,
            "deaf" => self.cut(node, Some(Direction::ToHost))?,
            "mute" => self.cut(node, Some(Direction::FromHost))?,
            "pause" => {
                self.cluster.agent_mut(node)?.process().pause()?;
                Fault::Pause(node)
            }
            "kill" => {
                self.cluster.agent_mut(node)?.kill()?;
                Fault::Killed(node)
            }
            "etcd" => {
                self.cluster.etcd.kill(node)?;
                Fault::Etcd(node)
            }
            "port" => {
                let port = *self.random.one_of(&PORTS);
                self.cluster.lab.port(node, port)?.cut()?;
                Fault::Port(node, port)
            }
            _ => {
                // Through the store itself: the command waits for the drain to be done.
                let done = self.cluster.etcd.ctl(&["put", &format!("/baton/lab/drain/{node}"), "1"])?;
                if !done.status.success() {
                    return Ok(());
                }
                Fault::Drain(node)
            }
        };
        self.lasting.push((name, fault));
        Ok(())
    }

    fn mend(&mut self, index: usize) -> Result<()> {
        let (name, fault) = self.lasting.remove(index);
        self.tell(&format!("mend {name}"));
        match fault {
            Fault::Cut(holes) => drop(holes),
            Fault::Pause(node) => self.cluster.agent_mut(node)?.process().resume()?,
            Fault::Killed(node) => self.cluster.agent_mut(node)?.start_again()?,
            Fault::Etcd(node) => self.cluster.etcd.start_again(node)?,
            Fault::Port(node, port) => _ = self.cluster.lab.port(node, port)?.restore()?,
            Fault::Drain(node) => {
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
            if before == 0 || (before < 3 && self.random.below(2) == 0) {
                self.break_something()?;
                made += (self.lasting.len() - before) as u64;
            } else {
                // What the store needs is mended before what needs the store.
                let index = self.random.below(before as u64) as usize;
                let store =
                    self.lasting.iter().position(|(_, f)| matches!(f, Fault::Etcd(_) | Fault::Cut(_)));
                let drain = matches!(self.lasting[index].1, Fault::Drain(_));
                self.mend(if drain { store.unwrap_or(index) } else { index })?;
            }
            let pause = self.random.time(Duration::from_millis(900));
            std::thread::sleep(pause);
        }
        while let Some(index) = self.lasting.iter().position(|(_, f)| !matches!(f, Fault::Drain(_))) {
            self.mend(index)?;
        }
        while !self.lasting.is_empty() {
            self.mend(0)?;
        }
        Ok(made)
    }
}

#[test]
fn whatever_happens_no_address_has_two_nodes_and_each_is_served_in_the_end() -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = setting("BATON_CAMPAIGN_SEED", now.as_nanos() as u64)?;
    let faults = setting("BATON_CAMPAIGN_FAULTS", 30)?;
    println!("BATON_CAMPAIGN_SEED={seed} BATON_CAMPAIGN_FAULTS={faults}");
    let mut spec = two_servers();
    spec.grace = Duration::from_millis(700);
    let cluster = Cluster::start("campaign", spec)?;
    let judge = cluster.judge()?;
    let start = Instant::now();
    let mut campaign =
        Campaign { cluster, random: Random(seed), lasting: Vec::new(), story: Vec::new(), start };
    let outcome = campaign.run(faults).and_then(|made| {
        campaign.cluster.wait_all_served()?;
        quiet(&campaign.cluster, Duration::from_secs(1))?;
        Ok(made)
    });
    let seen = judge.finish();
    let story = campaign.story.join("\n");
    let made = outcome.map_err(|e| anyhow::anyhow!("seed {seed}: {e:#}\n{story}"))?;
    println!("{made} faults, {} questions, longest gaps {:?}", seen.asked, seen.gaps);
    ensure!(seen.doubles.is_empty(), "seed {seed}: two nodes answered: {:?}\n{story}", seen.doubles);
    Ok(())
}
