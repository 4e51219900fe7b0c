//! How addresses are spread over ports, by weight. Pure functions; ties go to the first port and the first address.

/// A port to put something on, and what it carries already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bin {
    /// The caller's name for the port.
    pub port: usize,
    /// Sum of the weights on it.
    pub load: u64,
}

/// Gives every item a port: heaviest first, each to the port that then carries least
/// (longest processing time first, Graham 1969: at most 4/3 of the optimum). `bins` must not be empty.
pub(crate) fn assign<T: Copy + Ord>(items: &[(T, u64)], bins: &mut [Bin]) -> Vec<(T, usize)> {
    let mut order: Vec<(T, u64)> = items.to_vec();
    order.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut out = Vec::with_capacity(order.len());
    for (item, weight) in order {
        if let Some(bin) = bins.iter_mut().min_by_key(|b| b.load) {
            bin.load += weight;
            out.push((item, bin.port));
        }
    }
    out
}

/// The moves that even out `bins`, few and never back and forth: as long as it lowers the higher of the two, an item
/// goes from the fullest port to the emptiest. `items` are (item, weight, its port now). Stops when the two are
/// within a twentieth of the mean load of each other.
pub(crate) fn even_out<T: Copy + Ord>(items: &[(T, u64, usize)], bins: &mut [Bin]) -> Vec<(T, usize)> {
    let mut items: Vec<(T, u64, usize, usize)> = items.iter().map(|&(t, w, p)| (t, w, p, p)).collect();
    items.sort_by_key(|&(t, ..)| t);
    let total: u64 = bins.iter().map(|b| b.load).sum();
    let near = total / (20 * bins.len().max(1) as u64);
    for _ in 0..items.len() {
        let (Some(high), Some(low)) = (fullest(bins), emptiest(bins)) else { break };
        let gap = bins[high].load - bins[low].load;
        if gap <= near {
            break;
        }
        // The item whose weight is nearest to half the gap evens them out best; one as heavy as the gap does nothing.
        let (from, to) = (bins[high].port, bins[low].port);
        let best = items
            .iter_mut()
            .filter(|i| i.2 == from && i.1 < gap)
            .min_by_key(|i| (i.1.abs_diff(gap / 2), i.3 != to));
        let Some(item) = best else { break };
        item.2 = to;
        bins[high].load -= item.1;
        bins[low].load += item.1;
    }
    items.into_iter().filter(|i| i.2 != i.3).map(|i| (i.0, i.2)).collect()
}

fn fullest(bins: &[Bin]) -> Option<usize> {
    (0..bins.len()).rev().max_by_key(|&i| bins[i].load)
}

fn emptiest(bins: &[Bin]) -> Option<usize> {
    (0..bins.len()).min_by_key(|&i| bins[i].load)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bins(loads: &[u64]) -> Vec<Bin> {
        loads.iter().enumerate().map(|(port, &load)| Bin { port, load }).collect()
    }

    #[test]
    fn heaviest_goes_to_the_emptiest_port() {
        let mut b = bins(&[10, 0]);
        assert_eq!(assign(&[('a', 5), ('b', 9), ('c', 5)], &mut b), [('b', 1), ('a', 1), ('c', 0)]);
        assert_eq!(b, bins(&[15, 14]));
    }

    #[test]
    fn idle_addresses_are_spread_by_count() {
        let items: Vec<_> = (0..9).map(|i| (i, 1)).collect();
        let mut b = bins(&[0, 0, 0]);
        assign(&items, &mut b);
        assert_eq!(b, bins(&[3, 3, 3]));
    }

    #[test]
    fn a_returned_port_takes_its_share_and_no_more() {
        let items: Vec<_> = (0..9).map(|i| (i, 1, i % 2)).collect();
        let mut b = bins(&[5, 4, 0]);
        let moves = even_out(&items, &mut b);
        assert_eq!(b, bins(&[3, 3, 3]));
        assert_eq!(moves.len(), 3);
        assert!(moves.iter().all(|m| m.1 == 2));
    }

    #[test]
    fn one_hot_address_is_not_tossed_around() {
        let mut b = bins(&[1000, 0]);
        assert_eq!(even_out(&[('a', 1000, 0)], &mut b), []);
    }

    #[test]
    fn near_enough_is_left_alone() {
        let mut b = bins(&[1000, 990]);
        assert_eq!(even_out(&[('a', 5, 0), ('b', 995, 0), ('c', 990, 1)], &mut b), []);
    }
}
