//! Segments, paths and targets as published.

use super::survey::{Hearing, Look};
use crate::machine::Machine;
use crate::{IfIndex, PathSample, PathView, SegmentView, TargetSample, TargetView, Watcher};

impl Machine {
    pub(in crate::machine) fn segment_views(&self) -> Vec<SegmentView> {
        let finding = |name: &str| self.watch.segments.get(name).map(|k| k.finding).unwrap_or_default();
        self.segments().into_iter().map(|name| SegmentView { finding: finding(&name), name }).collect()
    }

    /// Every path of the last reading, as of then.
    pub(in crate::machine) fn path_views(&self) -> Vec<PathView> {
        let Some(look) = self.last_look() else { return Vec::new() };
        look.reading.paths.iter().filter_map(|s| self.path_view(&look, s)).collect()
    }

    fn path_view(&self, look: &Look, s: &PathSample) -> Option<PathView> {
        let (segment, from) = self.segment_and_name(s.from)?;
        let (_, to) = self.segment_and_name(s.to)?;
        Some(PathView {
            segment,
            from,
            to,
            heard: match look.path(s) {
                Hearing::Heard => Some(true),
                Hearing::Silent => Some(false),
                Hearing::Doubtful => s.heard.map(|_| true), // not found silent yet
            },
            heard_ms: s.heard.map(|at| look.now.since(at).as_millis() as u64),
            loss: self.watch.losses.share(s),
            rtt_us: s.rtt.map(|rtt| rtt.as_nanos() as f64 / 1e3),
            echo: echo(s),
            timer: if s.timed { Watcher::Kernel } else { Watcher::Agent },
        })
    }

    /// Every target of the last reading at every port, as of then.
    pub(in crate::machine) fn target_views(&self) -> Vec<TargetView> {
        let Some(look) = self.last_look() else { return Vec::new() };
        look.reading.targets.iter().filter_map(|t| self.target_view(&look, t)).collect()
    }

    fn target_view(&self, look: &Look, t: &TargetSample) -> Option<TargetView> {
        let (segment, port) = self.segment_and_name(t.port)?;
        let answers = t.answered.map(|_| !look.is_missing(t));
        Some(TargetView { segment, port, target: t.target, answers })
    }

    fn segment_and_name(&self, ifindex: IfIndex) -> Option<(String, String)> {
        let port = &self.ports[self.port_of(ifindex)?];
        Some((port.segment.clone(), port.interface.clone()))
    }
}

/// Whose echo a path has. Where the kernel's doesn't come (an adapter without XDP_TX), the agent's own probes bring the
/// other end's time back, and so there is a round trip all the same.
fn echo(s: &PathSample) -> Option<Watcher> {
    match (s.echoes, s.rtt) {
        (1.., _) => Some(Watcher::Kernel),
        (0, Some(_)) => Some(Watcher::Agent),
        (0, None) => None,
    }
}
