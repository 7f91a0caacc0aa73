//! The annotations by which a Service asks for something other than the default.
//!
//! A value that cannot be read is noted and the default holds: a typing error must not stop traffic.

use std::num::NonZeroU32;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Note;
use crate::model::{
    Algorithm, InvalidEjection, Knobs, OutlierEjection, Protocol, ProxyProtocol, ServicePort,
    SourceIp, parse_go_duration,
};

/// The balancing algorithm.
const LB_ALGORITHM: &str = "viaduct.dev/lb-algorithm";
/// What Cilium calls the same; ours wins where both are set.
const LB_ALGORITHM_ALIAS: &str = "service.cilium.io/lb-algorithm";
/// How long the first attempt to reach a backend may take.
const CONNECT_TIMEOUT: &str = "viaduct.dev/connect-timeout";
/// How many attempts may follow the first.
const RETRIES: &str = "viaduct.dev/retries";
/// TCP connections at a time.
const MAX_CONNECTIONS: &str = "viaduct.dev/max-connections";
/// How long a UDP flow lives without a datagram.
const UDP_IDLE_TIMEOUT: &str = "viaduct.dev/udp-idle-timeout";
/// The header that tells the backend the client's address.
const PROXY_PROTOCOL: &str = "viaduct.dev/proxy-protocol";
/// The address that backends see.
const SOURCE_IP: &str = "viaduct.dev/source-ip";
/// How long a new backend takes to get its full share.
const SLOW_START: &str = "viaduct.dev/slow-start";
/// When a failing backend is left out.
const OUTLIER_EJECTION: &str = "viaduct.dev/outlier-ejection";

/// What the annotations of a Service ask for.
pub(super) fn knobs(metadata: &ObjectMeta, notes: &mut Vec<Note>) -> Knobs {
    let mut reader = Reader { metadata, notes };
    let algorithm_key = if reader.has(LB_ALGORITHM) {
        LB_ALGORITHM
    } else {
        LB_ALGORITHM_ALIAS
    };
    Knobs {
        algorithm: reader.take(algorithm_key, parse_algorithm),
        connect_timeout: reader.take(CONNECT_TIMEOUT, parse_duration),
        retries: reader.take(RETRIES, parse_retries),
        max_connections: reader.take(MAX_CONNECTIONS, parse_count),
        udp_idle_timeout: reader.take(UDP_IDLE_TIMEOUT, parse_duration),
        proxy_protocol: reader.take(PROXY_PROTOCOL, parse_proxy_protocol),
        source_ip: reader.take(SOURCE_IP, parse_source_ip),
        slow_start: reader.take(SLOW_START, parse_duration),
        outlier_ejection: reader.take(OUTLIER_EJECTION, parse_ejection),
    }
}

/// Notes the ports for which an annotation has no meaning.
pub(super) fn note_idle_annotations(knobs: &Knobs, ports: &[ServicePort], notes: &mut Vec<Note>) {
    let udp = ports.iter().filter(|port| port.protocol == Protocol::Udp);
    let udp: Vec<String> = udp.map(|port| port.port.to_string()).collect();
    if knobs.proxy_protocol.is_some() && !udp.is_empty() {
        let field = format!("metadata.annotations[{PROXY_PROTOCOL}]");
        let message = format!(
            "datagrams carry no such header; port {}/UDP is served without it",
            udp.join(", ")
        );
        notes.push(Note::new(field, message));
    }
}

// Reads one annotation after the other and notes what it cannot read.
struct Reader<'a> {
    metadata: &'a ObjectMeta,
    notes: &'a mut Vec<Note>,
}

impl Reader<'_> {
    fn take<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.metadata.annotations.as_ref()?.get(key)?;
        parse(value.trim())
            .map_err(|why| {
                let field = format!("metadata.annotations[{key}]");
                self.notes
                    .push(Note::new(field, format!("{why}; the default is used")));
            })
            .ok()
    }

    fn has(&self, key: &str) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.is_some_and(|annotations| annotations.contains_key(key))
    }
}

fn parse_algorithm(value: &str) -> Result<Algorithm, String> {
    Algorithm::parse(value).ok_or_else(|| {
        let known: Vec<&str> = Algorithm::ALL.iter().map(|(name, _)| *name).collect();
        format!("{value:?} is none of {}", known.join(", "))
    })
}

fn parse_duration(value: &str) -> Result<Duration, String> {
    match parse_go_duration(value) {
        Ok(Duration::ZERO) => Err("must be more than 0".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_retries(value: &str) -> Result<u8, String> {
    match value.parse() {
        Ok(retries) if retries <= Knobs::MAX_RETRIES => Ok(retries),
        _ => Err(format!(
            "{value:?} is no number from 0 to {}",
            Knobs::MAX_RETRIES
        )),
    }
}

fn parse_count(value: &str) -> Result<NonZeroU32, String> {
    value
        .parse()
        .map_err(|_| format!("{value:?} is no number from 1 to {}", u32::MAX))
}

fn parse_proxy_protocol(value: &str) -> Result<ProxyProtocol, String> {
    let mut known = ProxyProtocol::ALL.iter();
    let known = known.find(|(name, _)| *name == value);
    known
        .map(|(_, version)| *version)
        .ok_or_else(|| format!("{value:?} is none of v1, v2"))
}

fn parse_source_ip(value: &str) -> Result<SourceIp, String> {
    match value {
        SourceIp::TRANSPARENT => Ok(SourceIp::Transparent),
        _ => Err(format!("{value:?} is not {}", SourceIp::TRANSPARENT)),
    }
}

fn parse_ejection(value: &str) -> Result<OutlierEjection, String> {
    value
        .parse()
        .map_err(|error: InvalidEjection| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::service_port;

    fn read(annotations: &[(&str, &str)]) -> (Knobs, Vec<Note>) {
        let annotations = annotations
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()));
        let metadata = ObjectMeta {
            annotations: Some(annotations.collect()),
            ..ObjectMeta::default()
        };
        let mut notes = Vec::new();
        (knobs(&metadata, &mut notes), notes)
    }

    #[test]
    fn without_annotations_everything_is_the_default() {
        let mut notes = Vec::new();
        assert_eq!(knobs(&ObjectMeta::default(), &mut notes), Knobs::default());
        assert_eq!(notes, []);
    }

    #[test]
    fn known_values_are_taken() {
        let (knobs, notes) = read(&[
            (LB_ALGORITHM, "least-connection"),
            (UDP_IDLE_TIMEOUT, " 1m30s "),
        ]);
        assert_eq!(knobs.algorithm, Some(Algorithm::LeastConnection));
        assert_eq!(knobs.udp_idle_timeout, Some(Duration::from_secs(90)));
        assert_eq!(notes, []);
    }

    #[test]
    fn every_knob_is_read() {
        let (knobs, notes) = read(&[
            (CONNECT_TIMEOUT, "100ms"),
            (RETRIES, "10"),
            (MAX_CONNECTIONS, "1"),
            (PROXY_PROTOCOL, "v2"),
            (SOURCE_IP, "transparent"),
            (SLOW_START, "30s"),
            (OUTLIER_EJECTION, "5"),
        ]);
        let wanted = Knobs {
            connect_timeout: Some(Duration::from_millis(100)),
            retries: Some(10),
            max_connections: NonZeroU32::new(1),
            proxy_protocol: Some(ProxyProtocol::V2),
            source_ip: Some(SourceIp::Transparent),
            slow_start: Some(Duration::from_secs(30)),
            outlier_ejection: NonZeroU32::new(5).map(OutlierEjection::After),
            ..Knobs::default()
        };
        assert_eq!((knobs, notes), (wanted, Vec::new()));
        let (knobs, notes) = read(&[
            (RETRIES, "0"),
            (PROXY_PROTOCOL, "v1"),
            (OUTLIER_EJECTION, "off"),
        ]);
        let wanted = Knobs {
            retries: Some(0),
            proxy_protocol: Some(ProxyProtocol::V1),
            outlier_ejection: Some(OutlierEjection::Off),
            ..Knobs::default()
        };
        assert_eq!((knobs, notes), (wanted, Vec::new()));
    }

    #[test]
    fn the_proxy_protocol_over_udp_is_noted() {
        let (knobs, _) = read(&[(PROXY_PROTOCOL, "v2")]);
        let noted = |knobs: &Knobs, ports: &[ServicePort]| {
            let mut notes = Vec::new();
            note_idle_annotations(knobs, ports, &mut notes);
            notes
        };
        let tcp = service_port("t", Protocol::Tcp, 53);
        let udp = service_port("u", Protocol::Udp, 5353);
        assert_eq!(noted(&knobs, std::slice::from_ref(&tcp)), []);
        assert_eq!(noted(&Knobs::default(), std::slice::from_ref(&udp)), []);
        let [note] = &noted(&knobs, &[tcp, udp])[..] else {
            panic!("one note")
        };
        assert_eq!(
            note.field,
            "metadata.annotations[viaduct.dev/proxy-protocol]"
        );
        assert!(note.message.contains("port 5353/UDP"), "{note}");
    }

    #[test]
    fn the_alias_counts_only_without_our_own() {
        let (knobs, _) = read(&[(LB_ALGORITHM_ALIAS, "least-connection")]);
        assert_eq!(knobs.algorithm, Some(Algorithm::LeastConnection));
        let (knobs, _) = read(&[
            (LB_ALGORITHM_ALIAS, "least-connection"),
            (LB_ALGORITHM, "round-robin"),
        ]);
        assert_eq!(knobs.algorithm, Some(Algorithm::RoundRobin));
    }

    #[test]
    fn bad_values_are_noted_and_the_default_holds() {
        for value in ["fastest", "", "Round-Robin"] {
            let (knobs, notes) = read(&[(LB_ALGORITHM, value)]);
            assert_eq!(knobs, Knobs::default(), "{value}");
            assert_eq!(
                notes[0].field,
                "metadata.annotations[viaduct.dev/lb-algorithm]"
            );
            assert!(
                notes[0].message.contains("least-connection"),
                "{}",
                notes[0]
            );
        }
        for (key, values) in [
            (UDP_IDLE_TIMEOUT, &["0s", "-1s", "60", "soon"][..]),
            (CONNECT_TIMEOUT, &["0ms", ""]),
            (RETRIES, &["11", "-1", "many", "256"]),
            (MAX_CONNECTIONS, &["0", "-5", "4294967296"]),
            (PROXY_PROTOCOL, &["v3", "V1", ""]),
            (SOURCE_IP, &["node", "Transparent", ""]),
            (SLOW_START, &["0s", "10"]),
            (OUTLIER_EJECTION, &["0", "on", "5%"]),
        ] {
            for value in values {
                let (knobs, notes) = read(&[(key, value)]);
                assert_eq!((knobs, notes.len()), (Knobs::default(), 1), "{key}={value}");
                assert_eq!(notes[0].field, format!("metadata.annotations[{key}]"));
            }
        }
    }
}
