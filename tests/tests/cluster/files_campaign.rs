//! A random campaign of faults against a server of files: whatever was told to be stable is there after each fault, the address is
//! never answered for by two nodes, and the file system is never mounted twice.
//!
//! `BATON_FILES_SEED` replays one (it is printed at the start), `BATON_FILES_FAULTS` sets how many faults it makes (6). There are no
//! cuts between nodes that live on, and no hung ones: without fencing, a node that is only cut off may still write.

use std::collections::BTreeMap;

use baton_lab::clock;
use baton_lab::files::{self, FileCluster, MOUNT, NODES};
use baton_lab::nfs::NfsClient;
use baton_lab::transfer::{Contents, check_stable};
use baton_lab::{Transfer, Way, Work};

use super::campaign::{Random, setting};
use super::*;

const CHUNK: usize = 16 << 10;
/// Writes before a COMMIT.
const BATCH: usize = 8;
/// Of each file: so long that a fault is over before it is written a second time.
const BYTES: u64 = 48 << 20;
/// What kept a writer waiting for longer than this is told of.
const SLOW: Duration = Duration::from_secs(1);
/// All that the client is patient for.
const PATIENCE: Duration = Duration::from_secs(120);

struct Campaign {
    files: FileCluster,
    random: Random,
    story: Vec<String>,
    start: Duration,
    kinds: BTreeMap<&'static str, u64>,
    /// The stalls of the writers.
    stalls: Vec<(Duration, &'static str)>,
    chunks: usize,
}

impl Campaign {
    fn tell(&mut self, what: String) {
        let now = clock::now().saturating_sub(self.start);
        self.story.push(format!("{:8.3} {what}", now.as_secs_f64()));
    }

    fn writer(&self, name: &str, seed: u64, work: Work) -> Result<(Contents, Transfer)> {
        let contents = Contents { name: format!("/{name}"), bytes: BYTES, seed };
        let transfer = Transfer::start(self.files.client()?, &contents, work, PATIENCE)?;
        Ok((contents, transfer))
    }

    /// Two writers, a fault, perhaps something else in the middle of it; then all is mended, and what was stable is looked for.
    fn round(&mut self, number: u64) -> Result<()> {
        const KINDS: [&str; 10] =
            ["power", "power", "power", "other-power", "server", "agent", "move", "drain", "ports", "slow"];
        let kind = *self.random.one_of(&KINDS);
        *self.kinds.entry(kind).or_default() += 1;
        let owner = self.files.wait_well()?;
        let (told, measured) = (self.story.len(), self.stalls.len());
        let (first, second) = (self.random.next(), self.random.next());
        let written = self.writer("written", first, Work::Write { chunk: CHUNK })?;
        let committed = self.writer("committed", second, Work::Commit { chunk: CHUNK, batch: BATCH })?;
        for (_, transfer) in [&written, &committed] {
            transfer.wait(20, Duration::ZERO, PATIENCE)?;
        }
        std::thread::sleep(self.random.time(Duration::from_millis(500)));
        self.tell(format!("{number}: {kind}, {owner} serves"));
        committed.1.expect_fault();
        let at = clock::now();
        self.fault(kind, &owner)?;
        self.files.wait_well()?;
        committed.1.fault_is_over();
        for (_, transfer) in [&written, &committed] {
            transfer.wait(20, clock::now(), PATIENCE)?;
        }
        let end = clock::now();
        for (contents, transfer) in [written, committed] {
            let log = transfer.stop();
            ensure!(log.failed.is_none() && log.wrong.is_empty(), "{:?} {:?}", log.failed, log.wrong);
            let (from, to) = log.longest(at, end);
            self.stalls.push((to.saturating_sub(from), kind));
            self.chunks += log.stable.iter().filter(|round| **round > 0).count();
            self.tell(format!("{}: waited for {:.0?}", contents.name, to.saturating_sub(from)));
            let wrong = self.files.client()?.enter(|| -> Result<Vec<String>> {
                let mut client = NfsClient::mount(files::ADDRESS, MOUNT, PATIENCE)?;
                let wrong = check_stable(&mut client, &contents, CHUNK, &log)?;
                client.remove(&contents.name)?;
                Ok(wrong)
            })??;
            ensure!(wrong.is_empty(), "{} of round {number}: not there: {wrong:#?}", contents.name);
        }
        if self.stalls[measured..].iter().any(|(stall, _)| *stall > SLOW) {
            println!("SLOW\n{}\n{}", self.story[told..].join("\n"), self.files.cluster.story(at));
        }
        Ok(())
    }

    fn other(node: &str) -> &'static str {
        if node == NODES[0] { NODES[1] } else { NODES[0] }
    }

    fn fault(&mut self, kind: &'static str, owner: &str) -> Result<()> {
        let other = Self::other(owner);
        let while_it_lasts = self.random.time(Duration::from_millis(1500));
        match kind {
            "power" | "other-power" => {
                let victim = if kind == "power" { owner } else { other };
                self.files.power_off(victim)?;
                self.meanwhile(Self::other(victim))?;
                std::thread::sleep(while_it_lasts);
                // The client has to have seen it before the node is back.
                self.files.cluster.wait_held(files::ADDRESS, |node| node != victim)?;
                self.files.power_on(victim)?;
            }
            "server" => {
                self.files.kill_service(owner)?;
                std::thread::sleep(while_it_lasts / 4);
                self.meanwhile(owner)?;
            }
            "agent" => self.restart_agent(owner)?,
            "move" => {
                let mut moving =
                    self.files.cluster.agent(other)?.spawn(&["move", files::SERVER, "--to", other])?;
                std::thread::sleep(while_it_lasts / 4);
                self.meanwhile(owner)?;
                moving.wait(PATIENCE)?;
            }
            "drain" => {
                self.files.cluster.done("n3", &["drain", owner])?;
                self.files.cluster.done("n3", &["resume", owner])?;
            }
            "ports" => {
                for port in ["p0", "p1"] {
                    self.files.cluster.lab.port(owner, port)?.cut()?;
                }
                std::thread::sleep(while_it_lasts);
                for port in ["p0", "p1"] {
                    self.files.cluster.lab.port(owner, port)?.restore()?;
                }
            }
            _ => {
                self.files.disks.lun.set(owner, Way::Slow(Duration::from_millis(20)))?;
                std::thread::sleep(while_it_lasts);
                self.files.disks.lun.set(owner, Way::Well)?;
            }
        }
        Ok(())
    }

    /// Sometimes the agent of a node dies in the middle of something else.
    fn meanwhile(&mut self, node: &str) -> Result<()> {
        if self.random.below(3) == 0 {
            std::thread::sleep(self.random.time(Duration::from_millis(300)));
            self.tell(format!("   and the agent of {node}"));
            self.restart_agent(node)?;
        }
        Ok(())
    }

    /// Within its grace, so that nobody takes over from what still runs.
    fn restart_agent(&mut self, node: &str) -> Result<()> {
        self.files.cluster.agent_mut(node)?.kill()?;
        std::thread::sleep(self.random.time(Duration::from_millis(400)));
        Ok(self.files.cluster.agent_mut(node)?.start_again()?)
    }
}

#[test]
fn whatever_happens_what_was_told_to_be_stable_is_there() -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = setting("BATON_FILES_SEED", now.as_nanos() as u64)?;
    let faults = setting("BATON_FILES_FAULTS", 6)?;
    println!("BATON_FILES_SEED={seed} BATON_FILES_FAULTS={faults}");
    let files = FileCluster::start("files-campaign", files::spec(""))?;
    let (judge, mounts) = (files.cluster.judge()?, files.disks.lun.watch()?);
    let (kinds, stalls) = Default::default();
    let start = clock::now();
    let mut campaign =
        Campaign { files, random: Random(seed), story: vec![], start, kinds, stalls, chunks: 0 };
    // Nobody is called dead in the first two seconds of a member list.
    std::thread::sleep(Duration::from_secs(2));
    let outcome = (1..=faults).try_for_each(|number| {
        let result = campaign.round(number);
        result.map_err(|e| anyhow::anyhow!("seed {seed}, fault {number}: {e:#}"))
    });
    let (looked, doubles) = mounts.finish();
    let seen = judge.finish();
    campaign.stalls.sort();
    let longest = campaign.stalls.last().copied();
    println!(
        "{faults} faults {:?}; {} stable chunks were looked for; stalls: half of them below {:.0?}, longest {longest:.0?}; {} \
         questions, {looked} looks",
        campaign.kinds,
        campaign.chunks,
        campaign.stalls.get(campaign.stalls.len() / 2).map(|(stall, _)| *stall).unwrap_or_default(),
        seen.asked
    );
    let story = campaign.story.join("\n");
    ensure!(seen.doubles.is_empty(), "seed {seed}: two nodes answered: {:?}\n{story}", seen.doubles);
    ensure!(doubles.is_empty(), "seed {seed}: mounted twice: {doubles:?}\n{story}");
    outcome.map_err(|e| anyhow::anyhow!("{e:#}\n{story}{}", campaign.files.cluster.logs()))?;
    ensure!(campaign.chunks > 0, "nothing was stable");
    campaign.files.wait_well()?;
    Ok(())
}
