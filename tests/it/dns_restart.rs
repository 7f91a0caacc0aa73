//! One DNS server after another at the same address, with a client that goes on asking.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hickory_proto::rr::RecordType;

use crate::cluster::eventually;
use crate::dns_server::{Server, ask_tcp, ask_udp, command, question};

#[test]
fn no_question_is_lost_while_one_process_follows_another() {
    let mut first = Server::start(&[]);
    let address = first.address;
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let there = question("web.ns.svc.cluster.local.", RecordType::A);
        let missing = question("gone.ns.svc.cluster.local.", RecordType::A);
        let (over, asked) = (&over, &asked);
        let clients = [ask_udp, ask_udp, ask_tcp].map(|ask| {
            let questions = [(there.clone(), 0), (missing.clone(), 3)];
            scope.spawn(move || {
                let mut wrong = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    for (question, code) in &questions {
                        match ask(address, question) {
                            Ok(reply) if reply[3] & 0x0F == *code => {}
                            Ok(reply) => wrong.push(format!("code {}", reply[3] & 0x0F)),
                            Err(error) => wrong.push(error.to_string()),
                        }
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
                wrong
            })
        });
        // From each client some, which a server that takes part cannot have missed.
        let some_more = || {
            let seen = asked.load(Ordering::Relaxed);
            eventually("more questions", || {
                let more = asked.load(Ordering::Relaxed) - seen;
                if more > 300 { Ok(()) } else { Err(more) }
            });
        };
        some_more();
        let mut second = Server::run(&mut command(first.root(), &address.to_string()));
        assert_eq!(second.address, address);
        some_more();
        assert!(first.stop().success());
        some_more();
        // And a third, while nobody is left of the first.
        let third = Server::run(&mut command(first.root(), &address.to_string()));
        some_more();
        assert!(second.stop().success());
        some_more();
        over.store(true, Ordering::Relaxed);
        for client in clients {
            let wrong = client.join().unwrap();
            assert!(
                wrong.is_empty(),
                "{} wrong: {:?}",
                wrong.len(),
                wrong.first()
            );
        }
        drop(third);
    });
}

#[test]
fn a_port_of_somebody_else_is_not_shared() {
    let first = Server::start(&[]);
    // Another viaduct, but none that follows this one: its data are elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut child = command(elsewhere.path(), &first.address.to_string())
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    let mut said = String::new();
    let mut from = child.stderr.take().unwrap();
    from.read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("in use"), "{said}");
}
