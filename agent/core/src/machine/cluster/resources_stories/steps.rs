//! What may happen in the stories.

use std::time::Duration;

use proptest::prelude::*;

use super::{N, Node, World};

#[derive(Clone, Debug)]
pub(super) enum Step {
    Land(usize),
    GiveUp(usize),
    Deliver(usize),
    Watch(usize),
    /// A node looks about, and what it asks the store for is answered.
    Turn(usize),
    Look(usize),
    Work(usize, bool),
    Report(usize),
    Break(usize),
    Crash(usize),
    Launch(usize),
    Kill(usize),
    Cut(usize),
    Heal(usize),
    Condemn(usize),
    Wish(usize),
    Drain(usize, bool),
    Fence(usize, bool),
    AnswerFence(usize),
    Storage(usize, bool),
    Pass(u64),
    Finish,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3usize).prop_map(Step::Land),
        2 => (0..3usize).prop_map(Step::GiveUp),
        8 => (0..3usize).prop_map(Step::Deliver),
        8 => (0..N).prop_map(Step::Watch),
        12 => (0..N).prop_map(Step::Turn),
        6 => (0..N).prop_map(Step::Look),
        8 => (0..N, prop::bool::weighted(0.6)).prop_map(|(n, well)| Step::Work(n, well)),
        10 => (0..N).prop_map(Step::Report),
        3 => (0..N).prop_map(Step::Break),
        2 => (0..N).prop_map(Step::Crash),
        4 => (0..N).prop_map(Step::Launch),
        1 => (0..N).prop_map(Step::Kill),
        3 => (0..N).prop_map(Step::Cut),
        3 => (0..N).prop_map(Step::Heal),
        4 => (0..N).prop_map(Step::Condemn),
        2 => (0..N).prop_map(Step::Wish),
        3 => (0..N, any::<bool>()).prop_map(|(n, on)| Step::Drain(n, on)),
        5 => (0..3usize, prop::bool::weighted(0.7)).prop_map(|(k, well)| Step::Fence(k, well)),
        5 => (0..3usize).prop_map(Step::AnswerFence),
        3 => (0..N, any::<bool>()).prop_map(|(n, good)| Step::Storage(n, good)),
        4 => prop_oneof![1..400u64, 1000..40_000u64].prop_map(Step::Pass),
        1 => Just(Step::Finish),
    ]
}

impl World {
    fn turn(&mut self, n: usize) {
        self.now = self.now + Duration::from_millis(1);
        self.look(n);
        self.watch(n);
        let (mut k, life) = (0, self.nodes[n].life);
        while k < self.store.asked.len() {
            let (before, own) =
                (self.store.asked.len(), (self.store.asked[k].0, self.store.asked[k].1) == (n, life));
            if own {
                self.land(k);
            }
            k += usize::from(self.store.asked.len() == before);
        }
        while let Some(k) = self.store.answers.iter().position(|(m, ..)| *m == n) {
            self.deliver(k);
        }
    }

    pub fn step(&mut self, step: Step) {
        let out = |node: &Node| node.dead || node.cut;
        match step {
            Step::Land(k) if k < self.store.asked.len() => self.land(k),
            Step::GiveUp(k) if k < self.store.asked.len() => self.give_up(k),
            Step::Deliver(k) if k < self.store.answers.len() => self.deliver(k),
            Step::Land(_) | Step::GiveUp(_) | Step::Deliver(_) => {}
            Step::Watch(n) => self.watch(n),
            Step::Turn(n) => self.turn(n),
            Step::Look(n) => self.look(n),
            Step::Work(n, well) => self.work(n, well),
            Step::Report(n) => self.report(n),
            Step::Break(n) => self.break_it(n),
            Step::Crash(n) => self.crash(n),
            Step::Launch(n) => self.boot(n),
            // One of them at a time: what is left is a majority.
            Step::Kill(n) if !self.nodes.iter().any(out) => self.kill(n),
            Step::Cut(n) if !self.nodes.iter().any(out) => self.nodes[n].cut = true,
            Step::Kill(_) | Step::Cut(_) => {}
            Step::Heal(n) => self.nodes[n].cut = false,
            Step::Condemn(n) if out(&self.nodes[n]) => self.condemn(n),
            Step::Condemn(_) => {}
            Step::Wish(n) => {
                self.store.revision += 1;
                self.wish = (Some(n), self.store.revision);
            }
            Step::Drain(n, on) => self.draining[n] = on,
            Step::Fence(k, well) if k < self.fences.len() => self.fence(k, well),
            Step::AnswerFence(k) if k < self.fences.len() => self.answer_fence(k),
            Step::Fence(..) | Step::AnswerFence(_) => {}
            Step::Storage(n, good) => self.set_storage(n, good),
            Step::Pass(ms) => {
                self.now = self.now + Duration::from_millis(ms);
                (0..N).for_each(|n| self.look(n));
            }
            Step::Finish => self.finish(),
        }
    }
}
