//! Workers: what they report, how they end, and how many there may be at a time.

use super::*;

#[test]
fn texts_are_short_and_on_one_line() {
    let text = Attempt::Failure(format!("a\nb{}", "ü".repeat(500))).into_text();
    assert_eq!(text.chars().count(), 200);
    assert!(text.starts_with("a bü"), "{text}");
    assert_eq!(Attempt::Success.into_text(), "");
}

/// The changes that a Pod with this container at this address makes.
fn changes(ip: Ipv4Addr, container: &serde_json::Value) -> Vec<ProbeChange> {
    let mut plane = ControlPlane::new(Config {
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        node_port_range: 30000..=32767,
        load_balancer_range: None,
        pod_cidr: None,
        allow_loopback_endpoints: true,
        own_node: None,
        max_endpoints_per_slice: 100,
        seed: 1,
    })
    .unwrap();
    let manifest = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [container]}, "status": {"podIP": ip.to_string()}});
    let (pod, _) = decode(manifest, UnknownFields::Refuse).unwrap();
    plane.apply(pod, jiff::Timestamp::UNIX_EPOCH).unwrap();
    plane.take_probe_changes()
}

fn id_of(changes: &[ProbeChange]) -> ProbeId {
    match &changes[0] {
        ProbeChange::Start(target) => target.id,
        ProbeChange::Terminate(id) | ProbeChange::Stop(id) => panic!("{id:?} was never started"),
    }
}

#[tokio::test]
async fn a_worker_reports_news_only_and_ends_when_it_is_told_to() {
    let (address, mut heads) =
        serve(|n, _| status(if (1..3).contains(&n) { 503 } else { 200 })).await;
    let registry = Registry::new();
    let (mut prober, mut reports) =
        Prober::new(ExecProbes::Allowed, Metrics::new(&registry).unwrap());
    let container = serde_json::json!({"name": "c", "readinessProbe": {"periodSeconds": 1, "failureThreshold": 2,
        "httpGet": {"host": "127.0.0.1", "port": address.port()}}});
    let changes = changes(Ipv4Addr::new(192, 0, 2, 1), &container);
    let id = id_of(&changes);
    prober.apply(changes);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let report = reports.recv().await.unwrap();
        assert_eq!(report.target.id, id);
        seen.push((report.readiness, report.reason));
    }
    let well = |readiness| (readiness, String::new());
    assert_eq!(
        seen,
        [
            well(Readiness::Ready),
            (Readiness::NotReady, "HTTP status 503".to_owned()),
            well(Readiness::Ready)
        ]
    );
    let mut n_probes = 0;
    while heads.try_recv().is_ok() {
        n_probes += 1;
    }
    assert!(n_probes >= 4, "{n_probes}");
    let count = |name: &str| {
        let families = registry.gather();
        let family = families.iter().find(|f| f.name() == name).unwrap();
        family
            .get_metric()
            .iter()
            .map(|m| m.get_counter().get_value() + m.get_gauge().get_value())
            .sum::<f64>()
    };
    assert!(count("viaduct_probe_results_total") >= 4.0);
    assert_eq!(count("viaduct_probe_targets"), 1.0);
    prober.apply(vec![ProbeChange::Stop(id)]);
    assert_eq!(count("viaduct_probe_targets"), 0.0);
    prober.shutdown().await;
    assert!(reports.recv().await.is_none(), "nobody is left to report");
}

#[tokio::test]
async fn a_terminating_target_ends_its_startup_probe() {
    let (listener, address) = listen().await;
    let (mut prober, mut reports) =
        Prober::new(ExecProbes::Allowed, Metrics::new(&Registry::new()).unwrap());
    let container = serde_json::json!({"name": "c", "startupProbe": {"periodSeconds": 3600, "failureThreshold": 1,
        "tcpSocket": {"host": "127.0.0.1", "port": address.port()}}});
    drop(listener);
    let changes = changes(Ipv4Addr::new(192, 0, 2, 1), &container);
    let id = id_of(&changes);
    prober.apply(changes);
    assert_eq!(reports.recv().await.unwrap().readiness, Readiness::NotReady);
    prober.apply(vec![ProbeChange::Terminate(id)]);
    // The worker, which would have waited for an hour, has nothing left to do.
    prober.tasks.close();
    prober.tasks.wait().await;
}

#[tokio::test]
async fn a_worker_is_small() {
    let probe = serde_json::json!({"name": "c", "readinessProbe": {"tcpSocket": {"port": 1}}});
    let ProbeChange::Start(target) = changes(Ipv4Addr::LOCALHOST, &probe).remove(0) else {
        unreachable!("a new Pod starts probes")
    };
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let worker = worker::probe(
        Arc::new(*target),
        Instant::now(),
        CancellationToken::new(),
        Arc::new(Attempts::new(ExecProbes::Allowed, metrics)),
        mpsc::channel(1).0,
    );
    let size = size_of_val(&worker);
    assert!(size <= 1536, "{size} bytes for each of 10,000 Pods");
}

#[tokio::test]
async fn past_the_bound_nothing_more_is_probed() {
    let registry = Registry::new();
    let (mut prober, _reports) = Prober::new(ExecProbes::Allowed, Metrics::new(&registry).unwrap());
    prober.max_targets = 1;
    let probe = serde_json::json!({"exec": {"command": ["true"]}});
    let one = changes(
        Ipv4Addr::new(192, 0, 2, 1),
        &serde_json::json!({"name": "c", "readinessProbe": probe}),
    );
    let id = id_of(&one);
    prober.apply(one.clone());
    assert_eq!(prober.workers.len(), 1);
    let mut other = one.clone();
    let ProbeChange::Start(target) = &mut other[0] else {
        unreachable!("it was one")
    };
    target.container = "d".into();
    prober.apply(other);
    assert_eq!(prober.workers.len(), 1);
    assert_eq!(prober.attempts.metrics.rejected.get(), 1);
    prober.apply(vec![ProbeChange::Stop(id)]);
    prober.apply(one);
    assert_eq!(prober.workers.len(), 1, "there is room again");
    assert_eq!(prober.attempts.metrics.rejected.get(), 1);
}

#[tokio::test]
async fn connections_are_opened_by_turns() {
    let (listener, address) = listen().await;
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let attempts = Arc::new(Attempts::with_bounds(1, 1, metrics));
    let run = |timeout| {
        let (attempts, spec) = (
            attempts.clone(),
            spec(Handler::HttpGet(get(address)), timeout),
        );
        tokio::spawn(async move { attempts.run(ProbeKind::Readiness, &spec).await })
    };
    let first = run(60);
    let (held, _) = listener.accept().await.unwrap();
    // Its second of time begins with its turn.
    let second = run(60);
    while attempts.metrics.delayed.get() == 0 {
        tokio::task::yield_now().await;
    }
    drop(held);
    assert_eq!(first.await.unwrap().outcome(), Outcome::Failure);
    let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
    stream.write_all(&status(200)).await.unwrap();
    assert_eq!(second.await.unwrap(), Attempt::Success);
    assert_eq!(attempts.metrics.delayed.get(), 1);
}
