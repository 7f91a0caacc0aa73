//! Manifest files: what a new or changed document does to the stored object. The semantics of `kubectl apply`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::defaults::default_pod;
use super::merge::three_way;
use super::object::{Object, ObjectKey};
use super::plane::ControlPlane;
use super::rejection::{Rejection, Warning};
use super::validation::warnings;
use super::write::{Intent, Writer};

impl ControlPlane {
    /// Takes over a document of a manifest file. What changed since the file's last accepted content is applied to the
    /// stored object, the rest stays as stored; a namespace that nothing has mentioned yet comes into being.
    ///
    /// # Errors
    /// Everything that is wrong with it; the object then stays as it was.
    pub fn apply(&mut self, object: Object, now: Timestamp) -> Result<Vec<Warning>, Rejection> {
        let key = object.key();
        // Also where a controller has removed the object since: it would only do so again.
        if self.manifests.get(&key) == Some(&object) {
            let stored = self.store.get(&key);
            return Ok(stored.map(warnings::warnings).unwrap_or_default());
        }
        let merged = match (self.manifests.get(&key), self.store.get(&key)) {
            (Some(before), Some(stored)) => merge(before, &object, stored)?,
            (Some(_) | None, _) => object.clone(),
        };
        let warnings = match (merged, &object) {
            (Object::Pod(pod), Object::Pod(file)) => self.apply_pod(pod, file, &key, now)?,
            (merged, _) => self.write(merged, Writer::File, Intent::Put, now)?.1,
        };
        if key.kind.is_namespaced() && !self.namespace_exists(&key.namespace) {
            self.supply_namespace(&key.namespace, now);
        }
        self.manifests.insert(key, object);
        Ok(warnings)
    }

    fn apply_pod(
        &mut self,
        mut pod: Box<Pod>,
        file: &Pod,
        key: &ObjectKey,
        now: Timestamp,
    ) -> Result<Vec<Warning>, Rejection> {
        default_pod(&mut pod);
        let old = self.store.get(key).and_then(Object::as_pod).cloned();
        let probes = self.run_pod(&mut pod, file, key, now)?;
        let attempt = pod.clone();
        match self.write(Object::Pod(pod), Writer::File, Intent::Put, now) {
            Ok((_, warnings)) => {
                self.probe_pod(key, probes);
                if let Some(old) = &old {
                    self.release_pod_addresses(key, old, Some(&attempt));
                }
                Ok(warnings)
            }
            Err(rejection) => {
                self.release_pod_addresses(key, &attempt, old.as_ref());
                Err(rejection)
            }
        }
    }
}

fn merge(before: &Object, after: &Object, stored: &Object) -> Result<Object, Rejection> {
    match (before, after, stored) {
        (Object::Service(b), Object::Service(a), Object::Service(s)) => {
            merge_as(b, a, s).map(Object::Service)
        }
        (Object::Pod(b), Object::Pod(a), Object::Pod(s)) => merge_as(b, a, s).map(Object::Pod),
        (Object::Node(b), Object::Node(a), Object::Node(s)) => merge_as(b, a, s).map(Object::Node),
        (Object::Namespace(b), Object::Namespace(a), Object::Namespace(s)) => {
            merge_as(b, a, s).map(Object::Namespace)
        }
        (Object::EndpointSlice(b), Object::EndpointSlice(a), Object::EndpointSlice(s)) => {
            merge_as(b, a, s).map(Object::EndpointSlice)
        }
        (Object::Endpoints(b), Object::Endpoints(a), Object::Endpoints(s)) => {
            merge_as(b, a, s).map(Object::Endpoints)
        }
        // One key, one kind; a mixture is not reachable, and then the new content stands for itself.
        (
            Object::Service(_)
            | Object::Pod(_)
            | Object::Node(_)
            | Object::Namespace(_)
            | Object::EndpointSlice(_)
            | Object::Endpoints(_),
            after,
            _,
        ) => Ok(after.clone()),
    }
}

fn merge_as<T: Serialize + DeserializeOwned>(
    before: &T,
    after: &T,
    stored: &T,
) -> Result<T, Rejection> {
    let value = |object: &T| {
        serde_json::to_value(object).map_err(|error| Rejection::internal(error.to_string()))
    };
    let merged = three_way(&value(before)?, &value(after)?, &value(stored)?);
    serde_json::from_value(merged).map_err(|error| Rejection::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::control::{Change, Config, Kind, OwnNode};

    fn plane() -> ControlPlane {
        ControlPlane::new(Config {
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            node_port_range: 30000..=32767,
            load_balancer_range: Some("10.98.0.0/30".parse().unwrap()),
            pod_cidr: Some("10.97.0.0/24".parse().unwrap()),
            allow_loopback_endpoints: true,
            own_node: Some(OwnNode {
                name: "me".to_owned(),
                addresses: vec!["192.0.2.1".parse().unwrap()],
            }),
            max_endpoints_per_slice: 100,
            seed: 1,
        })
        .unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn service(spec: Value) -> Object {
        let manifest = json!({"metadata": {"name": "web"}, "spec": spec});
        Object::Service(serde_json::from_value(manifest).unwrap())
    }

    fn pod(name: &str, more: Value) -> Object {
        let mut manifest = json!({
            "metadata": {"name": name, "labels": {"app": "web"}, "annotations": {"viaduct.dev/simulate": "echo"}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        });
        for (key, value) in more.as_object().unwrap() {
            manifest[key] = value.clone();
        }
        Object::Pod(serde_json::from_value(manifest).unwrap())
    }

    fn json_of(plane: &ControlPlane, kind: Kind, name: &str) -> Value {
        let key = ObjectKey {
            kind,
            namespace: "default".into(),
            name: name.into(),
        };
        match plane.get(&key).unwrap() {
            Object::Service(service) => serde_json::to_value(service).unwrap(),
            Object::Pod(pod) => serde_json::to_value(pod).unwrap(),
            Object::Namespace(_)
            | Object::Node(_)
            | Object::EndpointSlice(_)
            | Object::Endpoints(_) => unreachable!("not asked for"),
        }
    }

    fn slices(plane: &ControlPlane) -> Vec<Value> {
        let slices = plane.list(Kind::EndpointSlice).into_iter();
        slices
            .map(|object| match object {
                Object::EndpointSlice(slice) => serde_json::to_value(slice).unwrap(),
                Object::Namespace(_)
                | Object::Node(_)
                | Object::Pod(_)
                | Object::Service(_)
                | Object::Endpoints(_) => unreachable!("only slices are listed"),
            })
            .collect()
    }

    #[test]
    fn a_service_and_a_simulated_pod_make_a_slice() {
        let mut plane = plane();
        let web =
            json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]});
        plane.apply(service(web), now()).unwrap();
        plane.apply(pod("p", json!({})), now()).unwrap();
        let changes = plane.reconcile(now());
        assert!(
            changes
                .iter()
                .any(|change| matches!(change, Change::Applied(Object::EndpointSlice(_))))
        );
        let pod = json_of(&plane, Kind::Pod, "p");
        assert_eq!(pod["spec"]["nodeName"], "me");
        assert_eq!(pod["status"]["phase"], "Running");
        let slices = slices(&plane);
        let endpoint = &slices[0]["endpoints"][0];
        assert_eq!(endpoint["addresses"][0], pod["status"]["podIP"]);
        assert_eq!(endpoint["conditions"]["ready"], true);
        assert_eq!(slices[0]["ports"][0]["port"], 8080);
        assert_eq!(plane.reconcile(now()), []);
    }

    #[test]
    fn an_unchanged_file_changes_nothing_and_an_edit_keeps_what_was_allocated() {
        let mut plane = plane();
        let first =
            service(json!({"type": "NodePort", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]}));
        plane.apply(first.clone(), now()).unwrap();
        plane.reconcile(now());
        let stored = json_of(&plane, Kind::Service, "web");
        plane.apply(first, now()).unwrap();
        assert_eq!(plane.reconcile(now()), []);
        let edited = service(
            json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
        );
        let rejection = plane.apply(edited, now()).unwrap_err();
        assert_eq!(rejection.causes[0].field, "spec.ports[0].name");
        assert_eq!(json_of(&plane, Kind::Service, "web"), stored);
        let edited =
            service(json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080}]}));
        plane.apply(edited, now()).unwrap();
        let after = json_of(&plane, Kind::Service, "web");
        assert_eq!(after["spec"]["ports"][0]["targetPort"], 8080);
        assert_eq!(
            after["spec"]["ports"][0]["nodePort"],
            stored["spec"]["ports"][0]["nodePort"]
        );
        assert_eq!(after["spec"]["clusterIP"], stored["spec"]["clusterIP"]);
    }

    #[test]
    fn all_stages_of_a_file_report_together() {
        let mut plane = plane();
        let bad = service(
            json!({"type": "NodePort", "clusterIP": "10.1.0.1", "sessionAffinity": "x", "ports": [{"port": 80, "nodePort": 80}]}),
        );
        let rejection = plane.apply(bad, now()).unwrap_err();
        let fields: Vec<_> = rejection
            .causes
            .iter()
            .map(|cause| cause.field.as_str())
            .collect();
        assert_eq!(
            fields,
            [
                "spec.clusterIPs",
                "spec.ports[0].nodePort",
                "spec.sessionAffinity"
            ]
        );
        assert!(!rejection.retry);
        assert_eq!(plane.allocations(), crate::control::Allocations::default());
    }

    #[test]
    fn load_balancers_wait_for_an_address_and_take_over_a_released_one() {
        let mut plane = plane();
        let named = |name: &str| {
            let manifest = json!({"metadata": {"name": name}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
            Object::Service(serde_json::from_value(manifest).unwrap())
        };
        for name in ["a", "b", "c"] {
            plane.apply(named(name), now()).unwrap();
        }
        plane.reconcile(now());
        let address = |plane: &ControlPlane, name| {
            json_of(plane, Kind::Service, name)["status"]["loadBalancer"]["ingress"][0]["ip"]
                .clone()
        };
        let (a, c) = (address(&plane, "a"), address(&plane, "c"));
        assert!(a.is_string() && c.is_null());
        plane.delete(&named("a").key(), now());
        plane.reconcile(now());
        assert_eq!(address(&plane, "c"), a);
    }

    #[test]
    fn allocations_survive_a_restart_and_yield_to_explicit_ones() {
        let mut first = plane();
        let web = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        first.apply(web.clone(), now()).unwrap();
        first.apply(pod("p", json!({})), now()).unwrap();
        first.reconcile(now());
        let saved = first.allocations();
        let text = serde_json::to_string(&saved).unwrap();

        let mut again = ControlPlane::new(Config {
            seed: 99,
            ..first.config.clone()
        })
        .unwrap();
        again.restore(serde_json::from_str(&text).unwrap());
        again.apply(web.clone(), now()).unwrap();
        again.apply(pod("p", json!({})), now()).unwrap();
        assert_eq!(again.allocations(), saved);

        let taken = saved.services[0].cluster_ips[0];
        let greedy = json!({"metadata": {"name": "other"}, "spec": {"clusterIP": taken, "ports": [{"port": 80}]}});
        let greedy = Object::Service(serde_json::from_value(greedy).unwrap());
        let mut third = plane();
        third.restore(saved);
        third.announce(&greedy);
        third.apply(web, now()).unwrap();
        third.apply(greedy, now()).unwrap();
        assert_ne!(third.allocations().services[1].cluster_ips, [taken]);
    }

    #[test]
    fn a_rejected_pod_gives_its_new_address_back_and_keeps_its_old_one() {
        let mut plane = plane();
        let at = |ip: &str| json!({"status": {"podIP": ip}});
        plane.apply(pod("p", at("10.97.0.5")), now()).unwrap();
        let mut broken = at("10.97.0.6");
        broken["spec"] = json!({"containers": [{"name": "c", "ports": [{"containerPort": 0}]}]});
        let rejection = plane.apply(pod("p", broken), now()).unwrap_err();
        assert_eq!(
            rejection.causes[0].field,
            "spec.containers[0].ports[0].containerPort"
        );
        let key = pod("p", json!({})).key();
        let pool = plane.pod_addresses.as_ref().unwrap();
        assert!(pool.is_held_by("10.97.0.5".parse().unwrap(), &key));
        assert!(!pool.is_held_by("10.97.0.6".parse().unwrap(), &key));
        plane.apply(pod("p", at("10.97.0.7")), now()).unwrap();
        let pool = plane.pod_addresses.as_ref().unwrap();
        assert!(!pool.is_held_by("10.97.0.5".parse().unwrap(), &key));
    }

    #[test]
    fn a_cut_list_that_the_file_always_had_is_no_change() {
        let mut plane = ControlPlane::new(Config {
            service_cidrs: vec![
                "10.96.0.0/16".parse().unwrap(),
                "fd00::/112".parse().unwrap(),
            ],
            ..plane().config
        })
        .unwrap();
        let spec = |port: i32| json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"], "ports": [{"port": port}]});
        plane.apply(service(spec(80)), now()).unwrap();
        let before = json_of(&plane, Kind::Service, "web")["spec"]["clusterIPs"].clone();
        plane.apply(service(spec(81)), now()).unwrap();
        let after = json_of(&plane, Kind::Service, "web");
        assert_eq!(after["spec"]["clusterIPs"], before);
        assert_eq!(after["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
        let single = json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"], "ports": [{"port": 81}]});
        plane.apply(service(single), now()).unwrap();
        let after = json_of(&plane, Kind::Service, "web");
        assert_eq!(after["spec"]["ipFamilies"], json!(["IPv6"]));
    }

    #[test]
    fn a_change_of_type_in_a_file_frees_what_the_type_needed() {
        let mut plane = plane();
        let ports = json!([{"port": 80, "nodePort": 30050}]);
        plane.apply(service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports})), now()).unwrap();
        plane.reconcile(now());
        assert!(
            json_of(&plane, Kind::Service, "web")["status"]["loadBalancer"]["ingress"].is_array()
        );
        plane
            .apply(service(json!({"ports": [{"port": 80}]})), now())
            .unwrap();
        plane.reconcile(now());
        let after = json_of(&plane, Kind::Service, "web");
        for gone in [
            "externalTrafficPolicy",
            "healthCheckNodePort",
            "allocateLoadBalancerNodePorts",
        ] {
            assert!(after["spec"][gone].is_null(), "{gone}");
        }
        assert!(after["status"]["loadBalancer"]["ingress"].is_null());
        let other =
            json!({"metadata": {"name": "other"}, "spec": {"type": "NodePort", "ports": ports}});
        plane
            .apply(
                Object::Service(serde_json::from_value(other).unwrap()),
                now(),
            )
            .unwrap();
    }

    #[test]
    fn an_address_in_use_is_worth_another_try_and_one_out_of_range_is_not() {
        let mut plane = plane();
        let with_ip = |name: &str, ip: &str| {
            let manifest = json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
            Object::Service(serde_json::from_value(manifest).unwrap())
        };
        plane.apply(with_ip("a", "10.96.0.9"), now()).unwrap();
        assert!(
            plane
                .apply(with_ip("b", "10.96.0.9"), now())
                .unwrap_err()
                .retry
        );
        assert!(
            !plane
                .apply(with_ip("b", "10.1.0.9"), now())
                .unwrap_err()
                .retry
        );
        plane.delete(&with_ip("a", "").key(), now());
        plane.apply(with_ip("b", "10.96.0.9"), now()).unwrap();
    }

    #[test]
    fn a_status_in_the_file_is_taken_and_an_empty_list_means_none() {
        let mut plane = plane();
        let with = |ingress: Value| {
            let manifest = json!({
                "metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
                "status": {"loadBalancer": {"ingress": ingress}},
            });
            Object::Service(serde_json::from_value(manifest).unwrap())
        };
        let shown = |plane: &mut ControlPlane| {
            plane.reconcile(now());
            json_of(plane, Kind::Service, "web")["status"]["loadBalancer"]["ingress"].clone()
        };
        plane.apply(with(json!([{"ip": "203.0.113.1", "ipMode": "Proxy"}, {"hostname": "lb.example.com"}])), now()).unwrap();
        assert_eq!(
            shown(&mut plane)[0],
            json!({"ip": "203.0.113.1", "ipMode": "Proxy"})
        );
        plane.apply(with(json!([])), now()).unwrap();
        assert_eq!(shown(&mut plane), json!([]));
        let silent = service(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
        plane.apply(silent, now()).unwrap();
        assert_eq!(
            shown(&mut plane)[0]["ip"]
                .as_str()
                .map(|ip| ip.starts_with("10.98.0.")),
            Some(true)
        );
        let classed = service(json!({"type": "ClusterIP", "ports": [{"port": 80}]}));
        plane.apply(classed, now()).unwrap();
        plane.apply(service(json!({"type": "LoadBalancer", "loadBalancerClass": "x", "ports": [{"port": 80}]})), now()).unwrap();
        assert!(shown(&mut plane).is_null());
    }

    #[test]
    fn a_namespace_comes_into_being_with_its_first_accepted_object() {
        let mut plane = plane();
        let there = |namespace: &str, port: i32| {
            let manifest = json!({"metadata": {"name": "web", "namespace": namespace}, "spec": {"ports": [{"port": port}]}});
            Object::Service(serde_json::from_value(manifest).unwrap())
        };
        plane.apply(there("bad", 0), now()).unwrap_err();
        plane.apply(there("shop", 80), now()).unwrap();
        let names: Vec<_> = plane
            .list(Kind::Namespace)
            .iter()
            .map(|object| object.key().name.to_string())
            .collect();
        assert_eq!(
            names,
            [
                "default",
                "kube-node-lease",
                "kube-public",
                "kube-system",
                "shop"
            ]
        );
    }
}
