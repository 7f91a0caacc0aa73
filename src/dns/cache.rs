//! Answers of upstreams, kept for as long as they say. Pure: the time is an argument. Owned by the forwarder.
//!
//! Bounded by octets; at the bound, entries that were not asked for again go first, in the order in which they came.
//! Nothing about the cluster is ever in here: the routing table needs no copy.
//!
//! Source: RFC 2308 for negative answers; RFC 1035 section 7.4 for what must not be kept.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};

use super::lasting::Lasting;
use super::message::Question;
use super::relayed::{Age, Relayed};
use super::wire::{Section, TYPE_SOA, read_u16, read_u32};

/// How often a name that nobody answers is tried again while its old answer is given (RFC 8767 section 5).
const RECHECK: Duration = Duration::from_secs(30);

/// The longest that an answer is kept, whatever its TTL.
const MAX_TTL: u32 = 3600;

/// The longest that an absence is kept: what was missing a moment ago is what people wait for.
const MAX_NEGATIVE_TTL: u32 = 30;

/// What an entry costs besides its message: two copies of the key, the map's slot and the record spans.
const ENTRY_OVERHEAD: usize = 400;

/// A type that no question has: the entry holds for every type, because the name itself does not exist.
const ANY_TYPE: u16 = 0;

/// What makes two questions one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The name in lower case, as labels with their lengths.
    pub(super) name: Arc<[u8]>,
    /// The type's number.
    pub(super) kind: u16,
    /// DNSSEC records are asked for.
    pub(super) dnssec_ok: bool,
    /// Answers that do not validate are wanted, too.
    pub(super) checking_disabled: bool,
}

impl Key {
    /// The key of a client's question.
    pub(super) fn of(question: &Question) -> Self {
        Self {
            dnssec_ok: question.dnssec_ok(),
            checking_disabled: question.checking_disabled,
            ..Self::about(&question.name, question.kind)
        }
    }

    /// The key of a plain question.
    pub(super) fn about(asked: &Name, kind: RecordType) -> Self {
        let mut name = Vec::with_capacity(64);
        for label in asked.iter() {
            name.push(u8::try_from(label.len()).unwrap_or(0));
            name.extend(label.iter().map(u8::to_ascii_lowercase));
        }
        name.push(0);
        Self {
            name: name.into(),
            kind: kind.into(),
            dnssec_ok: false,
            checking_disabled: false,
        }
    }

    /// A question about the root, with that type.
    pub(super) fn root(kind: u16) -> Self {
        Self {
            name: [0].into(),
            kind,
            dnssec_ok: false,
            checking_disabled: false,
        }
    }

    /// A question about a name that nobody has: two labels of chance, with the type HINFO.
    pub(super) fn random() -> Self {
        const TYPE_HINFO: u16 = 13;
        let mut name = Vec::with_capacity(35);
        for _ in 0..2 {
            name.push(16);
            name.extend(format!("{:016x}", rand::random::<u64>()).bytes());
        }
        name.push(0);
        Self {
            name: name.into(),
            ..Self::root(TYPE_HINFO)
        }
    }

    /// Whether the name is `domain`, which is in lower case, or under it.
    pub(super) fn is_under(&self, domain: &Name) -> bool {
        let mut labels = Vec::with_capacity(8);
        let mut rest = &self.name[..];
        while let Some((length, behind)) = rest.split_first()
            && *length > 0
            && let Some((label, next)) = behind.split_at_checked(usize::from(*length))
        {
            labels.push(label);
            rest = next;
        }
        let mut own = labels.into_iter().rev();
        domain.iter().rev().all(|label| own.next() == Some(label))
    }

    fn for_any_type(&self) -> Self {
        Self {
            kind: ANY_TYPE,
            ..self.clone()
        }
    }
}

/// An answer, and for how many seconds it has been here.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) relayed: Arc<Relayed>,
    pub(super) age: Age,
    // When it came and when it goes; `None` if it has only just come, or is gone already.
    lives: Option<(Instant, Instant)>,
}

impl Kept {
    /// An answer that has just come.
    pub(super) fn fresh(relayed: Arc<Relayed>) -> Self {
        Self {
            relayed,
            age: Age::Seconds(0),
            lives: None,
        }
    }

    /// Whether it says that the name does not exist.
    pub(super) fn is_missing(&self) -> bool {
        self.relayed.code() == Some(ResponseCode::NXDomain)
    }

    /// For how long a reply made from it now would be the same, but for its TTLs.
    pub(super) fn lasting(&self) -> Option<Lasting> {
        let (came, until) = self.lives?;
        let since = match self.age {
            Age::Seconds(seconds) => came + Duration::from_secs(seconds.into()),
            Age::Stale => return None,
        };
        Some(Lasting::Time { since, until })
    }
}

/// All that is kept.
#[derive(Debug)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    // Each key once, oldest first.
    order: VecDeque<Key>,
    octets: usize,
    max_octets: usize,
    stale_for: Duration,
}

/// An answer whose time is over.
#[derive(Clone, Debug)]
pub(super) struct StaleAnswer {
    /// The answer.
    pub(super) kept: Kept,
    /// Asking for a newer one has failed a moment ago, so that is not worth waiting for.
    pub(super) failed_lately: bool,
}

#[derive(Debug)]
struct Entry {
    relayed: Arc<Relayed>,
    since: Instant,
    until: Instant,
    // When asking for a newer answer failed.
    failed: Option<Instant>,
    cost: usize,
    asked_again: bool,
}

impl Cache {
    /// An empty cache of at most `max_octets`. Answers are good for `stale_for` beyond their time, should nobody have a
    /// newer one.
    pub(super) fn new(max_octets: usize, stale_for: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            order: VecDeque::new(),
            octets: 0,
            max_octets,
            stale_for,
        }
    }

    /// The answer to `key`, unless it has expired.
    pub(super) fn find(&mut self, key: &Key, now: Instant) -> Option<Kept> {
        self.find_exact(key, now)
            .or_else(|| self.find_exact(&key.for_any_type(), now))
    }

    fn find_exact(&mut self, key: &Key, now: Instant) -> Option<Kept> {
        let entry = self
            .entries
            .get_mut(key)
            .filter(|entry| now < entry.until)?;
        entry.asked_again = true;
        let age = now.saturating_duration_since(entry.since).as_secs();
        Some(Kept {
            relayed: entry.relayed.clone(),
            age: Age::Seconds(u32::try_from(age).unwrap_or(u32::MAX)),
            lives: Some((entry.since, entry.until)),
        })
    }

    /// The answer to `key` that has expired, unless that is too long ago.
    pub(super) fn find_stale(&self, key: &Key, now: Instant) -> Option<StaleAnswer> {
        let expired = |key: &Key| {
            let entry = self.entries.get(key)?;
            (entry.until <= now && now < entry.until + self.stale_for).then_some(entry)
        };
        let entry = expired(key).or_else(|| expired(&key.for_any_type()))?;
        Some(StaleAnswer {
            kept: Kept {
                relayed: entry.relayed.clone(),
                age: Age::Stale,
                lives: None,
            },
            failed_lately: entry.failed.is_some_and(|failed| now < failed + RECHECK),
        })
    }

    /// Notes that nobody has a newer answer.
    pub(super) fn failed(&mut self, key: &Key, now: Instant) {
        for key in [key, &key.for_any_type()] {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.failed = Some(now);
            }
        }
    }

    /// Keeps an answer to `key`, if it may be kept. Returns how many others had to go.
    pub(super) fn keep(&mut self, key: &Key, relayed: &Arc<Relayed>, now: Instant) -> usize {
        let Some((ttl, scope)) = keeping(relayed) else {
            return 0;
        };
        let key = match scope {
            Scope::ThisType => key.clone(),
            Scope::EveryType => key.for_any_type(),
        };
        let cost = relayed.octets().len() + 2 * key.name.len() + ENTRY_OVERHEAD;
        let entry = Entry {
            relayed: relayed.clone(),
            since: now,
            until: now + Duration::from_secs(ttl.into()),
            failed: None,
            cost,
            asked_again: false,
        };
        self.octets += cost;
        match self.entries.insert(key.clone(), entry) {
            Some(before) => self.octets -= before.cost,
            None => self.order.push_back(key),
        }
        self.evict(now)
    }

    // Entries that were asked for since they came are spared once.
    fn evict(&mut self, now: Instant) -> usize {
        let mut evicted = 0;
        while self.octets > self.max_octets {
            let Some(key) = self.order.pop_front() else {
                break;
            };
            match self.entries.get_mut(&key) {
                Some(entry) if entry.asked_again && now < entry.until => {
                    entry.asked_again = false;
                    self.order.push_back(key);
                }
                Some(_) | None => {
                    if let Some(entry) = self.entries.remove(&key) {
                        self.octets -= entry.cost;
                        evicted += 1;
                    }
                }
            }
        }
        evicted
    }

    /// How many answers are kept, expired ones included.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many octets they have.
    pub(super) fn octets(&self) -> usize {
        self.octets
    }
}

// Which questions an answer holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    ThisType,
    EveryType,
}

// For how many seconds an answer may be kept, and for what; `None` if it may not.
fn keeping(relayed: &Relayed) -> Option<(u32, Scope)> {
    if relayed.is_truncated() {
        return None;
    }
    let layout = relayed.layout();
    let ttls = |section| {
        layout
            .records
            .iter()
            .filter(move |span| span.section == section)
            .filter_map(|span| read_u32(relayed.octets(), span.ttl_at).ok())
            // The top bit set means zero (RFC 2181 section 8).
            .map(|ttl| if i32::try_from(ttl).is_ok() { ttl } else { 0 })
    };
    let answered = ttls(Section::Answer).min();
    let code = relayed.code()?;
    let (ttl, scope) = if code == ResponseCode::NoError && answers_type(relayed) {
        (answered?.min(MAX_TTL), Scope::ThisType)
    } else if code == ResponseCode::NoError || code == ResponseCode::NXDomain {
        // Behind an alias it is the alias's target that is missing, and only its TTL bounds both.
        let negative = negative_ttl(relayed)?.min(MAX_NEGATIVE_TTL);
        let scope = match answered {
            None if code == ResponseCode::NXDomain => Scope::EveryType,
            None | Some(_) => Scope::ThisType,
        };
        (negative.min(answered.unwrap_or(negative)), scope)
    } else {
        return None;
    };
    (ttl > 0).then_some((ttl, scope))
}

// Whether the answer holds what was asked for, not only aliases on the way to nothing.
fn answers_type(relayed: &Relayed) -> bool {
    const CNAME: u16 = 5;
    const ANY: u16 = 255;
    let layout = relayed.layout();
    let asked = layout
        .question
        .end
        .checked_sub(4)
        .and_then(|at| read_u16(relayed.octets(), at).ok());
    layout.records.iter().any(|span| {
        span.section == Section::Answer
            && (Some(span.kind) == asked || asked == Some(ANY) || asked == Some(CNAME))
    })
}

// The smaller of the SOA's own TTL and its last field.
fn negative_ttl(relayed: &Relayed) -> Option<u32> {
    let soa = relayed
        .layout()
        .records
        .iter()
        .find(|span| span.section == Section::Authority && span.kind == TYPE_SOA)?;
    let minimum = soa
        .data
        .end
        .checked_sub(4)
        .filter(|at| *at >= soa.data.start)?;
    let octets = relayed.octets();
    Some(
        read_u32(octets, soa.ttl_at)
            .ok()?
            .min(read_u32(octets, minimum).ok()?),
    )
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
