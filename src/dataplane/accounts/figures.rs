//! Figures as plain numbers: read from accounts, added up, and taken apart again for whoever shows them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::model::Protocol;

use super::super::observer::Carried;
use super::{BUCKETS, BackendAccount, Count, Fault, ServiceAccount};

/// What flows through one service port did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServiceFigures {
    pub(super) opened: u64,
    pub(super) ended: u64,
    pub(super) datagrams_to_backends: u64,
    pub(super) datagrams_to_clients: u64,
    pub(super) faults: [u64; Fault::ALL.len()],
    pub(super) backends: BTreeMap<SocketAddr, BackendFigures>,
    pub(super) of_former_backends: BackendFigures,
}

/// What flows to one backend did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BackendFigures {
    pub(super) flows: u64,
    pub(super) bytes_to_backend: u64,
    pub(super) bytes_to_client: u64,
    pub(super) failures: u64,
    pub(super) reached_within: [u64; BUCKETS.len() + 1],
    pub(super) reaching_us: u64,
}

impl ServiceFigures {
    pub(super) fn of(account: &ServiceAccount) -> Self {
        let backends = account.backends();
        let backends = backends
            .iter()
            .map(|(addr, backend)| (*addr, BackendFigures::of(backend)));
        Self {
            opened: account.opened.get(),
            ended: account.ended.get(),
            datagrams_to_backends: account.datagrams_to_backends.get(),
            datagrams_to_clients: account.datagrams_to_clients.get(),
            faults: account.faults.each_ref().map(Count::get),
            backends: backends.collect(),
            of_former_backends: BackendFigures::default(),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.ended += other.ended;
        self.datagrams_to_backends += other.datagrams_to_backends;
        self.datagrams_to_clients += other.datagrams_to_clients;
        add_each(&mut self.faults, &other.faults);
        for (addr, backend) in &other.backends {
            self.backends.entry(*addr).or_default().add(backend);
        }
        self.of_former_backends.add(&other.of_former_backends);
    }

    /// All backends together, those of the past included.
    pub(super) fn all_backends(&self) -> BackendFigures {
        let mut all = self.of_former_backends.clone();
        for backend in self.backends.values() {
            all.add(backend);
        }
        all
    }
}

impl BackendFigures {
    pub(super) fn of(account: &BackendAccount) -> Self {
        Self {
            flows: account.flows.get(),
            bytes_to_backend: account.bytes_to_backend.get(),
            bytes_to_client: account.bytes_to_client.get(),
            failures: account.failures.get(),
            reached_within: account.reached_within.each_ref().map(Count::get),
            reaching_us: account.reaching_us.get(),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.flows += other.flows;
        self.bytes_to_backend += other.bytes_to_backend;
        self.bytes_to_client += other.bytes_to_client;
        self.failures += other.failures;
        add_each(&mut self.reached_within, &other.reached_within);
        self.reaching_us += other.reaching_us;
    }

    /// The same for whoever looks from outside.
    pub(super) fn carried(&self) -> Carried {
        Carried {
            bytes_to_backend: self.bytes_to_backend,
            bytes_to_client: self.bytes_to_client,
            connect_p99: self.reached_within_99_of_100(),
        }
    }

    // Taken as evenly spread within their bucket, as Prometheus does. Of the last one only the lower end is known.
    fn reached_within_99_of_100(&self) -> Option<Duration> {
        let total: u64 = self.reached_within.iter().sum();
        let rank = (total * 99).div_ceil(100);
        let mut below = 0;
        let bucket = self.reached_within.iter().position(|n| {
            below += n;
            rank > 0 && below >= rank
        })?;
        let n = self.reached_within[bucket];
        let lower = bucket.checked_sub(1).map_or(0, |before| BUCKETS[before]);
        let width = BUCKETS.get(bucket).map_or(0, |upper| upper - lower);
        let into = rank - (below - n);
        Some(Duration::from_micros(lower + width * into / n))
    }
}

fn add_each<const N: usize>(to: &mut [u64; N], from: &[u64; N]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// The place of a protocol in a pair of totals.
pub(super) fn index(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
    }
}
