//! `viaduct.dev/max-connections`: the bound of a Service, whose surplus clients are reset and counted.

use std::num::NonZeroU32;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use viaduct::model::{Knobs, Protocol::Tcp};

use super::rig::{Rig, eventually, is_reset, soon};

fn at_most(bound: Option<u32>) -> Knobs {
    Knobs {
        max_connections: bound.and_then(NonZeroU32::new),
        ..Knobs::default()
    }
}

/// Connections, and refusals at the bound, as the table has them.
fn load(rig: &Rig) -> (u64, u64) {
    let table = rig.published.load();
    let load = &table.route(&rig.route()).unwrap().load;
    (load.connections(), load.refused_total())
}

#[tokio::test]
async fn the_bound_holds_frees_again_and_can_be_changed_on_the_way() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut rig = Rig::start(Tcp, &[addr]);
    rig.apply_service(at_most(Some(2)));
    let at = rig.open().await;
    let connect = async || {
        let client = TcpStream::connect(at).await.unwrap();
        let (backend, _) = soon("accept", listener.accept()).await.unwrap();
        (client, backend)
    };
    let first = connect().await;
    let mut second = connect().await;
    is_reset(at).await;
    assert_eq!(load(&rig), (2, 1));
    let refused = || rig.metric("viaduct_tcp_refused_connections_total", "max_connections");
    eventually("the refusal is counted", || refused() == 1.0).await;

    // Other tables do not forget what is there.
    rig.set_backends(&[]);
    rig.set_backends(&[addr]);
    is_reset(at).await;
    assert_eq!(load(&rig), (2, 2));

    drop(first);
    eventually("a place is free", || load(&rig).0 == 1).await;
    let _third = connect().await;
    is_reset(at).await;

    rig.apply_service(at_most(Some(3)));
    let _fourth = connect().await;
    is_reset(at).await;

    rig.apply_service(at_most(Some(1)));
    is_reset(at).await;
    second.0.write_all(b"x").await.unwrap();
    soon("those above it go on", second.1.read_exact(&mut [0; 1]))
        .await
        .unwrap();
    assert_eq!(load(&rig), (3, 5));

    rig.apply_service(at_most(None));
    let _fifth = connect().await;
}

#[tokio::test]
async fn who_could_not_be_served_takes_no_place() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let mut rig = Rig::start(Tcp, &[addr]);
    rig.apply_service(at_most(Some(1)));
    let at = rig.open().await;
    for _ in 0..3 {
        is_reset(at).await;
        eventually("its place is free", || load(&rig).0 == 0).await;
    }
    let failed = rig.metric("viaduct_tcp_refused_connections_total", "dial_failed");
    assert_eq!((failed, load(&rig)), (3.0, (0, 0)));
}
