//! What balancers and autoscalers ask: health-check node ports, and the node's own health.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually, http_get, patience, pod};

fn web(policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  type: LoadBalancer\n  externalTrafficPolicy: {policy}\n  selector: {{app: web}}\n  ports:\n  - port: 80\n    targetPort: 8080\n"
    )
}

fn answer(address: SocketAddr) -> Result<(u16, Value), String> {
    let (status, body) = http_get(address, "/any/path").map_err(|error| error.to_string())?;
    let body = serde_json::from_str(&body).map_err(|error| error.to_string())?;
    Ok((status, body))
}

fn await_answer(address: SocketAddr, status: u16, local_endpoints: usize) {
    let wanted = json!({
        "service": { "namespace": "default", "name": "web" },
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": true,
    });
    eventually("the answer", || match answer(address) {
        Ok(told) if told == (status, wanted.clone()) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Up to the brace that ends the body.
fn next_answer(connection: &mut TcpStream) -> String {
    let mut answer = String::new();
    let mut piece = [0; 4096];
    while !answer.ends_with("}") {
        let length = connection.read(&mut piece).unwrap();
        assert_ne!(length, 0, "it ends in the middle: {answer:?}");
        answer.push_str(std::str::from_utf8(&piece[..length]).unwrap());
    }
    answer
}

#[test]
fn a_health_check_node_port_follows_its_service() {
    let cluster = Cluster::start(&[
        ("web.yaml", &web("Local")),
        ("a.yaml", &pod("web", "a", true)),
        ("b.yaml", &pod("web", "b", true)),
    ]);
    let services = cluster.items("services");
    let port = services[0]["spec"]["healthCheckNodePort"].as_u64().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
    await_answer(address, 200, 2);
    cluster.write("a.yaml", &pod("web", "a", false));
    await_answer(address, 200, 1);
    cluster.remove("b.yaml");
    await_answer(address, 503, 0);

    let mut kept = TcpStream::connect(address).unwrap();
    kept.set_read_timeout(Some(patience())).unwrap();
    kept.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    next_answer(&mut kept);
    for request in ["POST /any/path?a=b", "DELETE /", "OPTIONS *"] {
        write!(kept, "{request} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let answer = next_answer(&mut kept);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{request}: {answer}");
        let answer = answer.to_ascii_lowercase();
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 0",
        ] {
            assert!(
                answer.lines().any(|line| line == header),
                "{request}: {answer}"
            );
        }
    }
    cluster.write("web.yaml", &web("Cluster"));
    assert!(matches!(kept.read(&mut [0; 4096]), Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).is_err());
}

fn node(name: &str, metadata: &str, taint: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}{metadata}}}\nspec:\n  taints:\n  - {{key: {taint}, effect: NoSchedule}}\n"
    )
}

#[test]
fn a_node_that_is_about_to_go_is_not_eligible_and_lives_all_the_same() {
    let cluster = Cluster::start(&[]);
    let name = cluster.items("nodes")[0]["metadata"]["name"].clone();
    let name = name.as_str().unwrap();
    let health = cluster.address("Health");
    let told = |status: u16| {
        eventually("the node's health", || match http_get(health, "/healthz") {
            Ok((found, body)) if found == status => {
                let body: Value = serde_json::from_str(&body).unwrap();
                assert_eq!(body["nodeEligible"], json!(status == 200));
                assert_eq!(body["healthy"], json!(true));
                Ok(())
            }
            other => Err(format!("{other:?}")),
        });
        assert_eq!(http_get(health, "/livez").unwrap().0, 200);
    };
    told(200);
    let going = "ToBeDeletedByClusterAutoscaler";
    cluster.write("node.yaml", &node(name, "", going));
    told(503);
    cluster.write("node.yaml", &node(name, "", "example.com/other"));
    told(200);
    let deleted = ", deletionTimestamp: 2026-01-01T00:00:00Z";
    cluster.write("node.yaml", &node(name, deleted, "example.com/other"));
    told(503);
    cluster.remove("node.yaml");
    told(200);
}
