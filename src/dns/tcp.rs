//! DNS over TCP: connections, their limits, and many questions on each.
//!
//! Replies go out in the order in which they are ready, so a slow upstream holds up only its own question. Owned by the
//! server; ends with it.
//!
//! Source: RFC 7766 (pipelining, reuse, idle connections).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exchange::{Exchange, Step};
use super::limits::Limits;
use super::message::Transport;
use super::metrics::{Metrics, float};

/// For how long a connection that is to be closed is still read from.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Waited after an accept error, which is usually the lack of descriptors: it must not become a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// The open connections of all listeners.
#[derive(Debug)]
pub(super) struct Connections {
    open: Mutex<Open>,
    limits: Arc<Limits>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    // Oldest first.
    by_id: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    client: IpAddr,
    // Each question under way holds a permit, and the reader one for the next question.
    pipeline: Arc<Semaphore>,
    close: CancellationToken,
}

// Takes a connection off the list when its task ends.
struct Listed {
    connections: Arc<Connections>,
    id: u64,
}

impl Connections {
    /// No connections yet.
    pub(super) fn new(limits: Arc<Limits>, metrics: Arc<Metrics>) -> Self {
        Self {
            open: Mutex::new(Open::default()),
            limits,
            metrics,
        }
    }

    // Makes room for a connection and lists it; `None` if there is no room to be made.
    fn admit(self: &Arc<Self>, connection: Connection) -> Option<Listed> {
        let client = connection.client;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = |other: &Connection| other.client == client;
        let n_of_client = open.by_id.values().filter(|other| of_client(other)).count();
        if n_of_client >= self.limits.connections_of_one {
            open.close_oldest_idle(of_client, self.limits.pipelined)?;
        } else if open.by_id.len() >= self.limits.connections {
            open.close_oldest_idle(|_| true, self.limits.pipelined)?;
        }
        let id = open.next_id;
        open.next_id += 1;
        open.by_id.insert(id, connection);
        self.metrics.connections.inc();
        Some(Listed {
            connections: self.clone(),
            id,
        })
    }
}

impl Open {
    fn close_oldest_idle(
        &mut self,
        among: impl Fn(&Connection) -> bool,
        pipelined: usize,
    ) -> Option<()> {
        let is_idle = |other: &Connection| is_idle(&other.pipeline, pipelined);
        let (id, _) = self
            .by_id
            .iter()
            .find(|(_, other)| among(other) && is_idle(other))?;
        let id = *id;
        self.by_id.remove(&id)?.close.cancel();
        Some(())
    }
}

fn is_idle(pipeline: &Semaphore, pipelined: usize) -> bool {
    pipeline.available_permits() + 1 >= pipelined
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut open = self
            .connections
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open.by_id.remove(&self.id);
        self.connections.metrics.connections.dec();
    }
}

/// Accepts connections from `listener` until `stop`, and answers what they ask.
pub(super) async fn serve(
    listener: TcpListener,
    exchange: Arc<Exchange>,
    connections: Arc<Connections>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let server = Accepting {
        exchange,
        connections,
        tasks,
        stop,
    };
    loop {
        let accepted = tokio::select! {
            () = server.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => server.converse(stream, client),
            Err(error) => {
                tracing::debug!(%error, "DNS connection not accepted");
                sleep(ERROR_PAUSE).await;
            }
        }
    }
    // Connections that are made already would be reset with the listener.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    while let Ok((stream, client)) = listener.accept() {
        let stream = stream.set_nonblocking(true).map(|()| stream);
        match stream.and_then(TcpStream::from_std) {
            Ok(stream) => server.converse(stream, client),
            Err(error) => tracing::debug!(%error, "DNS connection not accepted"),
        }
    }
}

// What accepted connections are given to.
struct Accepting {
    exchange: Arc<Exchange>,
    connections: Arc<Connections>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Accepting {
    fn converse(&self, stream: TcpStream, client: SocketAddr) {
        let pipeline = Arc::new(Semaphore::new(self.connections.limits.pipelined));
        let close = self.stop.child_token();
        let connection = Connection {
            client: client.ip(),
            pipeline: pipeline.clone(),
            close: close.clone(),
        };
        let Some(listed) = self.connections.admit(connection) else {
            tracing::debug!(%client, "too many DNS connections; closed");
            return;
        };
        let conversation = Conversation {
            client,
            exchange: self.exchange.clone(),
            pipeline,
            limits: self.connections.limits.clone(),
            tasks: self.tasks.clone(),
        };
        self.tasks.spawn(async move {
            let _listed = listed;
            conversation.run(stream, close).await;
        });
    }
}

// A reply on its way, with the place in the pipeline that it frees.
type Outgoing = (Vec<u8>, OwnedSemaphorePermit);

// One connection, both of its directions.
struct Conversation {
    client: SocketAddr,
    exchange: Arc<Exchange>,
    pipeline: Arc<Semaphore>,
    limits: Arc<Limits>,
    tasks: TaskTracker,
}

impl Conversation {
    async fn run(self, stream: TcpStream, close: CancellationToken) {
        let client = self.client;
        let write_timeout = self.limits.write_timeout;
        let (from_client, to_client) = stream.into_split();
        // Every sender holds a permit, so there is always room.
        let (replies, outgoing) = mpsc::channel(self.limits.pipelined);
        let closing = async {
            close.cancelled().await;
            // What was on its way by then is still read.
            sleep(LAST_WORDS).await;
        };
        let reading = async {
            tokio::select! {
                // Questions that were read already are still answered.
                () = closing => {}
                result = self.read_questions(from_client, replies) => {
                    if let Err(error) = result {
                        tracing::debug!(%client, %error, "DNS connection ended");
                    }
                }
            }
        };
        let writing = async {
            if let Err(error) = write_replies(to_client, outgoing, write_timeout).await {
                tracing::debug!(%client, %error, "DNS connection ended");
                close.cancel();
            }
        };
        tokio::join!(reading, writing);
    }

    async fn read_questions(
        &self,
        mut stream: OwnedReadHalf,
        replies: mpsc::Sender<Outgoing>,
    ) -> io::Result<()> {
        let metrics = self.exchange.metrics();
        loop {
            let Ok(permit) = self.pipeline.clone().acquire_owned().await else {
                return Ok(());
            };
            // Not idle for as long as an answer is awaited. What is only looked at cannot be lost to a time-out.
            let idle_timeout = self.limits.idle_timeout;
            while timeout(idle_timeout, stream.peek(&mut [0])).await.is_err() {
                if is_idle(&self.pipeline, self.limits.pipelined) {
                    return Ok(());
                }
            }
            let reading = timeout(self.limits.read_timeout, read_message(&mut stream));
            let Some(message) = reading.await?? else {
                return Ok(());
            };
            metrics.request_size.observe(float(message.len()));
            match self.exchange.begin(&message, self.client, Transport::Tcp) {
                Step::Reply(reply) => {
                    metrics.response_size.observe(float(reply.octets.len()));
                    if replies.send((reply.octets, permit)).await.is_err() {
                        return Ok(());
                    }
                }
                // What is no question ends the conversation: the stream may be out of step.
                Step::Silence => return Ok(()),
                Step::Wait(pending) => {
                    let finish = self.exchange.clone().finish(pending);
                    let (replies, metrics) = (replies.clone(), metrics.clone());
                    self.tasks.spawn(async move {
                        match finish.await {
                            // Fails only when the connection has ended.
                            Step::Reply(reply) => {
                                metrics.response_size.observe(float(reply.octets.len()));
                                drop(replies.send((reply.octets, permit)).await);
                            }
                            Step::Silence | Step::Wait(_) => {}
                        }
                    });
                }
            }
        }
    }
}

// One message behind its length; `None` at the end of the stream.
async fn read_message(stream: &mut OwnedReadHalf) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_replies(
    mut stream: OwnedWriteHalf,
    mut outgoing: mpsc::Receiver<Outgoing>,
    write_timeout: Duration,
) -> io::Result<()> {
    while let Some((reply, _permit)) = outgoing.recv().await {
        let mut framed = Vec::with_capacity(reply.len() + 2);
        // Replies are cut to what sixteen bits can say.
        framed.extend(u16::try_from(reply.len()).unwrap_or(u16::MAX).to_be_bytes());
        framed.extend_from_slice(&reply);
        timeout(write_timeout, stream.write_all(&framed)).await??;
    }
    Ok(())
}
