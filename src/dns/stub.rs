//! An upstream resolver for tests: scripted answers over UDP and TCP, and a record of what was asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, NULL, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// A running stub; ends when dropped.
pub(super) struct Stub {
    pub(super) addr: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    asked: Mutex<HashMap<String, usize>>,
    // `held.test` is answered when a permit is there.
    held: Semaphore,
    broken: bool,
    connections: AtomicUsize,
}

impl Stub {
    /// A stub that answers.
    pub(super) async fn start() -> Self {
        Self::with(false).await
    }

    /// A stub that says SERVFAIL to everything.
    pub(super) async fn broken() -> Self {
        Self::with(true).await
    }

    async fn with(broken: bool) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let udp = Arc::new(UdpSocket::bind(addr).await.unwrap());
        let shared = Arc::new(Shared {
            asked: Mutex::default(),
            held: Semaphore::new(0),
            broken,
            connections: AtomicUsize::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, shared.clone()));
        tasks.spawn(serve_tcp(tcp, shared.clone()));
        Self {
            addr,
            shared,
            _tasks: tasks,
        }
    }

    /// How often a name was asked about over UDP; in lower case, with its final dot.
    pub(super) fn asked(&self, name: &str) -> usize {
        self.shared
            .asked
            .lock()
            .unwrap()
            .get(name)
            .copied()
            .unwrap_or(0)
    }

    /// Every name asked about.
    pub(super) fn names(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().keys().cloned().collect()
    }

    /// How many connections were made to it.
    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Lets one question about `held.test` be answered.
    pub(super) fn release(&self) {
        self.shared.held.add_permits(1);
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let name = query.queries[0].name().to_lowercase().to_ascii();
        if query.queries[0].query_type() == RecordType::HINFO {
            // Nothing that a client asked; it shows whether the stub is the server itself.
            let reply = answer(&query, &name, &shared).await.to_vec().unwrap();
            socket.send_to(&reply, client).await.unwrap();
            continue;
        }
        let times = {
            let mut asked = shared.asked.lock().unwrap();
            let times = asked.entry(name.clone()).or_default();
            *times += 1;
            *times
        };
        if name == "dropped-once.test." && times == 1 {
            continue;
        }
        let (socket, shared) = (socket.clone(), shared.clone());
        tasks.spawn(async move {
            let mut reply = answer(&query, &name, &shared).await;
            let old = name == "old.test." && query.edns.is_some();
            if old || name == "curt.test." {
                reply.queries.clear();
                reply.answers.clear();
                reply.authorities.clear();
                reply.edns = None;
                reply.metadata.response_code = if old {
                    ResponseCode::FormErr
                } else {
                    ResponseCode::Refused
                };
            }
            if name == "big.test." {
                reply.metadata.truncation = true;
                reply.answers.truncate(1);
            }
            if name == "forged.test." {
                // Somebody guesses: the wrong id, then the wrong question.
                let mut forged = reply.clone();
                forged.metadata.id = forged.metadata.id.wrapping_add(1);
                socket
                    .send_to(&forged.to_vec().unwrap(), client)
                    .await
                    .unwrap();
                let mut forged = reply.clone();
                forged.queries[0].set_name(Name::from_ascii("other.test.").unwrap());
                socket
                    .send_to(&forged.to_vec().unwrap(), client)
                    .await
                    .unwrap();
            }
            socket
                .send_to(&reply.to_vec().unwrap(), client)
                .await
                .unwrap();
        });
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let shared = shared.clone();
        tasks.spawn(async move {
            while let Ok(query) = read(&mut stream).await {
                let query = Message::from_vec(&query).unwrap();
                let name = query.queries[0].name().to_lowercase().to_ascii();
                let reply = answer(&query, &name, &shared).await.to_vec().unwrap();
                stream
                    .write_u16(u16::try_from(reply.len()).unwrap())
                    .await
                    .unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        });
    }
}

async fn read(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn answer(query: &Message, name: &str, shared: &Shared) -> Message {
    if name == "held.test." {
        shared.held.acquire().await.unwrap().forget();
    }
    let asked = &query.queries[0];
    let owner = asked.name().clone();
    let kind = asked.query_type();
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.add_query(asked.clone());
    reply.metadata.recursion_available = true;
    reply.metadata.authentic_data = true;
    if let Some(edns) = &query.edns {
        reply.set_edns(edns.clone());
    }
    let target = || Name::from_ascii("target.test.").unwrap();
    let a = |owner: Name, last: u8| {
        let data = RData::A(std::net::Ipv4Addr::new(192, 0, 2, last).into());
        Record::from_rdata(owner, 60, data)
    };
    if shared.broken || name == "servfail.test." {
        reply.metadata.response_code = ResponseCode::ServFail;
        return reply;
    }
    match name {
        "www.test." | "old.test." | "held.test." | "dropped-once.test." | "forged.test."
        | "target.test."
            if kind == RecordType::A =>
        {
            reply.add_answer(a(owner, 80));
        }
        "alias.test." => {
            reply.add_answer(Record::from_rdata(owner, 60, RData::CNAME(CNAME(target()))));
            reply.add_answer(a(target(), 81));
        }
        "big.test." => {
            reply.add_answers((0..12).map(|n| {
                let text = TXT::new(vec![format!("{n:0200}")]);
                Record::from_rdata(owner.clone(), 60, RData::TXT(text))
            }));
        }
        "spoilt.test." => {
            // An A record of three octets.
            let data = RData::Unknown {
                code: RecordType::A,
                rdata: NULL::with(vec![192, 0, 2]),
            };
            reply.add_answer(Record::from_rdata(owner, 60, data));
        }
        "odd.test." => {
            let data = RData::Unknown {
                code: RecordType::Unknown(65400),
                rdata: NULL::with(vec![1, 2, 3, 4]),
            };
            reply.add_answer(Record::from_rdata(owner, 60, data));
        }
        _ => {
            if !matches!(name, "www.test." | "target.test.") {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            let name = |text| Name::from_ascii(text).unwrap();
            let soa = SOA::new(name("ns.test."), name("hm.test."), 1, 2, 3, 4, 20);
            reply.add_authority(Record::from_rdata(name("test."), 20, RData::SOA(soa)));
        }
    }
    reply
}
