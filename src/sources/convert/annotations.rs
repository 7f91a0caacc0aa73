//! The annotations by which a Service asks for something other than the default.
//!
//! A value that cannot be read is noted and the default holds: a typing error must not stop traffic.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Note;
use crate::model::{Algorithm, Knobs};
use crate::sources::go_duration::parse_go_duration;

/// The balancing algorithm.
const LB_ALGORITHM: &str = "viaduct.dev/lb-algorithm";
/// What Cilium calls the same; ours wins where both are set.
const LB_ALGORITHM_ALIAS: &str = "service.cilium.io/lb-algorithm";
/// How long a UDP flow lives without a datagram.
const UDP_IDLE_TIMEOUT: &str = "viaduct.dev/udp-idle-timeout";

/// What the annotations of a Service ask for.
pub(super) fn knobs(metadata: &ObjectMeta, notes: &mut Vec<Note>) -> Knobs {
    let read = |key| Some((key, metadata.annotations.as_ref()?.get(key)?.trim()));
    Knobs {
        algorithm: read(LB_ALGORITHM)
            .or_else(|| read(LB_ALGORITHM_ALIAS))
            .and_then(|(key, value)| noted(key, parse_algorithm(value), notes)),
        udp_idle_timeout: read(UDP_IDLE_TIMEOUT)
            .and_then(|(key, value)| noted(key, parse_timeout(value), notes)),
    }
}

fn noted<T>(key: &str, parsed: Result<T, String>, notes: &mut Vec<Note>) -> Option<T> {
    parsed
        .map_err(|why| {
            let field = format!("metadata.annotations[{key}]");
            notes.push(Note::new(field, format!("{why}; the default is used")));
        })
        .ok()
}

fn parse_algorithm(value: &str) -> Result<Algorithm, String> {
    Algorithm::parse(value).ok_or_else(|| {
        let known: Vec<&str> = Algorithm::ALL.iter().map(|(name, _)| *name).collect();
        format!("{value:?} is none of {}", known.join(", "))
    })
}

fn parse_timeout(value: &str) -> Result<Duration, String> {
    match parse_go_duration(value) {
        Ok(Duration::ZERO) => Err("must be more than 0".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for value in ["0s", "-1s", "60", "soon"] {
            let (knobs, notes) = read(&[(UDP_IDLE_TIMEOUT, value)]);
            assert_eq!((knobs, notes.len()), (Knobs::default(), 1), "{value}");
        }
    }
}
