//! What no plan can come below.

use super::problem::NOWHERE;
use super::state::State;

/// Of more kinds of virtual servers than this, each is looked at by itself only.
const KINDS: usize = 128;

/// The least that the highest load can be, wherever those that may move are put: the greatest of
/// what stays where it is; the fractional optimum (load split at will over the nodes that may have it); the largest single one on
/// the largest node that may have it.
pub(super) fn lower_bound(state: &State) -> f64 {
    let problem = state.problem;
    let nodes = problem.nodes.len() as u32;
    let mut fixed = vec![0.0; nodes as usize];
    let mut kinds = vec![(0.0f64, 0.0f64); problem.classes.len()];
    for (server, &at) in state.at.iter().enumerate() {
        if at == NOWHERE {
            continue;
        }
        let load = problem.load[server];
        let number = server as u32;
        if problem.is_pinned(number) || !state.takes(at) || !problem.is_able(number, at) {
            fixed[at as usize] += load;
        } else {
            let kind = &mut kinds[problem.class[server] as usize];
            *kind = (kind.0 + load, kind.1.max(load));
        }
    }
    let stays = (0..nodes as usize).map(|n| fixed[n] / problem.capacity[n]).fold(0.0, f64::max);
    let kinds: Vec<(usize, f64, f64)> = kinds
        .into_iter()
        .enumerate()
        .filter(|(_, (sum, _))| *sum > 0.0)
        .map(|(kind, (sum, largest))| (kind, sum, largest))
        .collect();
    let many = kinds.len() > KINDS;
    let mut bound: f64 = stays;
    for &(kind, own, _) in &kinds {
        let able = &problem.classes[kind];
        let within = |other: &(usize, f64, f64)| problem.classes[other.0].is_within(able);
        let sum = if many { own } else { kinds.iter().filter(|k| within(k)).map(|k| k.1).sum() };
        let bins = (0..nodes).filter(|n| state.takes(*n) && able.has(*n));
        bound = bound.max(water_level(bins.map(|n| (fixed[n as usize], problem.capacity[n as usize])), sum));
    }
    for &(kind, _, largest) in &kinds {
        let able = &problem.classes[kind];
        let roomiest = (0..nodes).filter(|n| state.takes(*n) && able.has(*n));
        let capacity = roomiest.map(|n| problem.capacity[n as usize]).fold(0.0, f64::max);
        if capacity > 0.0 {
            bound = bound.max(largest / capacity);
        }
    }
    // All kinds together over all nodes.
    let all: f64 = kinds.iter().map(|k| k.1).sum();
    let bins = (0..nodes).filter(|n| state.takes(*n));
    bound.max(water_level(bins.map(|n| (fixed[n as usize], problem.capacity[n as usize])), all))
}

/// How high `sum` stands when poured into bins with so much in them already, of such capacity; 0 without bins.
fn water_level(bins: impl Iterator<Item = (f64, f64)>, sum: f64) -> f64 {
    let mut bins: Vec<(f64, f64)> = bins.collect();
    bins.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    let (mut load, mut capacity, mut level) = (sum, 0.0, 0.0);
    for (fixed, own) in bins {
        if capacity > 0.0 && level <= fixed / own {
            break;
        }
        load += fixed;
        capacity += own;
        level = load / capacity;
    }
    level
}

#[cfg(test)]
mod tests {
    use super::water_level;

    #[test]
    fn water_finds_its_level() {
        let level = |bins: &[(f64, f64)], sum| water_level(bins.iter().copied(), sum);
        assert_eq!(level(&[], 3.0), 0.0);
        assert_eq!(level(&[(0.0, 1.0), (0.0, 2.0)], 3.0), 1.0);
        assert_eq!(level(&[(9.0, 1.0), (1.0, 1.0), (2.0, 1.0)], 3.0), 3.0);
    }
}
