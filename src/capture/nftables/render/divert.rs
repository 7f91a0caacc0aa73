//! The chains of the table that diverts packets to transparent sockets, unchanged and without connection tracking. Pure.
//!
//! ```text
//!   from outside ─► divert_in (prerouting) ─► assigned and marked ─► policy route: local ─► listener
//!   from here ─► divert_out (output): marked ─► policy route: lo ─► divert_in, as above
//! ```
//!
//! What belongs to a transparent socket already, a connection or a datagram for a bound address, is found first, so
//! established connections need no element of any set. The node calls an address that is local (`tproxy`) from that very
//! address, and is answered there. The mark makes the policy route of `tproxy` apply.

use crate::model::Family;

use super::super::MARK;
use super::family_word;

/// The chains under `family`.
pub(super) fn chains(family: Family) -> String {
    let ip = family_word(family);
    let icmp = match family {
        Family::V4 => "icmp",
        Family::V6 => "icmpv6",
    };
    let frontend = format!("{ip} daddr . meta l4proto . th dport");
    let mark = format!("meta mark set meta mark or {MARK:#x}");
    format!(
        "\tchain silence {{
\t\t{frontend} @silent drop
\t\t{frontend} @restricted {frontend} . {ip} saddr != @allowed_sources drop
\t\tiif != lo {ip} saddr != @pods {frontend} @silent_outside drop
\t}}

\tchain divert_in {{
\t\ttype filter hook prerouting priority -150; policy accept;
\t\tmeta l4proto {{ tcp, udp }} socket wildcard 0 socket transparent 1 {mark} accept
\t\ttcp flags & (fin|syn|rst|ack) == syn jump silence
\t\tmeta l4proto tcp tproxy to : {frontend} map @redirects {mark} accept
\t\tmeta l4proto tcp {ip} daddr @node_addresses tproxy to : meta l4proto . th dport map @node_ports {mark} accept
\t\tmeta l4proto udp {frontend} @frontends {mark} accept
\t\tmeta l4proto tcp {frontend} @frontends reject with tcp reset
\t}}

\tchain divert_out {{
\t\ttype route hook output priority -150; policy accept;
\t\tmeta l4proto {{ tcp, udp }} {frontend} @frontends {mark}
\t}}

\tchain refuse {{
\t\tmeta l4proto {{ tcp, udp }} {frontend} @frontends return
\t\t{ip} daddr @cluster_ips meta l4proto tcp reject with tcp reset
\t\t{ip} daddr @cluster_ips meta l4proto udp reject with {icmp} type port-unreachable
\t}}

\tchain refuse_forward {{
\t\ttype filter hook forward priority 0; policy accept;
\t\tjump refuse
\t}}

\tchain refuse_out {{
\t\ttype filter hook output priority 0; policy accept;
\t\t{ip} saddr != @cluster_ips jump refuse
\t}}
"
    )
}
