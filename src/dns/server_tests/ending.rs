//! The end of a server.

use super::*;

#[tokio::test]
async fn shutdown_finishes_what_was_asked_and_frees_the_port() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(client.at).await.unwrap();
    for name in ["held.test.", "web.ns.svc.cluster.local."] {
        socket
            .send(&query(name, RecordType::A).to_vec().unwrap())
            .await
            .unwrap();
    }
    let mut buffer = vec![0; 512];
    // The second question is answered, so the first one is under way.
    socket.recv(&mut buffer).await.unwrap();
    let at = client.at;
    let ending = tokio::spawn(client.server.shutdown(PATIENCE));
    stub.release();
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(
        data(&Message::from_vec(&buffer[..length]).unwrap()),
        ["192.0.2.80"]
    );
    tokio::time::timeout(PATIENCE, ending)
        .await
        .expect("ends")
        .unwrap();
    UdpSocket::bind(at).await.expect("the port is free");
    TcpListener::bind(at).await.expect("the port is free");
}
