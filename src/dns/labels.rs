//! The labels of metrics. Every set is closed, so that no client adds time series.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

/// The family of a client, mapped addresses being IPv4.
pub(super) fn family_label(client: IpAddr) -> &'static str {
    match client.to_canonical() {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(_) => "ipv6",
    }
}

/// A type of question; what is rare shares a label.
pub(super) fn type_label(kind: RecordType) -> &'static str {
    const LABELS: [(RecordType, &str); 12] = [
        (RecordType::A, "A"),
        (RecordType::AAAA, "AAAA"),
        (RecordType::ANY, "ANY"),
        (RecordType::CNAME, "CNAME"),
        (RecordType::HTTPS, "HTTPS"),
        (RecordType::MX, "MX"),
        (RecordType::NS, "NS"),
        (RecordType::PTR, "PTR"),
        (RecordType::SOA, "SOA"),
        (RecordType::SRV, "SRV"),
        (RecordType::SVCB, "SVCB"),
        (RecordType::TXT, "TXT"),
    ];
    let known = LABELS.iter().find(|(known, _)| *known == kind);
    known.map_or("other", |(_, label)| label)
}

/// A response code as the metrics label it.
pub(super) fn code_label(code: ResponseCode) -> &'static str {
    const LABELS: [(ResponseCode, &str); 7] = [
        (ResponseCode::NoError, "NOERROR"),
        (ResponseCode::NXDomain, "NXDOMAIN"),
        (ResponseCode::ServFail, "SERVFAIL"),
        (ResponseCode::Refused, "REFUSED"),
        (ResponseCode::FormErr, "FORMERR"),
        (ResponseCode::NotImp, "NOTIMP"),
        (ResponseCode::BADVERS, "BADVERS"),
    ];
    let known = LABELS.iter().find(|(known, _)| *known == code);
    known.map_or("other", |(_, label)| label)
}
