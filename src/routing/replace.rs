//! How a table becomes the next one: the entry of one Service is replaced, and every index over it follows.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Family, Frontend, Protocol, ServiceName};

use super::{Route, RoutingTable, ServiceEntry};

impl RoutingTable {
    /// Puts `entry` in the place of what is known of the Service `name`; `None` removes it.
    ///
    /// An address that another Service has taken over in the meantime is left to it, so the two may be replaced in
    /// either order.
    pub(super) fn replace(&mut self, name: &ServiceName, entry: Option<ServiceEntry>) {
        let before = self.services.get(name).cloned();
        let before = before.as_deref();
        self.replace_owners(name, before, entry.as_ref());
        let old_routes = before.map_or(&[][..], |entry| &entry.routes);
        for route in old_routes {
            self.remove_route(route);
        }
        for route in entry.iter().flat_map(|entry| &entry.routes) {
            self.insert_route(route);
        }
        self.forget_moves(old_routes);
        match entry {
            Some(entry) => self.services.insert_mut(name.clone(), Arc::new(entry)),
            None => {
                self.services.remove_mut(name);
            }
        }
    }

    fn insert_route(&mut self, route: &Arc<Route>) {
        for (frontend, kind) in &route.frontends {
            self.frontends.insert_mut(*frontend, (*kind, route.clone()));
        }
        if let Some(slot) = node_port_slot(route) {
            self.node_ports.insert_mut(slot, route.clone());
        }
        self.routes.insert_mut(route.key.clone(), route.clone());
    }

    fn remove_route(&mut self, route: &Route) {
        for (frontend, _) in &route.frontends {
            let owner = self.frontends.get(frontend);
            if owner.is_some_and(|(_, owner)| owner.key == route.key) {
                self.frontends.remove_mut(frontend);
            }
        }
        if let Some(slot) = node_port_slot(route) {
            let owner = self.node_ports.get(&slot);
            if owner.is_some_and(|owner| owner.key == route.key) {
                self.node_ports.remove_mut(&slot);
            }
        }
        self.routes.remove_mut(&route.key);
    }

    // An address that nobody serves any more has not been moved either.
    fn forget_moves(&mut self, before: &[Arc<Route>]) {
        if self.moved.is_empty() {
            return;
        }
        for route in before {
            for (frontend, _) in &route.frontends {
                if !self.frontends.contains_key(frontend) {
                    self.moved.remove_mut(frontend);
                }
            }
            if let Some(slot) = node_port_slot(route)
                && !self.node_ports.contains_key(&slot)
            {
                let (_, protocol, port) = slot;
                for ip in &self.node.node_port_addresses {
                    self.moved.remove_mut(&Frontend {
                        ip: *ip,
                        port,
                        protocol,
                    });
                }
            }
        }
    }

    fn replace_owners(
        &mut self,
        name: &ServiceName,
        before: Option<&ServiceEntry>,
        after: Option<&ServiceEntry>,
    ) {
        let old = before.map_or_else(BTreeSet::new, addresses_of);
        let new = after.map_or_else(BTreeSet::new, addresses_of);
        for ip in old.difference(&new) {
            self.owners.remove(*ip, |owner| **owner == *name);
        }
        let name = Arc::new(name.clone());
        for ip in new.difference(&old) {
            self.owners.add(*ip, Arc::clone(&name));
        }
    }
}

fn node_port_slot(route: &Route) -> Option<(Family, Protocol, u16)> {
    let port = route.node_port?;
    Some((route.key.family, route.key.protocol, port))
}

fn addresses_of(entry: &ServiceEntry) -> BTreeSet<IpAddr> {
    let endpoints = entry
        .slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .flat_map(|endpoint| &endpoint.addresses);
    entry
        .service
        .cluster_ips
        .iter()
        .chain(endpoints)
        .copied()
        .collect()
}
