//! What the data path tells whoever looks at it: the flows there are, and what went to each backend. Reads only; a data
//! thread lists its flows between two rounds of events.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::model::{Frontend, ServiceName, ServicePortKey};
use crate::routing::FrontendKind;

use super::accounts::Accounts;
use super::audible::Audible;
use super::mailbox::{Mailbox, Order};

/// Flows that one data thread lists at a time, some 1 MB; the rest is only counted.
const MAX_LISTED: usize = 5_000;

/// Looks at a running data path, for as long as somebody holds it; what has ended has no flows.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    threads: Vec<Arc<Mailbox>>,
    accounts: Arc<Accounts>,
    audible: Arc<Audible>,
}

/// Whose flows are asked for: those of one namespace, of Services of one name, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WhoseFlows {
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// One name, or all.
    pub service: Option<String>,
}

/// A flow at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFlow {
    /// The service port that it came to.
    pub service: ServicePortKey,
    /// Who began it.
    pub client: SocketAddr,
    /// Where it goes; `None` while none has been reached.
    pub backend: Option<SocketAddr>,
    /// Since when.
    pub opened: Instant,
    /// Payload bytes that went to the backend.
    pub bytes_to_backend: u64,
    /// Payload bytes that went to the client.
    pub bytes_to_client: u64,
}

/// The flows of one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenFlows {
    /// In no order.
    pub listed: Vec<OpenFlow>,
    /// Further ones, past the bound of an answer.
    pub unlisted: usize,
}

/// What went to one backend through one service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Payload bytes that went to it.
    pub bytes_to_backend: u64,
    /// Payload bytes that came from it.
    pub bytes_to_client: u64,
    /// Within what time 99 of 100 TCP connections to it were made, as exactly as its buckets tell; `None` before the
    /// first.
    pub connect_p99: Option<Duration>,
}

impl Observer {
    pub(super) fn new(
        threads: Vec<Arc<Mailbox>>,
        accounts: Arc<Accounts>,
        audible: Arc<Audible>,
    ) -> Self {
        Self {
            threads,
            accounts,
            audible,
        }
    }

    /// Whether callers that should meet silence at a frontend that `is_meant` are refused, because the kernel takes no
    /// filter of them.
    pub fn cannot_be_silent(&self, is_meant: impl Fn(&Frontend, FrontendKind) -> bool) -> bool {
        self.audible.any(is_meant)
    }

    /// The flows at this moment. Each thread answers for itself, so one that moves on meanwhile may be missed.
    pub async fn open_flows(&self, whose: WhoseFlows) -> OpenFlows {
        let whose = Arc::new(whose);
        let asked = self.threads.iter().map(|mailbox| {
            let (done, answer) = oneshot::channel();
            let whose = whose.clone();
            mailbox.post(|mail| mail.orders.push(Order::List { whose, done }));
            answer
        });
        let mut all = OpenFlows::default();
        for answer in asked.collect::<Vec<_>>() {
            // An error means that the thread is gone, with all it had.
            let flows = answer.await.unwrap_or_default();
            all.listed.extend(flows.listed);
            all.unlisted += flows.unlisted;
        }
        all
    }

    /// What went to each backend that the table has or that flows still use, since it appeared.
    pub fn carried(&self) -> HashMap<(ServicePortKey, SocketAddr), Carried> {
        self.accounts.carried()
    }
}

impl WhoseFlows {
    pub(super) fn takes(&self, service: &ServiceName) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|w| w == name);
        is(&self.namespace, &service.namespace) && is(&self.service, &service.name)
    }
}

impl OpenFlows {
    /// Lists one more, if there is room.
    pub(super) fn add(&mut self, flow: impl FnOnce() -> OpenFlow) {
        if self.listed.len() < MAX_LISTED {
            self.listed.push(flow());
        } else {
            self.unlisted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{addr, port_key};

    #[test]
    fn an_answer_has_a_bound_and_counts_what_is_past_it() {
        let flow = || OpenFlow {
            service: port_key("web"),
            client: addr("10.0.0.1:1000"),
            backend: None,
            opened: Instant::now(),
            bytes_to_backend: 0,
            bytes_to_client: 0,
        };
        let mut flows = OpenFlows::default();
        for _ in 0..MAX_LISTED {
            flows.add(flow);
        }
        assert_eq!((flows.listed.len(), flows.unlisted), (MAX_LISTED, 0));
        flows.add(flow);
        assert_eq!((flows.listed.len(), flows.unlisted), (MAX_LISTED, 1));
    }

    #[test]
    fn flows_are_taken_by_namespace_and_name() {
        let name = port_key("web").service;
        let whose = |namespace: Option<&str>, service: Option<&str>| WhoseFlows {
            namespace: namespace.map(str::to_owned),
            service: service.map(str::to_owned),
        };
        assert!(whose(None, None).takes(&name));
        assert!(whose(Some(&name.namespace), Some("web")).takes(&name));
        assert!(!whose(Some("elsewhere"), Some("web")).takes(&name));
        assert!(!whose(None, Some("shop")).takes(&name));
    }

    #[tokio::test]
    async fn a_data_path_that_has_ended_has_no_flows() {
        let gone = Arc::new(Mailbox::new().unwrap());
        gone.close();
        let observer = Observer::new(vec![gone], Arc::default(), Arc::default());
        let flows = observer.open_flows(WhoseFlows::default()).await;
        assert_eq!(flows, OpenFlows::default());
    }
}
