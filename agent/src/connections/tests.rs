use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use bytes::BytesMut;
use proptest::prelude::*;

use super::send::sum;
use super::*;
use crate::io::kernel::Ends;

fn end(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}

fn connection(client: &str) -> Ends {
    Ends { server: end("10.0.0.10:2049"), client: end(client) }
}

fn numbers(server: u32, client: u32) -> Numbers {
    Numbers { server, client }
}

/// Connections of clients 10.1.0.0 and up.
fn many(count: u32, silent: bool) -> Vec<Current> {
    let client = |n: u32| SocketAddr::new(IpAddr::from((0x0a01_0000 + n).to_be_bytes()), 700 + n as u16 % 7);
    let one = |n| Current {
        ends: Ends { server: end("10.0.0.10:2049"), client: client(n) },
        numbers: numbers(n, n + 1),
        silent,
    };
    (0..count).map(one).collect()
}

/// The store takes it over.
fn write(shared: &mut Shared, changes: Vec<Change>) -> usize {
    let count = changes.len();
    for Change { bucket, value } in changes {
        shared.set(bucket, value.map(|v| decode(&v).expect("what was encoded")).unwrap_or_default());
    }
    count
}

/// Writes until there is nothing left to write; how many buckets each time.
fn write_all(shared: &mut Shared, current: &[Current]) -> Vec<usize> {
    let mut counts = Vec::new();
    loop {
        let changes = shared.changes(current, true);
        if changes.is_empty() {
            return counts;
        }
        counts.push(write(shared, changes));
        assert!(counts.len() < 100, "{counts:?}");
    }
}

fn held(shared: &Shared) -> BTreeMap<Ends, Numbers> {
    shared.all().collect()
}

fn wanted(current: &[Current]) -> BTreeMap<Ends, Numbers> {
    current.iter().map(|c| (c.ends, c.numbers)).collect()
}

#[test]
fn what_comes_and_goes_is_written_and_nothing_else() {
    let mut shared = Shared::default();
    let mut current = many(3, false);
    assert_eq!(write_all(&mut shared, &current).len(), 1);
    assert_eq!(held(&shared), wanted(&current));
    assert_eq!(shared.changes(&current, true), []);

    let gone = current.remove(1);
    let changes = shared.changes(&current, false);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].bucket, bucket_of(&gone.ends.client));
    write(&mut shared, changes);
    assert_eq!(held(&shared), wanted(&current));

    let left = write_all(&mut shared, &[]);
    assert_eq!(left.len(), 1);
    assert_eq!(held(&shared), BTreeMap::new());
}

/// A bucket without connections is no key.
#[test]
fn an_empty_bucket_is_removed() {
    let mut shared = Shared::default();
    write_all(&mut shared, &many(1, false));
    let changes = shared.changes(&[], true);
    assert_eq!(changes.iter().map(|c| c.value.clone()).collect::<Vec<_>>(), [None]);
}

#[test]
fn numbers_of_a_busy_connection_are_not_written_and_those_of_a_silent_one_are_once() {
    let mut shared = Shared::default();
    let mut current = many(1, false);
    write_all(&mut shared, &current);
    current[0].numbers = numbers(1000, 2000);
    assert_eq!(shared.changes(&current, true), []);
    current[0].silent = true;
    assert_eq!(shared.changes(&current, false), [], "it is not their turn");
    assert_eq!(write_all(&mut shared, &current), [1]);
    assert_eq!(held(&shared), wanted(&current));
}

#[test]
fn each_write_is_bounded_and_in_the_end_all_is_written() {
    let mut shared = Shared::default();
    let mut current = many(10_000, true);
    assert_eq!(write_all(&mut shared, &current), [16; 4]);
    assert_eq!(held(&shared), wanted(&current));
    let bytes: usize = (0..BUCKETS)
        .map(|b| encode(&shared.all().filter(|(e, _)| bucket_of(&e.client) == b).collect()).len())
        .max()
        .expect("buckets");
    assert!(bytes < 4096, "a bucket of {bytes} bytes");
    current.iter_mut().for_each(|c| c.numbers.server += 1);
    assert_eq!(write_all(&mut shared, &current), [4; 16]);
    assert_eq!(held(&shared), wanted(&current));
}

/// Of many that change again and again, each has its turn.
#[test]
fn buckets_take_turns() {
    let mut shared = Shared::default();
    let mut current = many(10_000, true);
    write_all(&mut shared, &current);
    let mut written = std::collections::BTreeSet::new();
    for _ in 0..BUCKETS / 4 {
        current.iter_mut().for_each(|c| c.numbers.server += 1);
        let changes = shared.changes(&current, true);
        written.extend(changes.iter().map(|c| c.bucket));
        write(&mut shared, changes);
    }
    assert_eq!(written.len(), BUCKETS);
}

/// Another owner has left other connections, and perhaps another version wrote a bucket that there is none of.
#[test]
fn what_an_earlier_owner_shared_is_replaced() {
    let mut shared = Shared::default();
    write_all(&mut shared, &many(100, true));
    shared.set(BUCKETS, Bucket::from([(connection("10.9.9.9:1"), numbers(1, 1))]));
    let current = vec![Current { ends: connection("10.2.0.1:5"), numbers: numbers(3, 4), silent: false }];
    write_all(&mut shared, &current);
    assert_eq!(held(&shared), wanted(&current));
}

#[test]
fn clients_are_spread_evenly() {
    let mut counts = [0; BUCKETS];
    many(6400, true).iter().for_each(|c| counts[bucket_of(&c.ends.client)] += 1);
    assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
}

#[test]
fn a_bucket_is_written_so() {
    let six = Ends { server: end("[fd00::10]:445"), client: end("[fd00::1]:1") };
    let bucket = Bucket::from([
        (connection("10.0.0.1:258"), numbers(0x0102_0304, 0x0506_0708)),
        (connection("10.0.0.2:1"), numbers(1, 2)),
        (six, numbers(3, 4)),
    ]);
    let mut expected = vec![1, 4, 10, 0, 0, 10, 8, 1, 0, 2];
    expected.extend([10, 0, 0, 1, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8]);
    expected.extend([10, 0, 0, 2, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2]);
    expected.extend([6, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 1, 0xbd, 0, 1]);
    expected.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 3, 0, 0, 0, 4]);
    assert_eq!(encode(&bucket), expected);
    assert_eq!(decode(&expected), Some(bucket));
    for length in 0..expected.len() {
        // Cut between two groups it is a smaller bucket; anywhere else it is none.
        let whole = [1, 10 + 2 * 14].contains(&length);
        assert_eq!(decode(&expected[..length]).is_some(), whole, "{length}");
    }
    expected[0] = 2;
    assert_eq!(decode(&expected), None, "another version");
}

fn any_end(four: bool) -> impl Strategy<Value = SocketAddr> {
    (any::<u128>(), any::<u16>()).prop_map(move |(address, port)| match four {
        true => SocketAddr::new(IpAddr::from((address as u32).to_be_bytes()), port),
        false => SocketAddr::new(IpAddr::from(address.to_be_bytes()), port),
    })
}

fn any_connection() -> impl Strategy<Value = (Ends, Numbers)> {
    let ends = any::<bool>().prop_flat_map(|four| (any_end(four), any_end(four)));
    (ends, any::<u32>(), any::<u32>())
        .prop_map(|((server, client), s, c)| (Ends { server, client }, numbers(s, c)))
}

proptest! {
    #[test]
    fn every_bucket_is_read_as_it_was_written(all in proptest::collection::btree_map(any_end(true), any_connection(), 0..50)) {
        let bucket: Bucket = all.into_values().collect();
        prop_assert_eq!(decode(&encode(&bucket)), Some(bucket));
    }

    /// Whatever is in the store, reading it ends, and does no harm.
    #[test]
    fn any_bytes_are_a_bucket_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Some(bucket) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&bucket)), Some(bucket));
        }
    }

    /// Whatever the store holds, it comes to hold what there is.
    #[test]
    fn the_store_comes_to_hold_what_there_is(before in 0u32..300, after in 0u32..300, silent: bool) {
        let mut shared = Shared::default();
        write_all(&mut shared, &many(before, true));
        let current = many(after, silent);
        write_all(&mut shared, &current);
        prop_assert_eq!(held(&shared), wanted(&current));
    }
}

/// Sums to zero with its checksum in place (RFC 1071), over the pseudo-header and the segment.
fn is_sound(addresses: &[u8], segment: &[u8]) -> bool {
    let mut all = sum(addresses) + 6 + segment.len() as u32 + sum(segment);
    while all > 0xffff {
        all = (all & 0xffff) + (all >> 16);
    }
    all == 0xffff
}

#[test]
fn a_reset_has_the_number_that_the_client_expects_and_a_tickle_one_that_it_never_does() {
    let mut frame = BytesMut::new();
    packet(&mut frame, &connection("10.0.0.1:700"), numbers(0x0102_0304, 0x0506_0708), What::Reset);
    assert_eq!(frame.len(), 40);
    assert_eq!(frame[..4], [0x45, 0, 0, 40]);
    assert_eq!(frame[8..10], [64, 6]);
    assert_eq!(frame[12..20], [10, 0, 0, 10, 10, 0, 0, 1]);
    assert_eq!(frame[20..34], [8, 1, 2, 188, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x14]);
    assert!(is_sound(&frame[12..20], &frame[20..]));

    packet(&mut frame, &connection("10.0.0.1:700"), numbers(0x0102_0304, 0x0506_0708), What::Tickle);
    assert_eq!(frame[24..34], [0x81, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x10]);
    assert!(is_sound(&frame[12..20], &frame[20..]));

    let six = Ends { server: end("[fd00::10]:2049"), client: end("[fd00::1]:700") };
    packet(&mut frame, &six, numbers(1, 2), What::Reset);
    assert_eq!(frame.len(), 60);
    assert_eq!(frame[..8], [0x60, 0, 0, 0, 0, 20, 6, 64]);
    assert_eq!((frame[23], frame[39]), (0x10, 1));
    assert_eq!(frame[40..54], [8, 1, 2, 188, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x14]);
    assert!(is_sound(&frame[8..40], &frame[40..]));
}
