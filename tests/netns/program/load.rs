//! New connections at a steady rate while backends are replaced or dead: none may fail.
//!
//! Small in the suite. At full size by hand: `VIADUCT_LOAD=1000x20 cargo test --test netns load` (connections a second,
//! seconds at least); the figures are printed.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::node::{Node, SERVICE};
use super::pods::{Pod, State, greet, slice};
use crate::rig::runtime;
use crate::world::{Place, QUIET, World, eventually, patience};

/// The Pods of the Service.
struct Pods {
    runtime: Runtime,
    pods: Vec<Pod>,
    started: u8,
}

impl Pods {
    /// So many of them, served by the node.
    fn start(node: &mut Node, n: u8) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut pods = Self {
            runtime,
            pods: Vec::new(),
            started: 0,
        };
        for _ in 0..n {
            pods.start_one(node);
        }
        pods.publish(node, &[]);
        node.start();
        await_answer(node, |_| true);
        pods
    }

    fn start_one(&mut self, node: &Node) -> IpAddr {
        let pod = Pod::start(&node.world, &self.runtime, 100 + self.started);
        self.started += 1;
        let ip = pod.ip;
        self.pods.push(pod);
        ip
    }

    /// Says that all Pods are ready, and what of `others`.
    fn publish(&self, node: &Node, others: &[(IpAddr, State)]) {
        let ready = self.pods.iter().map(|pod| (pod.ip, State::Ready));
        let endpoints: Vec<_> = ready.chain(others.iter().copied()).collect();
        let service = format!(
            "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  clusterIP: '{}'
  ports: [{{name: t, port: 80, protocol: TCP}}]
",
            SERVICE[0]
        );
        node.apply_text(&(service + &slice(&endpoints)));
    }

    /// Terminating, gone, new: one after the other. Returns the new ones.
    fn replace_all(&mut self, node: &Node) -> Vec<IpAddr> {
        let replaced = (0..self.pods.len()).map(|_| {
            let old = self.pods.remove(0);
            self.publish(node, &[(old.ip, State::Terminating)]);
            old.retire(&node.world, &self.runtime);
            self.publish(node, &[]);
            let new = self.start_one(node);
            self.publish(node, &[]);
            new
        });
        let new: Vec<IpAddr> = replaced.collect();
        for ip in &new {
            await_answer(node, |pod| pod == ip.to_string());
        }
        new
    }
}

pub(super) fn a_rolling_update_fails_no_connection(mut node: Node) {
    let mut pods = Pods::start(&mut node, 5);
    let (outcomes, new) = under_load(
        &node.world,
        &[Place::Outside],
        |_| greet(address()),
        || pods.replace_all(&node),
    );
    assert_eq!(outcomes.failed, BTreeMap::new());
    // The load may end before the last one gets its share.
    let serves = |ip: &IpAddr| outcomes.served_by.contains_key(&ip.to_string());
    assert!(new[..4].iter().all(serves), "{:?}", outcomes.served_by);
}

pub(super) fn a_dead_backend_is_not_noticed(mut node: Node) {
    let pods = Pods::start(&mut node, 3);
    pods.pods[1].deafen(&node.world);
    let (outcomes, ()) = under_load(&node.world, &[Place::Outside], |_| greet(address()), || ());
    assert_eq!(outcomes.failed, BTreeMap::new());
    // One timeout of 250 ms, never the second one of 500 ms.
    let p99 = outcomes.per_mille(990);
    assert!(p99 < Duration::from_millis(700), "{p99:?}");
}

// Changes of rules: a few in the suite.
pub(super) fn changes() -> u32 {
    let given = std::env::var("VIADUCT_CHANGES").ok();
    given.map_or(30, |given| given.parse().unwrap())
}

/// Connections that were made, by outcome.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    pub(super) served_by: BTreeMap<String, usize>,
    pub(super) failed: BTreeMap<String, usize>,
    /// Sorted once all are there.
    until_answer: Vec<Duration>,
}

impl Outcomes {
    fn add(&mut self, (outcome, took): (io::Result<String>, Duration)) {
        match outcome {
            Ok(pod) => {
                *self.served_by.entry(pod).or_default() += 1;
                self.until_answer.push(took);
            }
            Err(error) => *self.failed.entry(error.to_string()).or_default() += 1,
        }
    }

    fn join(&mut self, other: Self) {
        for (pod, served) in other.served_by {
            *self.served_by.entry(pod).or_default() += served;
        }
        for (error, failed) in other.failed {
            *self.failed.entry(error).or_default() += failed;
        }
        self.until_answer.extend(other.until_answer);
        self.until_answer.sort_unstable();
    }

    /// The time until the answer that so many of 1,000 connections do not exceed.
    fn per_mille(&self, n: usize) -> Duration {
        self.until_answer[(self.until_answer.len() - 1) * n / 1000]
    }
}

/// Has everybody in `places` call until `during` is over, and for the given time at least; together they keep the given
/// rate. `call` makes the call of that number.
pub(super) fn under_load<T, F: Future<Output = io::Result<String>> + Send + 'static>(
    world: &World,
    places: &[Place],
    call: fn(usize) -> F,
    during: impl FnOnce() -> T,
) -> (Outcomes, T) {
    let (rate, seconds) = size();
    let over = AtomicBool::new(false);
    let share = rate / u32::try_from(places.len()).unwrap();
    thread::scope(|scope| {
        let from = |place: &Place| {
            let (place, over) = (*place, &over);
            // Past 14,000 ports that wait after their end, the client's own search for a free one takes longer than any dial.
            let reuse = "echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse";
            world.shell(place, reuse);
            let work = move || runtime().block_on(keep_calling(share, seconds, over, call));
            scope.spawn(move || world.in_ns(place, work))
        };
        let loads: Vec<_> = places.iter().map(from).collect();
        let done = {
            // Even if it panics: the load must end.
            let _ends = Ends(&over);
            during()
        };
        let mut outcomes = Outcomes::default();
        for load in loads {
            outcomes.join(load.join().unwrap());
        }
        println!(
            "{} served at {rate}/s, {:?} failed, answered after {:?} (median), {:?} (p99), {:?} (all)",
            outcomes.until_answer.len(),
            outcomes.failed,
            outcomes.per_mille(500),
            outcomes.per_mille(990),
            outcomes.per_mille(1000),
        );
        (outcomes, done)
    })
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn keep_calling<F: Future<Output = io::Result<String>> + Send + 'static>(
    rate: u32,
    seconds: u64,
    over: &AtomicBool,
    call: fn(usize) -> F,
) -> Outcomes {
    let begun = Instant::now();
    let mut ticks = interval(Duration::from_secs(1) / rate);
    // Late ticks are made up for: what is slow here must not lighten the load.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut calls = JoinSet::new();
    let mut outcomes = Outcomes::default();
    let mut number = 0;
    while !over.load(Ordering::Relaxed) || begun.elapsed() < Duration::from_secs(seconds) {
        let due = ticks.tick().await;
        let call = call(number);
        number += 1;
        calls.spawn(async move {
            let answer = timeout(patience(), call).await;
            let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            (answer, due.elapsed())
        });
        while let Some(done) = calls.try_join_next() {
            outcomes.add(done.unwrap());
        }
    }
    while let Some(done) = calls.join_next().await {
        outcomes.add(done.unwrap());
    }
    outcomes
}

fn address() -> SocketAddr {
    SocketAddr::new(SERVICE[0].parse().unwrap(), 80)
}

/// Connections a second, and seconds.
fn size() -> (u32, u64) {
    let given = std::env::var("VIADUCT_LOAD").ok();
    given.map_or((200, 2), |given| {
        let (rate, seconds) = given.split_once('x').unwrap();
        (rate.parse().unwrap(), seconds.parse().unwrap())
    })
}

// Waits until somebody answers whom `wanted` accepts.
fn await_answer(node: &Node, wanted: impl Fn(&str) -> bool) {
    let ask = || runtime().block_on(async { timeout(QUIET, greet(address())).await });
    eventually(|| match node.world.in_ns(Place::Outside, ask) {
        Ok(Ok(pod)) if wanted(&pod) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
