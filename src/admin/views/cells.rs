//! Cells as kubectl writes them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// `text`, or what stands for nothing.
pub(super) fn or(text: String, empty: &str) -> String {
    if text.is_empty() {
        empty.to_owned()
    } else {
        text
    }
}

/// `text`, or `<none>`.
pub(super) fn or_none(text: String) -> String {
    or(text, "<none>")
}

/// How long ago an object was made: the two largest units while they matter.
pub(super) fn age(metadata: &ObjectMeta, now: Timestamp) -> String {
    let Some(created) = &metadata.creation_timestamp else {
        return "<unknown>".to_owned();
    };
    let seconds = now.as_second().saturating_sub(created.0.as_second());
    span(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// How long something has lasted: the two largest units while they matter.
pub(super) fn span(lasted: Duration) -> String {
    let seconds = lasted.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => format!("{minutes}m{}s", seconds % 60),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => format!("{hours}h{}m", minutes % 60),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

/// A time that was measured, to three digits at most.
pub(super) fn measured(time: Duration) -> String {
    let micros = time.as_micros();
    let tenth = |n: u128, unit: u128| format!("{}.{}", n / unit, n % unit / (unit / 10));
    match micros {
        0..1_000 => format!("{micros}µs"),
        1_000..1_000_000 => tenth(micros, 1_000) + "ms",
        _ => tenth(micros, 1_000_000) + "s",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_written_as_kubectl_writes_them() {
        let now = Timestamp::from_second(10_000_000).unwrap();
        let rows = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m0s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h0m"),
            (28_800, "8h"),
            (172_800, "2d0h"),
            (691_200, "8d"),
        ];
        for (seconds, expected) in rows {
            let created = Timestamp::from_second(10_000_000 - seconds).unwrap();
            let metadata = ObjectMeta {
                creation_timestamp: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                    created,
                )),
                ..ObjectMeta::default()
            };
            assert_eq!(age(&metadata, now), expected);
        }
        assert_eq!(age(&ObjectMeta::default(), now), "<unknown>");
    }
}
