//! Service is reachable where a majority is connected and a permitted member is good: from whatever state, once no more faults
//! happen, exactly one node serves before long, and goes on.

use super::world::World;

/// Ticks after which somebody must serve: the last in line of five waits for a second, and takes over from one that dies then.
const PATIENCE: u32 = 250;
/// Ticks that the service must last.
const STEADY: u32 = 12;

impl World {
    /// No more faults among the nodes of this set: what is cut between them is healed, what stands still goes on, agents run, the
    /// store answers. The others stay as they are, cut off from these and from the store. What becomes of it is the outcome.
    pub fn calm(&mut self, inside: u8) {
        let is_inside = |n: usize| inside & (1 << n) != 0;
        for from in 0..self.count() {
            for to in 0..self.count() {
                self.cut[from][to] = !(is_inside(from) && is_inside(to));
            }
        }
        self.outcome = Some(self.settle_down(inside));
    }

    /// The same, where cuts between the nodes stay.
    pub fn calm_with_cuts(&mut self, inside: u8) {
        for from in 0..self.count() {
            for to in 0..self.count() {
                self.cut[from][to] |= inside & (1 << from) == 0 || inside & (1 << to) == 0;
            }
        }
        self.outcome = Some(self.settle_down(inside));
    }

    /// Would a majority be connected, with a member among it that may serve? Cuts count with `cuts`.
    pub fn can_serve(&self, inside: u8, cuts: bool) -> bool {
        let members = &self.store.members;
        let is_in = |n: usize| inside & (1 << n) != 0 && self.store.has_member(n);
        let open = |a: usize, b: usize| !cuts || !(self.cut[a][b] || self.cut[b][a]);
        let hears = |n: usize| (0..self.count()).filter(|m| is_in(*m) && (n == *m || open(n, *m))).count();
        let one = |n: usize| is_in(n) && !self.is_witness(n) && hears(n) >= members.majority();
        (0..self.count()).any(one)
    }

    fn settle_down(&mut self, inside: u8) -> Result<(), String> {
        let all: Vec<usize> = (0..self.count()).filter(|n| inside & (1 << n) != 0).collect();
        for &n in &all {
            if self.nodes[n].frozen != 0 {
                self.thaw(n);
            }
            if self.nodes[n].stalled {
                self.resume(n);
            }
        }
        let mut since: Option<(usize, u32)> = None;
        for tick in 0..PATIENCE + STEADY {
            for &n in &all {
                if self.is_outdated(n) {
                    self.renew(n);
                } else if self.nodes[n].agent.is_none() && self.store.has_member(n) {
                    self.start(n);
                }
            }
            self.round();
            self.serve_requests(&all);
            if self.servers() > 1 {
                return Err(format!("two serve {tick} ticks after the last fault"));
            }
            let server = (0..self.count()).find(|n| self.serves(*n));
            since = match (server, since) {
                (Some(n), Some((before, at))) if n == before => Some((n, at)),
                (Some(n), _) => Some((n, tick)),
                (None, _) => None,
            };
            if let Some((_, at)) = since
                && tick - at >= STEADY
            {
                return Ok(());
            }
        }
        Err(format!(
            "nobody serves for long, {PATIENCE} ticks after the last fault, among the set {inside:#b}"
        ))
    }

    /// The store carries out and answers what these nodes have asked of it, and tells them of what has changed.
    fn serve_requests(&mut self, nodes: &[usize]) {
        for _ in 0..4 {
            while let Some(k) = self.store.asked.iter().position(|a| nodes.contains(&a.node)) {
                self.land(k);
            }
            while let Some(k) = self.store.answers.iter().position(|(n, ..)| nodes.contains(n)) {
                self.deliver(k);
            }
            for &n in nodes {
                if self.has_news(n) {
                    self.watch(n);
                }
            }
        }
    }
}
