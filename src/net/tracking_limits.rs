//! What connection tracking may hold and for how long: the sysctls that kube-proxy sets, in our network namespace.
//!
//! Owns the arithmetic of the largest number of connections and the files; who wants which values is not its affair.
//! Nothing is written that holds already, and nothing is put back at the end: other programs may rely on it by then.
//! kube-proxy writes its defaults even where they are less than what is there; here they are a floor (`raise`).
//! Source: kubernetes/pkg/proxy/conntrack `setSysctls`; the kernel's nf_conntrack-sysctl documentation.

use std::io;
use std::path::Path;
use std::time::Duration;

/// Where the kernel shows the sysctls of connection tracking. They are those of the namespace of whoever looks.
const SYSCTLS: &str = "/proc/sys/net/netfilter";

/// How many connections there may be.
const MAX: &str = "nf_conntrack_max";

/// Buckets of the table of all namespaces; four connections to a bucket are as many as kube-proxy allows.
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// As many connections as a machine with many cores gets without being asked: what they take is a few hundred MB.
const MAX_SCALED: u64 = 1 << 20;

/// Whether a value that is there does for one that is wanted.
type Holds = fn(u64, u64) -> bool;
const EXACTLY: Holds = |held, wanted| held == wanted;
const ENOUGH: Holds = |held, wanted| held >= wanted;

/// What connection tracking shall do. What is absent or zero stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackingLimits {
    /// Connections for each core.
    pub max_per_core: Option<u32>,
    /// Connections that are allowed however few cores there are.
    pub min: Option<u32>,
    /// Silence after which an established TCP connection is forgotten; whole seconds.
    pub tcp_established: Option<Duration>,
    /// The same where one side has ended.
    pub tcp_close_wait: Option<Duration>,
    /// Whether segments outside of the window pass as part of their connection.
    pub tcp_be_liberal: bool,
    /// Silence after which datagrams that nobody answered are forgotten.
    pub udp: Option<Duration>,
    /// The same for datagrams in both directions.
    pub udp_stream: Option<Duration>,
}

/// A value that could not be set.
#[derive(Debug, thiserror::Error)]
#[error("{file} = {value}: {source}")]
pub struct SetLimitError {
    /// The file it belongs into.
    pub file: String,
    /// The value.
    pub value: u64,
    /// Why: not permitted (most of these belong to the host), or not there (a kernel without connection tracking).
    pub source: io::Error,
}

impl SetLimitError {
    /// The sysctl and its value.
    pub fn assignment(&self) -> String {
        let name = self.file.rsplit('/').next().unwrap_or_default();
        format!("{name}={}", self.value)
    }
}

impl TrackingLimits {
    /// Sets what is not so yet, on a machine of `cores`. Returns what was set, and what could not be; one does not keep
    /// the others from being set.
    pub fn set(&self, cores: usize) -> (Vec<(&'static str, u64)>, Vec<SetLimitError>) {
        self.set_below(Path::new(SYSCTLS), Path::new(BUCKETS), cores, EXACTLY)
    }

    /// The same for what is less so far: nothing becomes less, nor shorter.
    pub fn raise(&self, cores: usize) -> (Vec<(&'static str, u64)>, Vec<SetLimitError>) {
        self.set_below(Path::new(SYSCTLS), Path::new(BUCKETS), cores, ENOUGH)
    }

    fn set_below(
        &self,
        sysctls: &Path,
        buckets: &Path,
        cores: usize,
        holds: Holds,
    ) -> (Vec<(&'static str, u64)>, Vec<SetLimitError>) {
        let (mut set, mut failed) = (Vec::new(), Vec::new());
        let mut note = |name, value, outcome| match outcome {
            Ok(true) => set.push((name, value)),
            Ok(false) => {}
            Err(error) => failed.push(error),
        };
        if let Some(max) = self.max(cores) {
            let outcome = write_unless(&sysctls.join(MAX), max, |held| holds(held, max));
            let allowed = outcome.is_ok();
            note(MAX, max, outcome);
            // More buckets are of no use to fewer connections.
            let wanted = max / 4;
            if allowed {
                let outcome = write_unless(buckets, wanted, |held| held >= wanted);
                note("hashsize", wanted, outcome);
            }
        }
        for (name, value) in self.values() {
            let outcome = write_unless(&sysctls.join(name), value, |held| holds(held, value));
            note(name, value, outcome);
        }
        (set, failed)
    }

    /// The largest number of connections; `None` = left as it is.
    ///
    /// Source: kube-proxy `getConntrackMax`.
    fn max(&self, cores: usize) -> Option<u64> {
        let per_core = u64::from(self.max_per_core.filter(|n| *n > 0)?);
        let scaled = per_core.saturating_mul(u64::try_from(cores).unwrap_or(u64::MAX));
        let min = u64::from(self.min.unwrap_or(0));
        Some(if scaled > MAX_SCALED {
            MAX_SCALED
        } else {
            scaled.max(min)
        })
    }

    fn values(&self) -> Vec<(&'static str, u64)> {
        // Less than a second is no second, which the kernel would take for "at once".
        let seconds =
            |limit: Option<Duration>| limit.map(|limit| limit.as_secs()).filter(|n| *n > 0);
        let wanted = [
            (
                "nf_conntrack_tcp_timeout_established",
                seconds(self.tcp_established),
            ),
            (
                "nf_conntrack_tcp_timeout_close_wait",
                seconds(self.tcp_close_wait),
            ),
            (
                "nf_conntrack_tcp_be_liberal",
                self.tcp_be_liberal.then_some(1),
            ),
            ("nf_conntrack_udp_timeout", seconds(self.udp)),
            ("nf_conntrack_udp_timeout_stream", seconds(self.udp_stream)),
        ];
        let given = wanted.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// The machine's cores, of which a container may use only some. Source: sysfs-devices-system-cpu.
pub fn online_cores() -> usize {
    let shown = std::fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let usable = || std::thread::available_parallelism().map_or(1, usize::from);
    shown.and_then(|text| count(&text)).unwrap_or_else(usable)
}

// Of a list such as `0-3,8`.
fn count(list: &str) -> Option<usize> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim()
        .split(',')
        .try_fold(0usize, |sum, text| sum.checked_add(range(text)?))
}

// True if it was not so already. What cannot be read is written.
fn write_unless(
    file: &Path,
    value: u64,
    holds: impl Fn(u64) -> bool,
) -> Result<bool, SetLimitError> {
    let held = std::fs::read_to_string(file).ok();
    if held.is_some_and(|text| text.trim().parse().is_ok_and(&holds)) {
        return Ok(false);
    }
    // Not created where there is none: it would be a file like any other.
    let write = || {
        let mut opened = std::fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(file)?;
        io::Write::write_all(&mut opened, value.to_string().as_bytes())
    };
    write().map(|()| true).map_err(|source| SetLimitError {
        file: file.display().to_string(),
        value,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_max(max_per_core: u32, min: u32) -> TrackingLimits {
        TrackingLimits {
            max_per_core: Some(max_per_core),
            min: Some(min),
            ..TrackingLimits::default()
        }
    }

    #[test]
    fn the_largest_number_follows_the_cores_between_two_bounds() {
        let max = |cores| with_max(32_768, 131_072).max(cores);
        assert_eq!(max(1), Some(131_072));
        assert_eq!(max(4), Some(131_072));
        assert_eq!(max(5), Some(163_840));
        assert_eq!(max(32), Some(1_048_576));
        assert_eq!(max(33), Some(1_048_576));
        assert_eq!(with_max(0, 131_072).max(4), None, "left alone");
        assert_eq!(TrackingLimits::default().max(4), None);
        // The bound is on what follows from the cores; who asks for more gets it.
        assert_eq!(with_max(1, 2_000_000).max(1), Some(2_000_000));
    }

    #[test]
    fn cores_are_counted_by_ranges() {
        for (list, cores) in [
            ("0\n", Some(1)),
            ("0-3,8", Some(5)),
            ("", None),
            ("3-0", None),
        ] {
            assert_eq!(count(list), cores, "{list}");
        }
        assert!(online_cores() > 0);
    }

    #[test]
    fn only_what_was_asked_for_and_does_not_hold_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        let buckets = place("hashsize");
        for (name, held) in [
            ("nf_conntrack_max", "1000"),
            ("nf_conntrack_tcp_timeout_established", "432000"),
            ("nf_conntrack_udp_timeout", "30"),
            ("hashsize", "100"),
        ] {
            std::fs::write(place(name), held).unwrap();
        }
        let limits = TrackingLimits {
            tcp_established: Some(Duration::from_secs(86_400)),
            udp: Some(Duration::from_millis(30_900)),
            udp_stream: Some(Duration::ZERO),
            tcp_close_wait: Some(Duration::from_millis(900)),
            ..with_max(1000, 0)
        };
        let (set, failed) = limits.set_below(directory.path(), &buckets, 2, EXACTLY);
        assert!(failed.is_empty(), "{failed:?}");
        let expected = [
            ("nf_conntrack_max", 2000),
            ("hashsize", 500),
            ("nf_conntrack_tcp_timeout_established", 86_400),
        ];
        assert_eq!(set, expected);
        assert_eq!(std::fs::read_to_string(&buckets).unwrap(), "500");
        assert_eq!(
            limits.set_below(directory.path(), &buckets, 2, EXACTLY).0,
            [],
            "a second time there is nothing to do"
        );
    }

    #[test]
    fn a_floor_raises_and_never_lowers() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        for (name, held) in [
            ("nf_conntrack_max", "1000"),
            ("nf_conntrack_tcp_timeout_established", "432000"),
            ("nf_conntrack_tcp_timeout_close_wait", "60"),
            ("hashsize", "1000"),
        ] {
            std::fs::write(place(name), held).unwrap();
        }
        let raise = |max| {
            let floor = TrackingLimits {
                tcp_established: Some(Duration::from_secs(86_400)),
                tcp_close_wait: Some(Duration::from_secs(3600)),
                ..with_max(max, 0)
            };
            floor
                .set_below(directory.path(), &place("hashsize"), 1, ENOUGH)
                .0
        };
        let close_wait = ("nf_conntrack_tcp_timeout_close_wait", 3600);
        assert_eq!(raise(1000), [close_wait]);
        assert_eq!(raise(999), []);
        assert_eq!(raise(1001), [("nf_conntrack_max", 1001)]);
    }

    #[test]
    fn one_that_cannot_be_set_is_named_and_the_others_are() {
        let directory = tempfile::tempdir().unwrap();
        let liberal = directory.path().join("nf_conntrack_tcp_be_liberal");
        std::fs::write(&liberal, "0\n").unwrap();
        let limits = TrackingLimits {
            tcp_be_liberal: true,
            ..with_max(1000, 0)
        };
        let buckets = directory.path().join("hashsize");
        let (set, failed) = limits.set_below(directory.path(), &buckets, 1, EXACTLY);
        assert_eq!(set, [("nf_conntrack_tcp_be_liberal", 1)]);
        assert_eq!(std::fs::read_to_string(&liberal).unwrap(), "1");
        let [error] = &failed[..] else {
            panic!("{failed:?}")
        };
        assert!(
            error
                .to_string()
                .contains("nf_conntrack_max = 1000: No such file")
        );
        assert!(!directory.path().join("nf_conntrack_max").exists());
    }
}
