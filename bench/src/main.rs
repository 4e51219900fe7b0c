//! Baton's benchmarks: latency and throughput of Baton and of its peers, measured in the same run on the same topology.

mod carrier;
mod chart;
mod connections;
mod cpu;
mod file_client;
mod floor_agent;
mod html;
mod keepalived;
mod load;
mod node;
mod node_failover;
mod port_failover;
mod report;
mod run;
mod runs;
mod scale;
mod silent_port;
mod simulate;
mod smb_sync;
mod steady;
mod system;
mod witness;
mod xdp_cost;

use clap::Parser;

/// Benchmarks of Baton and its peers. They need root, and touch nothing outside network namespaces of their own.
#[derive(Debug, Parser)]
#[command(name = "baton-bench", version)]
enum Command {
    /// What a client loses, and the stages, when a port's carrier goes: floor, baton, keepalived.
    PortFailover(port_failover::Arguments),
    /// What a client loses when a node dies, is cut off or drained: Baton in two profiles, keepalived.
    NodeFailover(node_failover::Arguments),
    /// How long an NFS client waits when its node fails or is drained: Baton, keepalived with scripts.
    FileClient(file_client::Arguments),
    /// How fast an SMB client writes where what it is told is stable, and where it isn't.
    SmbSync(smb_sync::Arguments),
    /// Takeovers without a cause, under stress: Baton in two profiles, keepalived beside it.
    Steady(steady::Arguments),
    /// What a client loses when a port turns silent with carrier; false verdicts under stress; what watching costs.
    SilentPort(silent_port::Arguments),
    /// What grows with the number of addresses, and what must not; what an idle agent costs.
    Scale(scale::Arguments),
    /// The planner on made-up loads: imbalance over time, moves, distance to the bound, time; against counting and greedy.
    Simulate(simulate::Arguments),
    /// Processor time that sharing the TCP connections of virtual servers takes.
    Connections(connections::Arguments),
    /// Nanoseconds per packet of the kernel programs, above an empty program.
    XdpCost(xdp_cost::Options),
    /// The floor's own process; started by `port-failover`.
    #[command(hide = true)]
    FloorAgent(floor_agent::Arguments),
    /// Keeps a CPU busy until killed; started for `--load busy` and for stress.
    #[command(hide = true)]
    Spin(load::Spin),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::PortFailover(arguments) => port_failover::main(&arguments),
        Command::NodeFailover(arguments) => node_failover::main(&arguments),
        Command::FileClient(arguments) => file_client::main(&arguments),
        Command::SmbSync(arguments) => smb_sync::main(&arguments),
        Command::Steady(arguments) => steady::main(&arguments),
        Command::SilentPort(arguments) => silent_port::main(&arguments),
        Command::Scale(arguments) => scale::main(&arguments),
        Command::Simulate(arguments) => simulate::main(&arguments),
        Command::Connections(arguments) => connections::main(&arguments),
        Command::XdpCost(options) => xdp_cost::run(&options),
        Command::FloorAgent(arguments) => floor_agent::main(&arguments),
        Command::Spin(spin) => load::spin(&spin),
    }
}
