//! The metrics registry: build and process figures, and the text that `/metrics` answers with.
//!
//! Every other figure is registered by the module that counts it.

use prometheus::{Encoder, IntGauge, Opts, Registry, TextEncoder};

use super::process::ProcessMetrics;

/// A registry that already holds `viaduct_build_info` and the `process_` figures. Call it once at start: the start time
/// is taken here.
///
/// # Errors
///
/// Never in practice: the names are fixed and the registry is new.
pub fn registry() -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    registry.register(Box::new(build_info()?))?;
    registry.register(Box::new(ProcessMetrics::new()?))?;
    Ok(registry)
}

/// All figures in the Prometheus text format, version 0.0.4. A family that does not encode is left out and logged.
pub fn render(registry: &Registry) -> String {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    for family in registry.gather() {
        let before = text.len();
        if let Err(error) = encoder.encode(std::slice::from_ref(&family), &mut text) {
            text.truncate(before);
            tracing::error!(metric = family.name(), %error, "metric left out");
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn build_info() -> Result<IntGauge, prometheus::Error> {
    let info = IntGauge::with_opts(
        Opts::new(
            "viaduct_build_info",
            "The running build; the value is always 1.",
        )
        .const_label("version", env!("CARGO_PKG_VERSION"))
        .const_label("arch", std::env::consts::ARCH),
    )?;
    info.set(1);
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_holds_the_build_and_the_process() {
        let text = render(&registry().unwrap());
        let build = format!(
            "viaduct_build_info{{arch=\"{}\",version=\"{}\"}} 1\n",
            std::env::consts::ARCH,
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.contains(&build), "{text}");
        for name in [
            "process_cpu_seconds_total",
            "process_open_fds",
            "process_max_fds",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_threads",
            "process_start_time_seconds",
        ] {
            let help = format!("# HELP {name} ");
            assert!(text.lines().any(|line| line.starts_with(&help)), "{name}");
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            assert!(
                value.unwrap().parse::<f64>().unwrap() >= 0.0,
                "{name}: {value:?}"
            );
        }
    }

    #[test]
    fn a_family_without_samples_does_not_hide_the_others() {
        let registry = registry().unwrap();
        let empty =
            prometheus::IntCounterVec::new(Opts::new("viaduct_nothing_total", "Never."), &["a"]);
        registry.register(Box::new(empty.unwrap())).unwrap();
        assert!(render(&registry).contains("viaduct_build_info"));
    }
}
