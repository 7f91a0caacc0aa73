//! HTTP and HTTPS: which answers count, what a request looks like, where redirects lead.

use super::*;

#[tokio::test]
async fn statuses_from_200_to_399_are_successes() {
    let (address, _heads) =
        serve(|n, _| status([200, 204, 299, 300, 304, 399, 400, 404, 503][n])).await;
    for code in [200, 204, 299, 300, 304, 399] {
        let attempt = attempt_http(get(address)).await;
        assert_eq!(attempt.outcome(), Outcome::Success, "{code}");
    }
    for code in [400, 404, 503] {
        assert_fails(
            attempt_http(get(address)).await,
            &format!("HTTP status {code}"),
        );
    }
    let (address, _heads) = serve(|_, _| status(199)).await;
    assert_eq!(attempt_http(get(address)).await.outcome(), Outcome::Failure);
}

#[tokio::test]
async fn requests_look_like_those_of_the_kubelet() {
    let (address, mut heads) = serve(|_, _| status(200)).await;
    let sent = async |get: HttpGet, heads: &mut mpsc::Receiver<String>| {
        assert_eq!(attempt_http(get).await, Attempt::Success);
        heads.recv().await.unwrap()
    };
    let plain = sent(get(address), &mut heads).await;
    let mut lines: Vec<_> = plain.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "GET /healthz?full HTTP/1.1");
    lines.sort_unstable();
    let host = format!("Host: {address}");
    let expected = [
        "Accept: */*",
        "Connection: close",
        &host,
        "User-Agent: kube-probe/1.36",
    ];
    assert_eq!(lines, expected);

    let given = |headers: &[(&str, &str)]| HttpGet {
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..get(address)
    };
    let headers = [
        ("host", "shop.example"),
        ("user-agent", "me"),
        ("Accept", "text/plain"),
        ("X-Many", "1"),
        ("X-Many", "2"),
    ];
    let head = sent(given(&headers), &mut heads).await;
    for line in [
        "Host: shop.example",
        "User-Agent: me",
        "Accept: text/plain",
        "X-Many: 1",
        "X-Many: 2",
    ] {
        assert!(head.contains(&format!("{line}\r\n")), "{head}");
    }
    assert!(
        !head.contains("kube-probe") && !head.contains("*/*"),
        "{head}"
    );
    let head = sent(given(&[("Accept", "")]), &mut heads).await;
    assert!(!head.contains("Accept"), "{head}");

    for (path, line) in [
        ("", "GET / HTTP"),
        ("plain", "GET /plain HTTP"),
        ("/a b#c", "GET /a%20b HTTP"),
        ("//x/%2f?q=1&r", "GET //x/%2f?q=1&r HTTP"),
    ] {
        let path = path.to_owned();
        let head = sent(
            HttpGet {
                path,
                ..get(address)
            },
            &mut heads,
        )
        .await;
        assert!(head.starts_with(line), "{head}");
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_built_is_a_malfunction() {
    let (address, _heads) = serve(|_, _| status(200)).await;
    for bad in [
        HttpGet {
            headers: vec![("X".to_owned(), "a\nb".to_owned())],
            ..get(address)
        },
        HttpGet {
            host: "no host".to_owned(),
            ..get(address)
        },
    ] {
        let attempt = attempt_http(bad).await;
        assert_eq!(attempt.outcome(), Outcome::Unknown, "{attempt:?}");
    }
    let unusable = Handler::Unusable("why".to_owned());
    assert_eq!(
        attempt(unusable).await,
        Attempt::Malfunction("why".to_owned())
    );
}

#[tokio::test]
async fn redirects_within_the_host_are_followed_up_to_ten() {
    for (n_redirects, outcome) in [
        (1, Outcome::Success),
        (10, Outcome::Success),
        (11, Outcome::Failure),
    ] {
        let (address, mut heads) = serve(move |n, _| {
            if n < n_redirects {
                redirect([301, 302, 303, 307, 308][n % 5], &format!("/next/{n}"))
            } else {
                status(200)
            }
        })
        .await;
        let custom = vec![("Host".to_owned(), "shop.example".to_owned())];
        let attempt = attempt_http(HttpGet {
            headers: custom,
            ..get(address)
        })
        .await;
        assert_eq!(attempt.outcome(), outcome, "{attempt:?}");
        heads.recv().await.unwrap();
        let second = heads.recv().await.unwrap();
        assert!(second.starts_with("GET /next/0 HTTP"), "{second}");
        assert!(second.contains("Host: shop.example\r\n"), "{second}");
    }
}

#[tokio::test]
async fn a_redirect_may_lead_to_another_port_and_its_answer_counts() {
    let (other, mut heads) = serve(|_, _| status(500)).await;
    let (address, _heads) =
        serve(move |_, _| redirect(302, &format!("http://{other}/there"))).await;
    assert_fails(attempt_http(get(address)).await, "HTTP status 500");
    let head = heads.recv().await.unwrap();
    assert!(head.contains(&format!("Host: {other}\r\n")), "{head}");
}

#[tokio::test]
async fn a_redirect_elsewhere_or_nowhere_is_a_success_with_a_warning() {
    let (address, mut heads) = serve(|n, _| match n {
        0 => redirect(302, "http://elsewhere.invalid/"),
        1 => redirect(307, "//elsewhere.invalid/x"),
        _ => status(302),
    })
    .await;
    for expected in ["another host", "another host", "leads nowhere"] {
        assert_warns(attempt_http(get(address)).await, expected);
        heads.recv().await.unwrap();
    }
    let (address, _heads) = serve(|_, _| redirect(302, "http://[nonsense")).await;
    assert_fails(attempt_http(get(address)).await, "redirect to");
}

#[tokio::test]
async fn bodies_are_read_up_to_ten_kilobytes_and_must_be_whole() {
    let body = |length: usize, sent: usize| {
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + sent, b'x');
        answer
    };
    let (address, _heads) = serve(move |n, _| match n {
        0 => body(100, 100),
        // More than is read, and broken off after that.
        1 => body(1 << 30, 1 << 20),
        _ => body(100, 50),
    })
    .await;
    assert_eq!(attempt_http(get(address)).await, Attempt::Success);
    assert_eq!(attempt_http(get(address)).await, Attempt::Success);
    assert_fails(attempt_http(get(address)).await, "HTTP status 200");
}

#[tokio::test]
async fn what_is_no_http_is_a_failure() {
    let (address, _heads) = serve(|_, _| b"SSH-2.0-x\r\n".to_vec()).await;
    assert_eq!(attempt_http(get(address)).await.outcome(), Outcome::Failure);
    let (address, _heads) = serve(|_, _| Vec::new()).await;
    assert_eq!(attempt_http(get(address)).await.outcome(), Outcome::Failure);
}

#[tokio::test]
async fn whoever_takes_too_long_has_failed() {
    // Accepted by the kernel, answered by nobody.
    let (_listener, silent) = listen().await;
    // One byte at a time, each in time, the whole never.
    let (listener, dripping) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
        stream.write_all(head).await.unwrap();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let attempts = Attempts::new(ExecProbes::Allowed, metrics);
    let slow = Handler::Exec(["sleep", "3600"].map(str::to_owned).to_vec());
    let grpc = Handler::Grpc {
        ip: silent.ip(),
        port: silent.port(),
        service: String::new(),
    };
    let handlers = [
        Handler::HttpGet(get(silent)),
        Handler::HttpGet(get(dripping)),
        grpc,
        slow,
    ];
    let attempts = handlers.map(|handler| {
        let attempts = &attempts;
        async move { attempts.run(ProbeKind::Readiness, &spec(handler, 1)).await }
    });
    for attempt in futures_util::future::join_all(attempts).await {
        assert_fails(attempt, "no answer within 1s");
    }
}

#[tokio::test]
async fn https_takes_any_certificate() {
    let certified = rcgen::generate_simple_self_signed(["somebody.else".to_owned()]).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let key = certified.signing_key.serialize_der().try_into().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = listen().await;
    let (heads, mut receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(stream).await {
                answer_one(stream, 0, &|_, _| status(200), &heads).await;
            }
        }
    });
    let https = HttpGet {
        tls: true,
        ..get(address)
    };
    assert_eq!(attempt_http(https.clone()).await, Attempt::Success);
    assert!(
        receiver
            .recv()
            .await
            .unwrap()
            .contains(&format!("Host: {address}\r\n"))
    );
    let named = HttpGet {
        host: "localhost".to_owned(),
        ..https
    };
    assert_eq!(attempt_http(named).await, Attempt::Success);
    assert_eq!(
        attempt_http(get(address)).await.outcome(),
        Outcome::Failure,
        "plain HTTP to TLS"
    );
    let (plain, _heads) = serve(|_, _| status(200)).await;
    // The greeting of TLS has no end of a head, so the server is told to wait for none.
    let tls = HttpGet {
        tls: true,
        ..get(plain)
    };
    let attempts = Attempts::new(ExecProbes::Allowed, Metrics::new(&Registry::new()).unwrap());
    let attempt = attempts
        .run(ProbeKind::Readiness, &spec(Handler::HttpGet(tls), 1))
        .await;
    assert_eq!(attempt.outcome(), Outcome::Failure, "TLS to plain HTTP");
}
