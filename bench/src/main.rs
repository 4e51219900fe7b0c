//! Benchmarks of Baton.

mod xdp_cost;

use clap::{Parser, Subcommand};

/// Latency and throughput benchmarks of Baton and its peers, measured in the same run.
#[derive(Parser)]
#[command(name = "baton-bench")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Nanoseconds per packet of the kernel programs, above an empty program.
    XdpCost(xdp_cost::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().bench {
        Bench::XdpCost(options) => xdp_cost::run(&options),
    }
}
