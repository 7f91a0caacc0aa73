//! Figures of our own process under the names that Prometheus client libraries agree on. Linux only.
//!
//! Source: Prometheus, "Writing client libraries", process metrics; proc_pid_status(5), getrusage(2).

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};

/// Reads the figures when they are asked for. A figure that cannot be read keeps its last value.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    cpu: Counter,
    open_fds: Gauge,
    max_fds: Gauge,
    resident: Gauge,
    virtual_size: Gauge,
    threads: Gauge,
    start_time: Gauge,
    // Two readers at once would both add the same processor time.
    collecting: Mutex<()>,
}

impl ProcessMetrics {
    /// Takes the start time.
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let start_time = Gauge::new(
            "process_start_time_seconds",
            "Start time of the process since the Unix epoch in seconds.",
        )?;
        if let Ok(since_epoch) = SystemTime::now().duration_since(UNIX_EPOCH) {
            start_time.set(since_epoch.as_secs_f64());
        }
        Ok(Self {
            cpu: Counter::new(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
            )?,
            open_fds: Gauge::new("process_open_fds", "Number of open file descriptors.")?,
            max_fds: Gauge::new(
                "process_max_fds",
                "Maximum number of open file descriptors.",
            )?,
            resident: Gauge::new(
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
            )?,
            virtual_size: Gauge::new(
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
            )?,
            threads: Gauge::new("process_threads", "Number of OS threads in the process.")?,
            start_time,
            collecting: Mutex::new(()),
        })
    }

    fn read(&self) {
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let micros = (usage.user_time() + usage.system_time()).num_microseconds();
            let newly = micros as f64 / 1e6 - self.cpu.get();
            if newly > 0.0 {
                self.cpu.inc_by(newly);
            }
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the directory that is being read.
            self.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            self.max_fds.set(soft as f64);
        }
        if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
            let figures = [
                ("VmRSS:", &self.resident),
                ("VmSize:", &self.virtual_size),
                ("Threads:", &self.threads),
            ];
            for (field, gauge) in figures {
                if let Some(value) = status_field(&status, field) {
                    gauge.set(value);
                }
            }
        }
    }

    fn all(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu,
            &self.open_fds,
            &self.max_fds,
            &self.resident,
            &self.virtual_size,
            &self.threads,
            &self.start_time,
        ]
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _held = self
            .collecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.read();
        self.all()
            .into_iter()
            .flat_map(Collector::collect)
            .collect()
    }
}

// A field of /proc/self/status in its base unit: `VmRSS:   1234 kB` is bytes, `Threads: 3` a count.
fn status_field(status: &str, field: &str) -> Option<f64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(field))?;
    let mut words = rest.split_whitespace();
    let number: f64 = words.next()?.parse().ok()?;
    match words.next() {
        None => Some(number),
        Some("kB") => Some(number * 1024.0),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_fields_are_read_in_their_base_unit() {
        let status = "Name:\tviaduct\nVmSize:\t   2048 kB\nThreads:\t3\nVmRSS:\t 7 MB\n";
        assert_eq!(status_field(status, "VmSize:"), Some(2_097_152.0));
        assert_eq!(status_field(status, "Threads:"), Some(3.0));
        assert_eq!(status_field(status, "VmRSS:"), None, "an unknown unit");
        assert_eq!(status_field(status, "VmSwap:"), None);
        assert_eq!(status_field(status, "Name:"), None);
    }

    #[test]
    fn figures_are_plausible_and_processor_time_never_falls() {
        let metrics = ProcessMetrics::new().unwrap();
        metrics.collect();
        let first = metrics.cpu.get();
        metrics.collect();
        assert!(metrics.cpu.get() >= first && first > 0.0);
        assert!(
            metrics.resident.get() > 1e5 && metrics.virtual_size.get() > metrics.resident.get()
        );
        assert!(metrics.open_fds.get() >= 3.0 && metrics.max_fds.get() > metrics.open_fds.get());
        assert!(metrics.threads.get() >= 1.0);
        assert_eq!(metrics.desc().len(), 7);
    }
}
