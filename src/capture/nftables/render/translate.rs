//! The chains of the table that translates destinations. Pure.
//!
//! ```text
//!   packet ─► conntrack ─► nat (-110): silence, capture ─► routing ─► nat (input): guard ─► listener
//!                            output: what was not captured, guard, refuse
//!                                                         └─► refuse (forward)
//! ```
//!
//! The kernel asks `nat` about the first packet of a flow alone, so silence, refusal and guard cost the others nothing: a
//! filter chain in output cost 2.5 % of small requests, one in input 2.5 % of connections and 3 % of datagrams. (A drop in
//! `nat` is nftables' privilege; iptables refuses it.) Flows from before the guard are forgotten by `stale_flows`; the node's
//! own pass `nat` in output and not in input.

use std::net::IpAddr;

use crate::model::Family;

use super::family_word;

/// The chains under `family`; captured traffic is led to the address `landing`, or to that of the interface it came in
/// by.
pub(super) fn chains(family: Family, landing: Option<IpAddr>) -> String {
    let ip = family_word(family);
    let icmp = match family {
        Family::V4 => "icmp",
        Family::V6 => "icmpv6",
    };
    let lead = match landing {
        Some(IpAddr::V4(address)) => format!("dnat to {address} :"),
        Some(IpAddr::V6(address)) => format!("dnat to [{address}] :"),
        None => "redirect to :".to_owned(),
    };
    format!(
        "\tchain silence {{
\t\t{ip} daddr . meta l4proto . th dport @silent drop
\t\t{ip} daddr . meta l4proto . th dport @restricted {ip} daddr . meta l4proto . th dport . {ip} saddr != @allowed_sources drop
\t}}

\tchain capture {{
\t\tmeta l4proto {{ tcp, udp }} {lead} {ip} daddr . meta l4proto . th dport map @redirects
\t\t{ip} daddr @node_addresses meta l4proto {{ tcp, udp }} {lead} meta l4proto . th dport map @node_ports
\t}}

\tchain refuse {{
\t\t{ip} daddr @cluster_ips meta l4proto tcp reject with tcp reset
\t\t{ip} daddr @cluster_ips meta l4proto udp reject with {icmp} type port-unreachable
\t}}

\tchain guard {{
\t\tudp dport @guarded ct status & dnat == 0 counter name uncaptured drop
\t}}

\tchain capture_in {{
\t\ttype nat hook prerouting priority -110; policy accept;
\t\tjump silence
\t\t{ip} saddr != @pods {ip} daddr . meta l4proto . th dport @silent_outside drop
\t\tjump capture
\t}}

\tchain capture_out {{
\t\ttype nat hook output priority -110; policy accept;
\t\tjump silence
\t\tjump capture
\t\toif lo jump guard
\t\tjump refuse
\t}}

\tchain refuse_forward {{
\t\ttype filter hook forward priority 0; policy accept;
\t\tct status confirmed accept
\t\tjump refuse
\t}}

\tchain guard_in {{
\t\ttype nat hook input priority -110; policy accept;
\t\tjump guard
\t}}
"
    )
}
