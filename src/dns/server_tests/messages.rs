//! What is no question for us, and what EDNS asks for.

use super::*;

#[tokio::test]
async fn what_is_no_question_for_us_gets_its_rcode_or_silence() {
    let client = start(Vec::new()).await;
    let good = query("web.ns.svc.cluster.local.", RecordType::A);
    let octets = good.to_vec().unwrap();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut octets = octets.clone();
        change(&mut octets);
        octets
    };
    let mut chaos = good.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut newer = with_edns(good.clone(), 1232, false);
    newer.edns.as_mut().unwrap().set_version(1);
    let mut two_opts = with_edns(good.clone(), 1232, false).to_vec().unwrap();
    two_opts.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    two_opts[11] = 2;
    let transfer = query("cluster.local.", RecordType::AXFR).to_vec().unwrap();
    let rows: Vec<(&str, Vec<u8>, Option<ResponseCode>)> = vec![
        ("eleven octets", octets[..11].to_vec(), None),
        ("a response", changed(&|o| o[2] |= 0x80), None),
        (
            "no question",
            changed(&|o| o[5] = 0),
            Some(ResponseCode::FormErr),
        ),
        (
            "two questions",
            changed(&|o| o[5] = 2),
            Some(ResponseCode::FormErr),
        ),
        (
            "a cut question",
            octets[..20].to_vec(),
            Some(ResponseCode::FormErr),
        ),
        (
            "reserved label bits",
            changed(&|o| o[12] = 0x40),
            Some(ResponseCode::FormErr),
        ),
        (
            "a pointer to itself",
            changed(&|o| o[12..14].copy_from_slice(&[0xC0, 12])),
            Some(ResponseCode::FormErr),
        ),
        (
            "a record too few",
            changed(&|o| o[11] = 1),
            Some(ResponseCode::FormErr),
        ),
        ("two OPT records", two_opts, Some(ResponseCode::FormErr)),
        (
            "opcode NOTIFY",
            changed(&|o| o[2] |= 4 << 3),
            Some(ResponseCode::NotImp),
        ),
        (
            "opcode UPDATE",
            changed(&|o| o[2] |= 5 << 3),
            Some(ResponseCode::NotImp),
        ),
        (
            "class CH",
            chaos.to_vec().unwrap(),
            Some(ResponseCode::Refused),
        ),
        ("a transfer", transfer, Some(ResponseCode::Refused)),
        (
            "EDNS version 1",
            newer.to_vec().unwrap(),
            Some(ResponseCode::BADVERS),
        ),
    ];
    for (what, octets, expected) in rows {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(client.at).await.unwrap();
        socket.send(&octets).await.unwrap();
        // Replies come in order, so the next question shows that the server lives, and what silence was.
        let mut probe = good.clone();
        probe.metadata.id = 0x4321;
        socket.send(&probe.to_vec().unwrap()).await.unwrap();
        let mut buffer = vec![0; 512];
        if let Some(code) = expected {
            let length = socket.recv(&mut buffer).await.unwrap();
            let reply = Message::from_vec(&buffer[..length]).unwrap();
            // BADVERS and BADSIG share the number 16.
            assert_eq!(
                u16::from(reply.metadata.response_code),
                u16::from(code),
                "{what}"
            );
            assert_eq!(reply.metadata.id, 0x1234, "{what}");
            assert_eq!(
                reply.edns.is_some(),
                code == ResponseCode::BADVERS,
                "{what}"
            );
        }
        let length = socket.recv(&mut buffer).await.unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(
            (reply.metadata.id, data(&reply).len()),
            (0x4321, 1),
            "{what}"
        );
    }
}

#[tokio::test]
async fn edns_is_answered_in_kind() {
    let client = start(Vec::new()).await;
    let question = with_edns(
        query("web.ns.svc.cluster.local.", RecordType::A),
        4096,
        true,
    );
    let edns = client.udp(&question).await.edns.expect("an OPT record");
    assert!(edns.flags().dnssec_ok);
    assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
}
