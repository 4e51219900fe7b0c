//! Clusters and loads, made up from a seed.

use baton_core::plan::{Node, Server, Situation};

/// Numbers that look random and are the same each time (xorshift64, Marsaglia 2003).
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..8).for_each(|_| _ = numbers.next());
        numbers
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 up to 1.
    pub fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        (self.share() * count as f64) as usize
    }
}

/// How loads are distributed; all have about the same mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loads {
    /// Evenly from nearly nothing to twice the mean.
    Uniform,
    /// Many small, some large ones.
    Exponential,
    /// Few that are very large (Pareto, shape 1.5), cut at twenty times the smallest.
    Heavy,
}

impl Loads {
    pub fn name(self) -> &'static str {
        match self {
            Loads::Uniform => "uniform",
            Loads::Exponential => "exponential",
            Loads::Heavy => "heavy",
        }
    }

    fn one(self, numbers: &mut Numbers) -> f64 {
        match self {
            Loads::Uniform => 2.0 * numbers.share(),
            Loads::Exponential => -(1.0 - numbers.share()).ln(),
            Loads::Heavy => (1.0 - numbers.share()).powf(-1.0 / 1.5).min(20.0) / 2.6,
        }
    }
}

/// What a generated cluster looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub nodes: usize,
    pub servers: usize,
    pub loads: Loads,
    /// Nodes of three sizes, 1 to 2.
    pub mixed: bool,
    /// A third of the virtual servers reach only half of the nodes.
    pub restricted: bool,
}

impl Shape {
    pub fn name(&self) -> String {
        let mixed = if self.mixed { "_mixed" } else { "" };
        let restricted = if self.restricted { "_restricted" } else { "" };
        format!("{}x{}_{}{mixed}{restricted}", self.nodes, self.servers, self.loads.name())
    }

    /// A cluster that is used to 60 %, each virtual server with a random owner that may have it.
    pub fn make(&self, seed: u64) -> Situation {
        let mut numbers = Numbers::new(seed);
        let mut nodes: Vec<Node> = (0..self.nodes)
            .map(|n| {
                Node::new(&format!("node{n:04}"), if self.mixed { 1.0 + (n % 3) as f64 / 2.0 } else { 1.0 })
            })
            .collect();
        let able = (self.nodes / 2).max(1);
        nodes.iter_mut().take(able).for_each(|n| n.storage = vec!["array".to_owned()]);
        let capacity: f64 = nodes.iter().map(|n| n.capacity).sum();
        let weights: Vec<f64> = (0..self.servers).map(|_| self.loads.one(&mut numbers)).collect();
        let total: f64 = weights.iter().sum();
        let servers = weights.iter().enumerate().map(|(number, weight)| {
            let bound = self.restricted && number % 3 == 0;
            let owner = &nodes[numbers.below(if bound { able } else { self.nodes })].name;
            Server {
                storage: if bound { vec!["array".to_owned()] } else { Vec::new() },
                ..Server::new(&format!("server{number:05}"), weight / total * capacity * 0.6).on(owner)
            }
        });
        let servers = servers.collect();
        // Owners at random may have more than they can bear.
        Situation { servers, nodes, ..Situation::default() }
    }

    /// Are there so many, and all of them so small, that loads can be evened out? At least ten for each node, and none above a
    /// tenth of the fair share of the smallest node.
    pub fn is_fine(situation: &Situation) -> bool {
        let capacity: f64 = situation.nodes.iter().map(|n| n.capacity).sum();
        let smallest = situation.nodes.iter().map(|n| n.capacity).fold(f64::INFINITY, f64::min);
        let total: f64 = situation.servers.iter().map(|s| s.load).sum();
        let largest = situation.servers.iter().map(|s| s.load).fold(0.0, f64::max);
        situation.servers.len() >= 10 * situation.nodes.len() && largest <= total / capacity * smallest / 10.0
    }
}
