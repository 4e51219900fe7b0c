//! What a verdict was drawn from, for people. Built only when there is an event to tell.

use super::loss::error_shares;
use super::survey::{Hearing, Look};
use crate::machine::Machine;
use crate::{Evidence, LinkErrors, PathSample};

impl Machine {
    /// What all paths and targets of a segment show; with the lost shares, if wanted.
    pub(super) fn evidence(&self, segment: &str, look: &Look, losses: bool) -> Evidence {
        let survey = self.survey(segment, look);
        let mut evidence = Evidence::default();
        for s in look.reading.paths.iter().filter(|s| survey.ends(s).is_some()) {
            let path = self.path_name(s);
            match look.path(s) {
                Hearing::Heard => evidence.heard.push(path.clone()),
                Hearing::Silent => evidence.silent.push(match s.heard {
                    Some(at) => format!("{path} {} ms", look.now.since(at).as_millis()),
                    None => format!("{path} never"),
                }),
                Hearing::Doubtful => {}
            }
            if let Some(share) = self.watch.losses.share(s).filter(|_| losses) {
                evidence.loss.push(format!("{path} {:.1} %", share * 100.0));
            }
        }
        for t in look.reading.targets.iter().filter(|t| survey.seat(t.port).is_some()) {
            let pair = format!("{} {}", self.interface(t.port), t.target);
            if look.answers(t) {
                evidence.answered.push(pair);
            } else if t.answered.is_some() {
                evidence.unanswered.push(pair);
            }
        }
        let received = |s: &&super::survey::Seat| s.received;
        evidence.unicast = survey.seats.iter().filter(received).map(|s| self.interface(s.ifindex)).collect();
        evidence
    }

    /// What a port's error counters show.
    pub(in crate::machine) fn error_evidence(&self, p: usize, errors: &LinkErrors) -> Evidence {
        let interface = &self.ports[p].interface;
        let told = ["receive", "transmit"].into_iter().zip(error_shares(errors)).filter(|(_, s)| *s > 0.0);
        let loss =
            told.map(|(way, share)| format!("{interface} {way} errors {:.1} %", share * 100.0)).collect();
        Evidence { loss, ..Evidence::default() }
    }

    /// What makes a port worse than good at the end of its hold-down, as of the last reading and sample.
    pub(in crate::machine) fn last_evidence(&self, p: usize) -> Evidence {
        let port = &self.ports[p];
        match (port.lossy, self.last_look(), &port.errors) {
            (true, Some(look), _) => self.evidence(&port.segment, &look, true),
            (_, _, Some(errors)) => self.error_evidence(p, errors),
            _ => Evidence::default(),
        }
    }

    fn path_name(&self, s: &PathSample) -> String {
        format!("{}>{}", self.interface(s.from), self.interface(s.to))
    }
}
