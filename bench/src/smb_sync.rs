//! What it costs SMB clients that what they were told is written is stable: the same server shares the same file system a second
//! time, without `sync always`, and files are copied to both shares in turn.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::files::{self, FileCluster, MOUNT, UNFENCED};
use baton_lab::{Host, Way};

use crate::report::Row;

/// Options of `smb-sync`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How often it is measured.
    #[arg(long, default_value_t = 21)]
    runs: u32,
    /// Write the rows to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Of each file.
const BYTES: usize = 8 << 20;
/// Where the client has it.
const SOURCE: &str = "/run/lab/source";
/// What Samba does, and the share where it does that. The first is what Baton has it do.
const SHARES: [(&str, &str); 2] = [("sync always", "files"), ("sync when asked", "plain")];

/// A file that Samba reads. Removed also after a panic.
struct Include(PathBuf);

impl Include {
    fn new() -> Result<Include> {
        let include =
            Include(std::env::temp_dir().join(format!("baton-smb-sync-{}.conf", std::process::id())));
        let share = format!(
            "[plain]\npath = {MOUNT}\nread only = no\nguest ok = yes\nforce user = root\nsync always = no\n"
        );
        fs::write(&include.0, share).with_context(|| format!("write {}", include.0.display()))?;
        Ok(include)
    }
}

impl Drop for Include {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// Runs the benchmark.
pub fn main(arguments: &Arguments) -> Result<()> {
    let include = Include::new()?;
    let files =
        FileCluster::start("smb-sync", files::smb_spec(UNFENCED, &format!("include = {:?}\n", include.0)))?;
    let (owner, client) = (files.owner()?, files.client()?);
    client.enter(|| {
        fs::create_dir_all("/run/lab")?;
        fs::write(SOURCE, vec![7; BYTES])
    })??;
    let mut rows = Vec::new();
    let slow = Duration::from_millis(1);
    for (disk, way) in [("disk in memory", Way::Well), ("disk that takes 1 ms", Way::Slow(slow))] {
        files.disks.lun.set(&owner, way)?;
        let mut rates = [(); 2].map(|()| Vec::new());
        for run in 0..=arguments.runs {
            for ((_, share), rates) in SHARES.iter().zip(&mut rates) {
                let rate = put(client, share)?;
                // The first one makes the file.
                if run > 0 {
                    rates.push(rate);
                }
            }
        }
        for ((system, _), rates) in SHARES.iter().zip(&mut rates) {
            rows.push(Row::of("smb-sync", system, disk, "write_rate", "MB/s", rates));
        }
    }
    println!("smbclient writes files of {} MiB in blocks of 64 KiB (SMB 2.02)\n", BYTES >> 20);
    println!("{:<22} {:<16} {:>8} {:>8} {:>8}  MB/s", "disk", "Samba", "min", "p50", "max");
    for both in rows.chunks(2) {
        for row in both {
            println!(
                "{:<22} {:<16} {:>8.1} {:>8.1} {:>8.1}",
                row.scenario, row.system, row.min, row.p50, row.max
            );
        }
        if let [always, asked] = both {
            println!("{:<22} ratio of the medians: {:.2}", "", always.p50 / asked.p50);
        }
    }
    if let Some(path) = &arguments.json {
        let file = fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
        serde_json::to_writer_pretty(file, &rows).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Copies the file to a share; says how fast that was, in MB/s, as smbclient has measured it.
fn put(client: &Host, share: &str) -> Result<f64> {
    let service = format!("//{}/{share}", files::ADDRESS);
    let command = format!("put {SOURCE} {share}");
    let arguments =
        ["-s", "/dev/null", "-m", "SMB2_02", "-t", "60", "-U", "guest%", &service, "-c", &command];
    let done = client.run("smbclient", arguments)?;
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // It exits with status 0 also when it has failed.
    ensure!(!said.contains("NT_STATUS"), "smbclient: {said}");
    rate(&said).with_context(|| format!("smbclient: {said}"))
}

/// `putting file a as \b (1234.5 kb/s) (average 1234.5 kb/s)`, where kb are 1024 bytes.
fn rate(said: &str) -> Option<f64> {
    let (_, rest) = said.split_once("putting file")?.1.split_once('(')?;
    let (rate, _) = rest.split_once(" kb/s")?;
    Some(rate.trim().parse::<f64>().ok()? * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read() {
        let said = "putting file /run/lab/source as \\plain (102400.0 kb/s) (average 99.0 kb/s)\n";
        assert_eq!(rate(said), Some(104.8576));
        assert_eq!(rate("tree connect failed"), None);
        assert_eq!(rate("putting file a as \\b (inf kb"), None);
    }
}
