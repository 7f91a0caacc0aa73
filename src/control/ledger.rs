//! Who holds which cluster IP and node port, and the allocation of them for one write of a Service.
//!
//! A write claims into a `Draft`; a rejected one gives every claim back, an accepted one releases what the Service no
//! longer uses. Source: `alloc.go` of the API server; the choices of spec 4.1 differ from it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServiceSpec;
use rand::rngs::StdRng;

use super::addresses::{AddressError, AddressPool};
use super::allocations::SavedService;
use super::families::keeps_preferred_families;
use super::node_ports::{PortError, PortPool};
use super::object::ObjectKey;
use super::predicates::{
    allocates_node_ports, cluster_ips, families, is_headless, may_have_node_ports,
    needs_cluster_ip, needs_health_check,
};
use super::rejection::{Cause, Rejection};
use super::updates::node_ports;
use super::validation::ips;
use crate::model::Family;

/// The pools of the cluster.
#[derive(Debug)]
pub(super) struct Ledger {
    /// One per family, the primary first.
    addresses: Vec<AddressPool>,
    ports: PortPool,
    /// Node ports that Services had before a restart.
    saved_ports: HashMap<ObjectKey, SavedService>,
    rng: StdRng,
}

/// What one write has claimed so far, and what it will release once accepted.
#[derive(Debug)]
pub(super) struct Draft {
    owner: ObjectKey,
    /// A dry run does not look whether an explicit address is free. The API server's does not either.
    dry: bool,
    claimed_ips: Vec<IpAddr>,
    claimed_ports: Vec<u16>,
    obsolete_ips: Vec<IpAddr>,
    obsolete_ports: Vec<i32>,
}

/// A stage of a write that failed.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Fields are wrong.
    Fields {
        /// Which, and why.
        causes: Vec<Cause>,
        /// Whether a release elsewhere may cure it.
        retry: bool,
    },
    /// No field is to blame.
    Whole(Rejection),
}

impl Draft {
    /// A write of `owner` that has claimed nothing yet.
    pub(super) fn new(owner: ObjectKey, dry: bool) -> Self {
        Self {
            owner,
            dry,
            claimed_ips: Vec::new(),
            claimed_ports: Vec::new(),
            obsolete_ips: Vec::new(),
            obsolete_ports: Vec::new(),
        }
    }
}

impl Ledger {
    /// Pools with nothing allocated but the address of `default/kubernetes`.
    pub(super) fn new(
        cidrs: &[IpNet],
        node_ports: RangeInclusive<u16>,
        reserved_for: &ObjectKey,
        rng: StdRng,
    ) -> Self {
        let mut addresses: Vec<_> = cidrs.iter().map(|cidr| AddressPool::new(*cidr)).collect();
        if let Some(primary) = addresses.first_mut() {
            primary.reserve_first(reserved_for);
        }
        Self {
            addresses,
            ports: PortPool::new(node_ports),
            saved_ports: HashMap::new(),
            rng,
        }
    }

    /// The configured families, primary first.
    pub(super) fn families(&self) -> Vec<Family> {
        self.addresses
            .iter()
            .map(|pool| family_of(pool.range()))
            .collect()
    }

    /// Completes `clusterIP` and `clusterIPs` of `new`.
    ///
    /// # Errors
    /// An address in use or out of range (the field is to blame), or none left (nobody is). `new` is then as before.
    pub(super) fn allocate_addresses(
        &mut self,
        new: &mut ServiceSpec,
        old: Option<&ServiceSpec>,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let old = old.filter(|old| needs_cluster_ip(old));
        let Some(old) = old else {
            if !needs_cluster_ip(new) || is_headless(new) {
                return Ok(());
            }
            return self.claim_addresses(new, 0, draft);
        };
        if keeps_preferred_families(new, old) || is_headless(old) {
            return Ok(());
        }
        if !needs_cluster_ip(new) {
            let held = cluster_ips(old).iter();
            draft
                .obsolete_ips
                .extend(held.filter_map(|ip| ips::parse_sloppily(ip)));
            return Ok(());
        }
        match (families(old).len(), families(new).len()) {
            (1, 2) => self.claim_addresses(new, 1, draft),
            (2, 1) => {
                let secondary = cluster_ips(old).get(1);
                draft
                    .obsolete_ips
                    .extend(secondary.and_then(|ip| ips::parse_sloppily(ip)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn claim_addresses(
        &mut self,
        spec: &mut ServiceSpec,
        first: usize,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let wanted = families(spec).to_vec();
        let mut list = cluster_ips(spec).to_vec();
        list.resize(wanted.len().max(list.len()), String::new());
        for (i, family) in wanted.iter().enumerate().skip(first) {
            let shown = list.clone();
            let Some(pool) = self
                .addresses
                .iter_mut()
                .find(|pool| family_of(pool.range()).as_str() == family)
            else {
                continue;
            };
            if list[i].is_empty() {
                let ip = pool
                    .claim_any(&draft.owner, &mut self.rng)
                    .map_err(|error| no_address(&draft.owner, error))?;
                draft.claimed_ips.push(ip);
                list[i] = ip.to_string();
            } else if let Some(ip) = ips::parse_sloppily(&list[i]).filter(|_| !draft.dry) {
                pool.claim(ip, &draft.owner)
                    .map_err(|error| refused_address(&list[i], &shown, error))?;
                draft.claimed_ips.push(ip);
            }
        }
        spec.cluster_ip = list.first().cloned();
        spec.cluster_ips = Some(list);
        Ok(())
    }

    /// Completes the node ports of `new`.
    ///
    /// # Errors
    /// The first port that is in use or out of range, or none left. Ports allocated until then stay in `new`.
    pub(super) fn allocate_node_ports(
        &mut self,
        new: &mut ServiceSpec,
        old: Option<&ServiceSpec>,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let held: Vec<_> = old
            .map(node_ports)
            .into_iter()
            .flatten()
            .filter(|port| self.ports.is_held_by(*port, &draft.owner))
            .collect();
        if may_have_node_ports(new) {
            match old {
                None => self.claim_ports_of_new(new, draft)?,
                // What becomes a Service with ports is like a new one.
                Some(old) if !needs_cluster_ip(old) => self.claim_ports_of_new(new, draft)?,
                Some(_) => self.claim_ports_of_update(new, &held, draft)?,
            }
            let kept = node_ports(new);
            let dropped = held.into_iter().filter(|port| !kept.contains(port));
            draft.obsolete_ports.extend(dropped);
        } else {
            draft.obsolete_ports.extend(held);
        }
        Ok(())
    }

    // Ports of one number and several protocols share a node port; equal explicit numbers need an equal port.
    fn claim_ports_of_new(
        &mut self,
        spec: &mut ServiceSpec,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let dynamic = allocates_node_ports(spec);
        let mut ports = spec.ports.take().unwrap_or_default();
        let requested: Vec<_> = ports
            .iter()
            .map(|port| (port.port, port.node_port))
            .collect();
        let mut shared: Vec<(i32, i32)> = Vec::new();
        let mut outcome = Ok(());
        for (i, port) in ports.iter_mut().enumerate() {
            if port.node_port.is_none() && !dynamic {
                continue;
            }
            let known = shared
                .iter()
                .find_map(|(number, node_port)| (*number == port.port).then_some(*node_port));
            let result = match (known, port.node_port) {
                (Some(known), None) => Ok(known),
                (Some(known), Some(asked)) if known == asked => Ok(known),
                (Some(_), Some(asked)) => self.claim_port(i, asked, draft),
                (None, _) => {
                    // A later entry of the same port may have asked for a number.
                    let asked = requested
                        .iter()
                        .find_map(|(number, asked)| asked.filter(|_| *number == port.port));
                    let result = match asked {
                        Some(asked) => self.claim_port(i, asked, draft),
                        None => {
                            let wanted =
                                self.saved_port(&draft.owner, port.port, port.protocol.as_deref());
                            self.claim_any_port(wanted, draft)
                        }
                    };
                    if let Ok(node_port) = result {
                        shared.push((port.port, node_port));
                    }
                    result
                }
            };
            match result {
                Ok(node_port) => port.node_port = Some(node_port),
                Err(fault) => {
                    outcome = Err(fault);
                    break;
                }
            }
        }
        spec.ports = Some(ports);
        outcome
    }

    // Every port without a number gets its own; equal explicit numbers need different protocols.
    fn claim_ports_of_update(
        &mut self,
        spec: &mut ServiceSpec,
        held: &[i32],
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let dynamic = allocates_node_ports(spec);
        let mut seen: Vec<(Option<String>, i32)> = Vec::new();
        for (i, port) in spec.ports.iter_mut().flatten().enumerate() {
            let number = match port.node_port {
                None if !dynamic => continue,
                None => self.claim_any_port(None, draft)?,
                Some(asked) if held.contains(&asked) || seen.iter().any(|(_, n)| *n == asked) => {
                    asked
                }
                Some(asked) => self.claim_port(i, asked, draft)?,
            };
            port.node_port = Some(number);
            let entry = (port.protocol.clone(), number);
            if seen.contains(&entry) {
                let protocol = entry.0.unwrap_or_default();
                let message = format!("duplicate nodePort: {{{protocol} {number}}}");
                return Err(Fault::Whole(Rejection::unexplained(message)));
            }
            seen.push(entry);
        }
        Ok(())
    }

    /// Completes `healthCheckNodePort` of `new`.
    ///
    /// # Errors
    /// The requested port is in use or out of range, or none is left. No field is blamed, as in the API server.
    pub(super) fn allocate_health_check(
        &mut self,
        new: &mut ServiceSpec,
        old: Option<&ServiceSpec>,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let old = old.filter(|old| needs_health_check(old));
        match (old, needs_health_check(new)) {
            (None, true) => {
                let port = match new.health_check_node_port {
                    Some(port) => self.ports.claim(port, &draft.owner).map_err(|error| {
                        let what =
                            format!("failed to allocate requested HealthCheck NodePort {port}");
                        no_port(&what, &error)
                    })?,
                    None => {
                        let what = "failed to allocate a HealthCheck NodePort 0";
                        let saved = self.saved_ports.get(&draft.owner);
                        let wanted = saved.and_then(|saved| saved.health_check_node_port);
                        self.ports
                            .claim_any(&draft.owner, wanted, &mut self.rng)
                            .map_err(|error| no_port(what, &error))?
                    }
                };
                draft.claimed_ports.push(port);
                new.health_check_node_port = Some(port.into());
            }
            (Some(old), false) => draft.obsolete_ports.extend(old.health_check_node_port),
            (Some(_), true) | (None, false) => {}
        }
        Ok(())
    }

    fn claim_port(&mut self, i: usize, asked: i32, draft: &mut Draft) -> Result<i32, Fault> {
        match self.ports.claim(asked, &draft.owner) {
            Ok(port) => {
                draft.claimed_ports.push(port);
                Ok(asked)
            }
            Err(error) => {
                let field = format!("spec.ports[{i}].nodePort");
                Err(Fault::Fields {
                    causes: vec![Cause::invalid(field, &asked, &error.to_string())],
                    retry: error == PortError::Taken,
                })
            }
        }
    }

    fn claim_any_port(&mut self, wanted: Option<u16>, draft: &mut Draft) -> Result<i32, Fault> {
        let port = self
            .ports
            .claim_any(&draft.owner, wanted, &mut self.rng)
            .map_err(|error| no_port("failed to allocate a nodePort", &error))?;
        draft.claimed_ports.push(port);
        Ok(port.into())
    }

    /// The write was accepted: what it no longer uses is free.
    pub(super) fn commit(&mut self, draft: &Draft) {
        for ip in &draft.obsolete_ips {
            self.release_ip(*ip, &draft.owner);
        }
        for port in &draft.obsolete_ports {
            self.release_port(*port, &draft.owner);
        }
    }

    /// The write was rejected: what it claimed is free.
    pub(super) fn roll_back(&mut self, draft: &Draft) {
        for ip in &draft.claimed_ips {
            self.release_ip(*ip, &draft.owner);
        }
        for port in &draft.claimed_ports {
            self.release_port(i32::from(*port), &draft.owner);
        }
    }

    /// Takes back everything that the spec of a deleted Service names.
    pub(super) fn release_all(&mut self, spec: &ServiceSpec, owner: &ObjectKey) {
        for ip in cluster_ips(spec) {
            if let Some(ip) = ips::parse_sloppily(ip) {
                self.release_ip(ip, owner);
            }
        }
        for port in node_ports(spec)
            .into_iter()
            .chain(spec.health_check_node_port)
        {
            self.release_port(port, owner);
        }
    }

    /// Keeps what the Service had before a restart for it, as long as there is any other choice for others.
    pub(super) fn prefer(&mut self, owner: &ObjectKey, saved: &SavedService) {
        for ip in &saved.cluster_ips {
            self.prefer_ip(*ip, owner);
        }
        let node_ports = saved.node_ports.iter().map(|port| port.node_port);
        for port in node_ports.chain(saved.health_check_node_port) {
            self.ports.prefer(port, owner);
        }
        self.saved_ports.insert(owner.clone(), saved.clone());
    }

    /// The same for what a manifest asks for by number.
    pub(super) fn prefer_explicit(&mut self, owner: &ObjectKey, spec: &ServiceSpec) {
        let addresses = cluster_ips(spec).iter().chain(&spec.cluster_ip);
        for ip in addresses.filter_map(|ip| ips::parse_sloppily(ip)) {
            self.prefer_ip(ip, owner);
        }
        for port in node_ports(spec)
            .into_iter()
            .chain(spec.health_check_node_port)
        {
            if let Ok(port) = u16::try_from(port) {
                self.ports.prefer(port, owner);
            }
        }
    }

    /// The Service is gone, and with it what it had before.
    pub(super) fn forget_preferences(&mut self, owner: &ObjectKey) {
        for pool in &mut self.addresses {
            pool.forget_preferences(owner);
        }
        self.ports.forget_preferences(owner);
        self.saved_ports.remove(owner);
    }

    fn saved_port(&self, owner: &ObjectKey, port: i32, protocol: Option<&str>) -> Option<u16> {
        let saved = self.saved_ports.get(owner)?.node_ports.iter();
        let mut same = saved.filter(|saved| saved.port == port);
        same.find(|saved| Some(saved.protocol.as_str()) == protocol)
            .map(|saved| saved.node_port)
    }

    fn prefer_ip(&mut self, ip: IpAddr, owner: &ObjectKey) {
        for pool in &mut self.addresses {
            pool.prefer(ip, owner);
        }
    }

    fn release_ip(&mut self, ip: IpAddr, owner: &ObjectKey) {
        for pool in &mut self.addresses {
            pool.release(ip, owner);
        }
    }

    fn release_port(&mut self, port: i32, owner: &ObjectKey) {
        if let Ok(port) = u16::try_from(port) {
            self.ports.release(port, owner);
        }
    }
}

fn family_of(range: IpNet) -> Family {
    Family::of(range.addr())
}

fn no_address(owner: &ObjectKey, error: AddressError) -> Fault {
    let message = format!(
        "failed to allocate a serviceIP for Service \"{}\": {error}",
        owner.name
    );
    Fault::Whole(Rejection::internal(message).worth_retrying())
}

fn refused_address(ip: &str, shown: &[String], error: AddressError) -> Fault {
    let detail = format!("failed to allocate IP {ip}: {error}");
    Fault::Fields {
        causes: vec![Cause::invalid("spec.clusterIPs", &shown, &detail)],
        retry: error == AddressError::Taken,
    }
}

fn no_port(what: &str, error: &PortError) -> Fault {
    let rejection = Rejection::internal(format!("{what}: {error}"));
    Fault::Whole(match error {
        PortError::Taken | PortError::Full => rejection.worth_retrying(),
        PortError::OutOfRange(_) => rejection,
    })
}
