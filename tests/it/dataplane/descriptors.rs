//! Running out of descriptors: listeners survive, established connections do not notice.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use viaduct::capture::plan::{Entry, ListenerState};
use viaduct::dataplane::{Config, OpenError};
use viaduct::model::Protocol::Tcp;

use super::rig::{Rig, eventually, in_own_process, soon};

#[test]
fn listeners_survive_a_shortage_of_descriptors() {
    assert!(in_own_process("dataplane::descriptors::shortage", &[]));
}

#[test]
fn listeners_are_refused_before_flows_are() {
    assert!(in_own_process("dataplane::descriptors::many", &[]));
}

#[tokio::test]
#[ignore = "lowers the limit of its process; run by the test above"]
async fn many() {
    // 180 for listeners and flows.
    setrlimit(Resource::RLIMIT_NOFILE, 700, 700).unwrap();
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config {
        threads: 2,
        ..Config::default()
    };
    let rig = Rig::with(Tcp, &[backend.local_addr().unwrap()], config);
    let spec = |port| {
        let mut spec = rig.spec(ListenerState::Serving);
        if let Entry::At(frontend, _) = &mut spec.id.entry {
            frontend.port = port;
        }
        spec
    };
    let mut open = Vec::new();
    let refused = loop {
        assert!(open.len() < 180, "no bound");
        match rig
            .plane
            .open(&spec(u16::try_from(open.len()).unwrap()))
            .await
        {
            Ok(at) => open.push(at),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(refused, OpenError::Descriptors { .. }),
        "{refused}"
    );
    // Three quarters of them: 43 listeners with a socket for each thread, 49 with one.
    assert_eq!(open.len(), 92);
    for at in open {
        let _client = TcpStream::connect(at).await.unwrap();
        soon("accept", backend.accept()).await.unwrap();
    }
    rig.plane.close(&spec(0).id).await;
    rig.plane.open(&spec(1000)).await.unwrap();
}

#[tokio::test]
#[ignore = "uses up the descriptors of its process; run by the test above"]
async fn shortage() {
    setrlimit(Resource::RLIMIT_NOFILE, 200, 200).unwrap();
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::start(Tcp, &[backend.local_addr().unwrap()]);
    let at = rig.open().await;
    let mut before = TcpStream::connect(at).await.unwrap();
    let (mut served, _) = soon("accept", backend.accept()).await.unwrap();

    let late = TcpSocket::new_v4().unwrap();
    let hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let mut late = late.connect(at).await.unwrap();
    let errors = || rig.metric("viaduct_accept_errors_total", "shortage");
    eventually("the shortage is counted", || errors() > 0.0).await;

    let (begun, first) = (Instant::now(), errors());
    while begun.elapsed() < Duration::from_millis(200) {
        before.write_all(b"x").await.unwrap();
        soon("echo", served.read_exact(&mut [0; 1])).await.unwrap();
    }
    assert!(errors() - first < 20.0, "it spins");

    drop(hoard);
    let (mut served, _) = soon("accept", backend.accept()).await.unwrap();
    served.write_all(b"y").await.unwrap();
    soon("the late one", late.read_exact(&mut [0; 1]))
        .await
        .unwrap();
}
