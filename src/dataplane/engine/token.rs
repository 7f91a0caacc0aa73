//! What an event is about, as the 64 bits that epoll and the timers carry. Pure.

use super::super::udp::FlowId;
use super::slab::Key;

/// The receiver of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Token {
    /// The control side has something to say.
    Mailbox,
    /// The end of the thread's patience while it drains.
    Patience,
    /// Connections that have been open for a while.
    Settling,
    /// A TCP listener.
    TcpListener(Key),
    /// A connection's client side, and its timer.
    Client(Key),
    /// A connection's backend side.
    Backend(Key),
    /// A UDP listener, and its timer.
    UdpListener(Key),
    /// The socket of one flow of a UDP listener in that place.
    UdpFlow(u32, FlowId),
}

// From the top: 3 bits of kind; then a key's place (29) and turn (32); or for a flow its listener's place (21), its own
// place (24) and turn (16). Descriptors bound all places (at most 2^20 in a process). A turn that comes round again is no
// danger: events live no longer than one batch of them.
const KIND: u32 = 61;
const PLACE: u32 = 32;

impl Token {
    /// As a number.
    pub(in super::super) fn to_bits(self) -> u64 {
        let keyed = |kind: u64, key: Key| {
            kind << KIND | u64::from(key.place) << PLACE | u64::from(key.turn)
        };
        match self {
            Self::Mailbox => 0,
            Self::Patience => 1,
            Self::Settling => 2,
            Self::TcpListener(key) => keyed(1, key),
            Self::Client(key) => keyed(2, key),
            Self::Backend(key) => keyed(3, key),
            Self::UdpListener(key) => keyed(4, key),
            Self::UdpFlow(listener, flow) => {
                5 << KIND
                    | u64::from(listener) << 40
                    | u64::from(flow.place) << 16
                    | u64::from(flow.turn)
            }
        }
    }

    /// The token of that number; `None` if it is none.
    pub(in super::super) fn from_bits(bits: u64) -> Option<Self> {
        let field =
            |from: u32, width: u32| u32::try_from(bits >> from & ((1 << width) - 1)).unwrap_or(0);
        let key = Key {
            place: field(PLACE, 29),
            turn: field(0, 32),
        };
        Some(match (bits >> KIND, bits) {
            (0, 0) => Self::Mailbox,
            (0, 1) => Self::Patience,
            (0, 2) => Self::Settling,
            (1, _) => Self::TcpListener(key),
            (2, _) => Self::Client(key),
            (3, _) => Self::Backend(key),
            (4, _) => Self::UdpListener(key),
            (5, _) => {
                let flow = FlowId {
                    place: field(16, 24),
                    turn: u16::try_from(field(0, 16)).unwrap_or(0),
                };
                Self::UdpFlow(field(40, 21), flow)
            }
            _unknown => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way_through_the_kernel() {
        let keys =
            [(0, 0), (1, 2), ((1 << 29) - 1, u32::MAX)].map(|(place, turn)| Key { place, turn });
        let flows =
            [(0, 0), (3, 4), ((1 << 24) - 1, u16::MAX)].map(|(place, turn)| FlowId { place, turn });
        let mut all = vec![Token::Mailbox, Token::Patience, Token::Settling];
        for key in keys {
            all.extend([
                Token::TcpListener(key),
                Token::Client(key),
                Token::Backend(key),
                Token::UdpListener(key),
            ]);
        }
        for flow in flows {
            all.extend([0, 7, (1 << 21) - 1].map(|listener| Token::UdpFlow(listener, flow)));
        }
        for (index, token) in all.iter().enumerate() {
            assert_eq!(Token::from_bits(token.to_bits()), Some(*token));
            let others = &all[index + 1..];
            assert!(
                others
                    .iter()
                    .all(|other| other.to_bits() != token.to_bits())
            );
        }
        assert_eq!(Token::from_bits(7 << KIND), None);
    }
}
