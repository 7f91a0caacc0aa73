//! Node ports and the health-check port of one Service: which are claimed, which released. Source: `initNodePorts` and
//! `updateNodePorts` of the API server.

use k8s_openapi::api::core::v1::ServiceSpec;

use super::ledger::{Draft, Fault, Ledger};
use super::node_ports::PortError;
use super::object::ObjectKey;
use super::predicates::{
    allocates_node_ports, may_have_node_ports, needs_cluster_ip, needs_health_check,
};
use super::rejection::{Cause, Rejection};
use super::updates::node_ports;

impl Ledger {
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

    fn saved_port(&self, owner: &ObjectKey, port: i32, protocol: Option<&str>) -> Option<u16> {
        let saved = self.saved_ports.get(owner)?.node_ports.iter();
        let mut same = saved.filter(|saved| saved.port == port);
        same.find(|saved| Some(saved.protocol.as_str()) == protocol)
            .map(|saved| saved.node_port)
    }
}

fn no_port(what: &str, error: &PortError) -> Fault {
    let rejection = Rejection::internal(format!("{what}: {error}"));
    Fault::Whole(match error {
        PortError::Taken | PortError::Full => rejection.worth_retrying(),
        PortError::OutOfRange(_) => rejection,
    })
}
