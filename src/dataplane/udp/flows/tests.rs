//! The flow table against examples and against a plain map of last times.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(60);

fn table() -> FlowTable<u8, u8> {
    FlowTable::new(TIMEOUT)
}

#[test]
fn a_flow_lives_as_long_as_either_side_speaks() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut flows = table();
    assert_eq!(flows.on_client_datagram(&1, at(0)), Action::Open);
    let id = flows.open(1, 7, at(0));
    assert_eq!(flows.on_client_datagram(&1, at(50)), Action::Forward(id));
    assert_eq!(flows.expire(at(60)), (vec![], Some(at(110))));
    assert_eq!(flows.on_backend_datagram(id, at(100)), Some((1, &mut 7)));
    assert_eq!(flows.expire(at(110)), (vec![], Some(at(160))));
    assert_eq!(flows.expire(at(160)), (vec![(1, 7)], None));
    assert_eq!(flows.on_client_datagram(&1, at(161)), Action::Open);
    assert_eq!(flows.on_backend_datagram(id, at(161)), None);
}

#[test]
fn a_later_flow_in_the_same_place_is_not_taken_for_the_earlier_one() {
    let now = Instant::now();
    let mut flows = table();
    let first = flows.open(1, 1, now);
    assert_eq!(flows.close(first), Some((1, 1)));
    assert_eq!(flows.close(first), None);
    let second = flows.open(2, 2, now);
    assert_eq!(flows.session(first), None);
    assert_eq!(flows.session(second), Some(&mut 2));
}

#[test]
fn eviction_takes_the_oldest_and_spares_the_active() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut flows = table();
    flows.open(1, 1, at(0));
    flows.open(2, 2, at(1));
    flows.on_client_datagram(&1, at(2));
    let idle = Duration::from_secs(5);
    assert_eq!(flows.evict(at(5), idle), None, "idle for 4 s only");
    assert_eq!(flows.evict(at(6), idle), Some((2, 2)));
    assert_eq!(flows.evict(at(7), idle), Some((1, 1)));
    assert_eq!(flows.evict(at(7), idle), None, "empty");
}

#[test]
fn churn_in_one_place_does_not_grow_the_queue() {
    let now = Instant::now();
    let mut flows = table();
    for _ in 0..1000 {
        let id = flows.open(1, 1, now);
        flows.close(id);
    }
    assert_eq!(flows.deadlines.len(), 1);
    assert_eq!(flows.places.len(), 1);
}

#[test]
fn a_new_timeout_holds_for_open_flows() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut flows = table();
    flows.open(1, 1, at(0));
    flows.set_idle_timeout(Duration::from_secs(5));
    assert_eq!(flows.expire(at(5)), (vec![(1, 1)], None));
}

#[derive(Clone, Debug)]
enum Step {
    Client(u8),
    Backend(u8),
    Close(u8),
    CloseOdd,
    Evict(u64),
    Expire,
    Wait(u64),
    Timeout(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..6u8;
    prop_oneof![
        4 => key.clone().prop_map(Step::Client),
        2 => key.clone().prop_map(Step::Backend),
        1 => key.prop_map(Step::Close),
        1 => Just(Step::CloseOdd),
        1 => (0..40u64).prop_map(Step::Evict),
        3 => Just(Step::Expire),
        4 => (0..40u64).prop_map(Step::Wait),
        1 => (10..90u64).prop_map(Step::Timeout),
    ]
}

proptest! {
    // The model: when each key last spoke.
    #[test]
    fn it_agrees_with_a_plain_map_of_last_times(steps in prop::collection::vec(step(), 1..200)) {
        let start = Instant::now();
        let (mut now, mut timeout) = (start, TIMEOUT);
        let mut flows = table();
        let mut model: BTreeMap<u8, (Instant, FlowId)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Client(key) => match (flows.on_client_datagram(&key, now), model.get_mut(&key)) {
                    (Action::Forward(id), Some((last, known))) => {
                        prop_assert_eq!(id, *known);
                        *last = now;
                    }
                    (Action::Open, None) => {
                        model.insert(key, (now, flows.open(key, key, now)));
                    }
                    (action, known) => prop_assert!(false, "{action:?} but {known:?}"),
                },
                Step::Backend(key) => if let Some((last, id)) = model.get_mut(&key) {
                    prop_assert_eq!(flows.on_backend_datagram(*id, now), Some((key, &mut { key })));
                    *last = now;
                },
                Step::Close(key) => if let Some((_, id)) = model.remove(&key) {
                    prop_assert_eq!(flows.close(id), Some((key, key)));
                    prop_assert_eq!(flows.session(id), None);
                },
                Step::CloseOdd => {
                    let closed: BTreeSet<u8> = flows.close_where(|key| key % 2 == 1).into_iter().map(|(key, _)| key).collect();
                    let expected: BTreeSet<u8> = model.keys().copied().filter(|key| key % 2 == 1).collect();
                    prop_assert_eq!(&closed, &expected);
                    model.retain(|key, _| !closed.contains(key));
                }
                Step::Evict(idle) => {
                    let idle = Duration::from_secs(idle);
                    let oldest = model.values().map(|(last, _)| *last).min();
                    match flows.evict(now, idle) {
                        Some((key, _)) => {
                            let (last, _) = model.remove(&key).unwrap();
                            prop_assert_eq!(Some(last), oldest);
                            prop_assert!(last + idle <= now);
                        }
                        // Fewer places than looks: it always finds the oldest.
                        None => prop_assert!(oldest.is_none_or(|last| last + idle > now)),
                    }
                }
                Step::Expire => {
                    let (expired, next) = flows.expire(now);
                    let expired: BTreeSet<u8> = expired.into_iter().map(|(key, _)| key).collect();
                    let expected: BTreeSet<u8> = model.iter().filter(|(_, (last, _))| *last + timeout <= now).map(|(key, _)| *key).collect();
                    prop_assert_eq!(&expired, &expected);
                    model.retain(|key, _| !expired.contains(key));
                    let due = model.values().map(|(last, _)| *last + timeout).min();
                    prop_assert!(due.is_none_or(|due| next.is_some_and(|next| next > now && next <= due)));
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
                Step::Timeout(seconds) => {
                    timeout = Duration::from_secs(seconds);
                    flows.set_idle_timeout(timeout);
                }
            }
            prop_assert_eq!(flows.len(), model.len());
            prop_assert!(flows.deadlines.len() <= flows.places.len());
        }
    }
}
