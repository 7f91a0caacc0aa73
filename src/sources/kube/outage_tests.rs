//! An hour without an API server, on a clock of its own: how often a thousand nodes ask, how old they say their state
//! is, and how soon they are back.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::control::Kind;

use super::Patience;
use super::backoff::Backoff;
use super::contact::{Contact, Turn};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

/// What one kind of one node did.
struct Follower {
    backoff: Backoff,
    tries: Vec<Instant>,
}

/// Every try of every kind of so many nodes, from the moment at which the server goes until each of them has been heard
/// again. They all notice at once.
fn outage(nodes: usize, start: Instant) -> (Vec<Follower>, Vec<Contact>) {
    let (patience, mut random) = (Patience::default(), StdRng::seed_from_u64(8));
    let follower = || Follower {
        backoff: Backoff::new(patience.first_retry, patience.last_retry),
        tries: Vec::new(),
    };
    let contacts: Vec<Contact> = (0..nodes).map(|_| Contact::default()).collect();
    let mut followers: Vec<Follower> = (0..nodes * KINDS.len()).map(|_| follower()).collect();
    let mut next: BinaryHeap<_> = (0..followers.len())
        .map(|who| Reverse((start, who)))
        .collect();
    while let Some(Reverse((now, who))) = next.pop() {
        let (contact, kind) = (&contacts[who / KINDS.len()], KINDS[who % KINDS.len()]);
        followers[who].tries.push(now);
        if now >= start + HOUR {
            contact.heard(kind, now);
            continue;
        }
        contact.lost(kind, now, "refused");
        let told = contact.out_of_touch(now).unwrap();
        assert_eq!(
            told.age,
            now - start,
            "as old as the loss, not as the last try"
        );
        let wait = followers[who].backoff.failed(now, random.random());
        next.push(Reverse((now + wait, who)));
    }
    (followers, contacts)
}

#[test]
fn tries_are_few_and_go_on_to_the_end() {
    let start = Instant::now();
    let (followers, contacts) = outage(1, start);
    for follower in &followers {
        let n = follower.tries.len();
        // One every 15 to 30 seconds, and those of the first half minute.
        assert!((120..=250).contains(&n), "{n} tries");
        let last = *follower.tries.last().unwrap();
        assert!(last - (start + HOUR) <= Patience::default().last_retry);
        let late = follower
            .tries
            .windows(2)
            .filter(|two| two[0] > start + 60 * SECOND);
        for two in late {
            let wait = two[1] - two[0];
            assert!((15 * SECOND..=30 * SECOND).contains(&wait), "{wait:?}");
        }
    }
    let back = start + HOUR + Patience::default().last_retry;
    assert_eq!(contacts[0].out_of_touch(back), None);
    let again = contacts[0].lost(Kind::Node, back + SECOND, "refused");
    assert_eq!(again, Turn::Lost, "it is news again");
}

#[test]
fn a_cluster_does_not_come_back_all_at_once() {
    let (nodes, start) = (1000, Instant::now());
    let (followers, _) = outage(nodes, start);
    let mut by_second = vec![0; 3700];
    for at in followers.iter().flat_map(|follower| &follower.tries) {
        by_second[usize::try_from((*at - start).as_secs()).unwrap()] += 1;
    }
    // 3,000 followers that wait 22.5 s each make 133 tries a second.
    let busiest = by_second[600..].iter().max().unwrap();
    assert!(*busiest < 2 * 133, "{busiest} tries in one second");
    let total: usize = by_second[600..3600].iter().sum();
    let mean = total / 3000;
    assert!((120..147).contains(&mean), "{mean} tries a second");
}
