//! `[balance]`: how load is measured and evened out.

use std::time::Duration;

use baton_core::config::{Balance, BalanceMode};

use super::problem::Findings;
use super::reader::{At, Section};

/// Its keys.
pub(super) const KEYS: &[&str] = &[
    "mode",
    "half_life",
    "start_percent",
    "stop_percent",
    "quiet_percent",
    "at_once",
    "server_cooldown",
    "cluster_cooldown",
    "horizon",
    "packets_per_second",
    "network_percent",
    "packets_percent",
    "cpu_percent",
    "memory_percent",
    "storage_percent",
];

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reads the section. What is wrong in itself is not compared with anything else: it is reported once.
pub(super) fn read(s: &Section<'_, '_>, f: &mut Findings) -> Balance {
    let default = Balance::default();
    let above_100 = (101, u32::MAX);
    let above_0 = (1, u32::MAX);
    let weights = (0, 1000);
    let cooldowns = (Duration::ZERO, WEEK);

    let mode = s.word("mode", &["off", "advise", "on"], f).map(|w| match w.value.as_str() {
        "off" => BalanceMode::Off,
        "on" => BalanceMode::On,
        _ => BalanceMode::Advise,
    });
    let start = s.number_within("start_percent", above_100, f);
    let stop = s.number_within("stop_percent", above_100, f);
    let mut number = |key, limits, default| s.number_within(key, limits, f).map_or(default, |n| n.value);
    let balance = Balance {
        mode: mode.unwrap_or(default.mode),
        start_percent: start.as_ref().map_or(default.start_percent, |n| n.value),
        stop_percent: stop.as_ref().map_or(default.stop_percent, |n| n.value),
        quiet_percent: number("quiet_percent", (0, 100), default.quiet_percent),
        at_once: number("at_once", above_0, default.at_once),
        packets_per_second: number("packets_per_second", above_0, default.packets_per_second),
        network_percent: number("network_percent", weights, default.network_percent),
        packets_percent: number("packets_percent", weights, default.packets_percent),
        cpu_percent: number("cpu_percent", weights, default.cpu_percent),
        memory_percent: number("memory_percent", weights, default.memory_percent),
        storage_percent: number("storage_percent", weights, default.storage_percent),
        half_life: duration(s, "half_life", (SECOND, HOUR), default.half_life, f),
        server_cooldown: duration(s, "server_cooldown", cooldowns, default.server_cooldown, f),
        cluster_cooldown: duration(s, "cluster_cooldown", cooldowns, default.cluster_cooldown, f),
        horizon: duration(s, "horizon", (SECOND, WEEK), default.horizon, f),
    };

    let is_read = |key, found: bool| found || s.key(key).is_none();
    let (above, below) = (balance.start_percent, balance.stop_percent);
    let both = is_read("start_percent", start.is_some()) && is_read("stop_percent", stop.is_some());
    if both && above < below {
        let place = |n: At<u32>| n.at;
        f.error(
            start.or(stop).map_or(s.at, place),
            format!("`start_percent` ({above}) is below `stop_percent` ({below})"),
            "raise it, or lower `stop_percent`",
        );
    }
    if is_read("mode", mode.is_some()) && balance.mode != BalanceMode::Off && is_blind(&balance) {
        f.error(
            s.key("network_percent").unwrap_or(s.at),
            "all weights in [balance] are 0: there is no load to even out",
            "raise one of them, or say mode = \"off\"",
        );
    }
    balance
}

fn duration(
    s: &Section<'_, '_>,
    key: &str,
    limits: (Duration, Duration),
    default: Duration,
    f: &mut Findings,
) -> Duration {
    s.duration(key, limits, f).map_or(default, |d| d.value)
}

/// Does nothing weigh anything?
fn is_blind(b: &Balance) -> bool {
    let weights = [b.network_percent, b.packets_percent, b.cpu_percent, b.memory_percent, b.storage_percent];
    weights == [0; 5]
}

/// Every key with its value, as it is written.
pub(super) fn values(balance: &Balance) -> Vec<(&'static str, String)> {
    let Balance {
        mode,
        half_life,
        start_percent,
        stop_percent,
        quiet_percent,
        at_once,
        server_cooldown,
        cluster_cooldown,
        horizon,
        packets_per_second,
        network_percent,
        packets_percent,
        cpu_percent,
        memory_percent,
        storage_percent,
    } = balance;
    let mode = match mode {
        BalanceMode::Off => "off",
        BalanceMode::Advise => "advise",
        BalanceMode::On => "on",
    };
    let time = |d: &Duration| humantime::format_duration(*d).to_string();
    vec![
        ("mode", mode.to_owned()),
        ("half_life", time(half_life)),
        ("start_percent", start_percent.to_string()),
        ("stop_percent", stop_percent.to_string()),
        ("quiet_percent", quiet_percent.to_string()),
        ("at_once", at_once.to_string()),
        ("server_cooldown", time(server_cooldown)),
        ("cluster_cooldown", time(cluster_cooldown)),
        ("horizon", time(horizon)),
        ("packets_per_second", packets_per_second.to_string()),
        ("network_percent", network_percent.to_string()),
        ("packets_percent", packets_percent.to_string()),
        ("cpu_percent", cpu_percent.to_string()),
        ("memory_percent", memory_percent.to_string()),
        ("storage_percent", storage_percent.to_string()),
    ]
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
