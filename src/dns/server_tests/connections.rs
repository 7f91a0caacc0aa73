//! TCP: many questions at once, slow senders, and room for new connections.

use super::*;

#[tokio::test]
async fn a_slow_question_holds_up_only_itself_on_a_connection() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let mut stream = TcpStream::connect(client.at).await.unwrap();
    let mut slow = query("held.test.", RecordType::A);
    slow.metadata.id = 1;
    send(&mut stream, &slow).await;
    send(
        &mut stream,
        &query("web.ns.svc.cluster.local.", RecordType::A),
    )
    .await;
    assert_eq!(receive(&mut stream).await.metadata.id, 0x1234);
    stub.release();
    assert_eq!(receive(&mut stream).await.metadata.id, 1);
}

#[tokio::test]
async fn a_message_may_come_octet_by_octet() {
    let client = start(Vec::new()).await;
    let mut stream = TcpStream::connect(client.at).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let octets = query("web.ns.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    stream.write_u8(0).await.unwrap();
    stream
        .write_u8(u8::try_from(octets.len()).unwrap())
        .await
        .unwrap();
    for octet in octets {
        stream.write_u8(octet).await.unwrap();
    }
    assert_eq!(data(&receive(&mut stream).await), ["10.96.0.1"]);
}

#[tokio::test]
async fn a_client_that_closes_its_half_still_gets_its_answers() {
    let client = start(Vec::new()).await;
    let mut stream = TcpStream::connect(client.at).await.unwrap();
    send(
        &mut stream,
        &query("web.ns.svc.cluster.local.", RecordType::A),
    )
    .await;
    stream.shutdown().await.unwrap();
    assert_eq!(data(&receive(&mut stream).await), ["10.96.0.1"]);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_oldest_idle_connection_makes_room_for_a_new_one() {
    let client = start(Vec::new()).await;
    let question = query("web.ns.svc.cluster.local.", RecordType::A);
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(client.at).await.unwrap();
        send(&mut stream, &question).await;
        receive(&mut stream).await;
        streams.push(stream);
    }
    let mut one_more = TcpStream::connect(client.at).await.unwrap();
    send(&mut one_more, &question).await;
    assert_eq!(data(&receive(&mut one_more).await), ["10.96.0.1"]);
    let ended = tokio::time::timeout(PATIENCE, streams[0].read(&mut [0])).await;
    assert_eq!(ended.expect("still open").unwrap(), 0);
    send(&mut streams[1], &question).await;
    assert_eq!(data(&receive(&mut streams[1]).await), ["10.96.0.1"]);
}

#[tokio::test]
async fn a_new_connection_is_refused_when_all_others_are_at_work() {
    let stub = Stub::start().await;
    let client = start(vec![stub.addr]).await;
    let (slow, quick) = (
        query("held.test.", RecordType::A),
        query("web.ns.svc.cluster.local.", RecordType::A),
    );
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(client.at).await.unwrap();
        send(&mut stream, &slow).await;
        send(&mut stream, &quick).await;
        // The quick answer says that the slow question is under way.
        assert_eq!(data(&receive(&mut stream).await), ["10.96.0.1"]);
        streams.push(stream);
    }
    let mut one_more = TcpStream::connect(client.at).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, one_more.read(&mut [0])).await;
    assert_eq!(ended.expect("still open").unwrap(), 0);
    stub.release();
    for stream in &mut streams {
        assert_eq!(data(&receive(stream).await), ["192.0.2.80"]);
    }
}
