//! For how long an answer stays right. Pure: table and time are arguments.
//!
//! An answer of our own is right for its routing table. Most are about the addresses of one Service, and such a one is right
//! for every later table that shares this Service: a change of one costs the answers of that one alone.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hickory_proto::rr::{Name, RecordType};

use crate::model::ServiceName;
use crate::routing::{RoutingTable, ServiceEntry};

use super::names::Asked;
use super::records::{Authority, End, Local};

/// How long an answer of others is given without asking their cache again, which must know what is in use.
const RECHECK: Duration = Duration::from_secs(10);

/// For how long a reply would be given again.
#[derive(Clone, Debug)]
pub(super) enum Lasting {
    /// As long as the routing table is of this generation.
    Table(u64),
    /// As long as routing tables share this Service.
    Service {
        /// The Service. Held weakly: what is remembered of it keeps nothing of it alive.
        entry: Weak<ServiceEntry>,
        /// The generation of the newest table that was seen to share it.
        seen_in: u64,
    },
    /// Its TTLs count down from `since` on; it is over at `until`.
    Time {
        /// When the TTLs were as they are in the reply.
        since: Instant,
        /// When it may not be given any more.
        until: Instant,
    },
}

/// What replies depend on besides the question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment<'a> {
    /// The routing table.
    pub(super) table: &'a RoutingTable,
    /// The time.
    pub(super) now: Instant,
}

impl Lasting {
    /// How long `local`, which `authority` answered to this question from `table`, is right.
    pub(super) fn of(
        local: &Local,
        authority: &Authority,
        table: &RoutingTable,
        name: &Name,
        kind: RecordType,
    ) -> Self {
        match deciding(local, authority, table, name, kind) {
            Some(entry) => Self::Service {
                entry: Arc::downgrade(entry),
                seen_in: table.generation,
            },
            None => Self::Table(table.generation),
        }
    }

    /// How many seconds the TTLs of the reply have counted down; `None` when it is not right any more.
    pub(super) fn age(&mut self, moment: &Moment<'_>) -> Option<u32> {
        let generation = moment.table.generation;
        match self {
            Self::Table(of) => (*of == generation).then_some(0),
            Self::Service { entry, seen_in } => {
                if *seen_in != generation {
                    let entry = entry.upgrade()?;
                    let shared = moment.table.service(&entry.service.name)?;
                    if !Arc::ptr_eq(shared, &entry) {
                        return None;
                    }
                    *seen_in = generation;
                }
                Some(0)
            }
            Self::Time { since, until } => {
                let age = moment.now.saturating_duration_since(*since);
                if moment.now >= *until || age >= RECHECK {
                    return None;
                }
                u32::try_from(age.as_secs()).ok()
            }
        }
    }
}

// The Service that alone decides an answer. What is missing tells the serial of the table, an alias leads to other
// Services, and where ports are served is said by the table.
fn deciding<'t>(
    local: &Local,
    authority: &Authority,
    table: &'t RoutingTable,
    name: &Name,
    kind: RecordType,
) -> Option<&'t Arc<ServiceEntry>> {
    let is_addresses = matches!(kind, RecordType::A | RecordType::AAAA)
        && matches!(local.end, End::Records { .. })
        && local.aliases.is_empty();
    let lower = name.to_lowercase();
    let (_, asked) = authority.asked(&lower).filter(|_| is_addresses)?;
    match asked {
        Asked::Service {
            namespace, service, ..
        } => table.service(&ServiceName::new(namespace, service)),
        Asked::Apex
        | Asked::Branch
        | Asked::Version
        | Asked::NameServer
        | Asked::ServiceNamespace(_)
        | Asked::PodNamespace(_)
        | Asked::PodAddress { .. }
        | Asked::Nothing => None,
    }
}
