//! The flags of kube-proxy that are not ours as well, so that a command line written for it starts us.
//!
//! Those with a meaning here become [`Settings`]; the others are taken with whatever value and named in a warning.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::values::{GoDuration, Text};
use crate::config::{ConfigError, Settings};

use super::fields::{Invalid, Servers, mode};

/// What kube-proxy understands beyond our own settings.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct KubeProxyFlags {
    /// As in kube-proxy: iptables and nftables are ways to capture; userspace and ipvs leave the choice to --capture
    #[arg(long, value_name = "MODE")]
    proxy_mode: Option<String>,

    /// As in kube-proxy: an IPv6 address moves the default addresses of health and metrics to IPv6
    #[arg(long, value_name = "IP")]
    bind_address: Option<String>,

    /// Verbosity as in kube-proxy: 4 = debug, 6 = trace; --log wins
    #[arg(short, long = "v", value_name = "N", allow_hyphen_values = true)]
    pub v: Option<i32>,

    /// Remove every rule that viaduct owns, and exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub cleanup: Option<bool>,

    /// Exit at once: there is nothing to prepare that needs more privilege than running does
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide = true)]
    pub init_only: Option<bool>,

    /// As in kube-proxy's userspace mode: how long a UDP flow lives without a datagram
    #[arg(long, value_name = "DURATION", hide = true)]
    udp_timeout: Option<Text<GoDuration>>,

    /// Write the configuration that would be used to this file (- = standard output), and exit
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<std::path::PathBuf>,

    #[command(flatten)]
    meaningless: Meaningless,
}

impl KubeProxyFlags {
    /// What they set.
    ///
    /// # Errors
    ///
    /// Values that kube-proxy refuses too, by their flag.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        self.checked()
            .map_err(|Invalid { field, message }| ConfigError::Value {
                flag: field,
                message,
            })
    }

    fn checked(&self) -> Result<Settings, Invalid> {
        let servers = Servers::beside("bind-address", self.bind_address.as_deref())?;
        Ok(Settings {
            capture: mode("proxy-mode", self.proxy_mode.as_deref())?.map(|mode| Text(mode.into())),
            healthz_bind_address: servers.healthz,
            metrics_bind_address: servers.metrics,
            udp_idle_timeout: self.udp_timeout,
            ..Settings::default()
        })
    }

    /// The flags without a meaning here that were given.
    pub fn without_meaning(&self) -> Vec<String> {
        let names = self.meaningless.0.iter();
        names.map(|name| format!("--{name}")).collect()
    }
}

/// What a flag is followed by.
#[derive(Clone, Copy)]
enum Takes {
    /// Always a value.
    Value,
    /// `=true` or `=false`, or nothing.
    Switch,
}

/// Every other flag that kube-proxy has or had in the last years, those of its logging library included.
const MEANINGLESS: &[(&str, Takes)] = &[
    ("add-dir-header", Takes::Switch),
    ("add_dir_header", Takes::Switch),
    ("alsologtostderr", Takes::Switch),
    ("cleanup-ipvs", Takes::Switch),
    ("config-sync-period", Takes::Value),
    ("feature-gates", Takes::Value),
    ("healthz-port", Takes::Value),
    ("iptables-masquerade-bit", Takes::Value),
    ("ipvs-exclude-cidrs", Takes::Value),
    ("ipvs-min-sync-period", Takes::Value),
    ("ipvs-scheduler", Takes::Value),
    ("ipvs-strict-arp", Takes::Switch),
    ("ipvs-sync-period", Takes::Value),
    ("ipvs-tcp-timeout", Takes::Value),
    ("ipvs-tcpfin-timeout", Takes::Value),
    ("ipvs-udp-timeout", Takes::Value),
    ("kube-api-content-type", Takes::Value),
    ("log-backtrace-at", Takes::Value),
    ("log-dir", Takes::Value),
    ("log-file", Takes::Value),
    ("log-file-max-size", Takes::Value),
    ("log-flush-frequency", Takes::Value),
    ("log-json-info-buffer-size", Takes::Value),
    ("log-json-split-stream", Takes::Switch),
    ("log-text-info-buffer-size", Takes::Value),
    ("log-text-split-stream", Takes::Switch),
    ("log_backtrace_at", Takes::Value),
    ("log_dir", Takes::Value),
    ("log_file", Takes::Value),
    ("log_file_max_size", Takes::Value),
    ("logging-format", Takes::Value),
    ("logtostderr", Takes::Switch),
    ("metrics-port", Takes::Value),
    ("one-output", Takes::Switch),
    ("one_output", Takes::Switch),
    ("profiling", Takes::Switch),
    ("proxy-port-range", Takes::Value),
    ("show-hidden-metrics-for-version", Takes::Value),
    ("skip-headers", Takes::Switch),
    ("skip-log-headers", Takes::Switch),
    ("skip_headers", Takes::Switch),
    ("skip_log_headers", Takes::Switch),
    ("stderrthreshold", Takes::Value),
    ("vmodule", Takes::Value),
    ("windows-service", Takes::Switch),
];

/// The names of the flags without a meaning that were given.
#[derive(Clone, Debug, Default)]
struct Meaningless(Vec<&'static str>);

impl Args for Meaningless {
    fn augment_args(command: Command) -> Command {
        command.args(MEANINGLESS.iter().map(|(name, takes)| {
            let arg = Arg::new(*name)
                .long(*name)
                .hide(true)
                .action(ArgAction::Set);
            match takes {
                Takes::Value => arg.num_args(1).allow_hyphen_values(true),
                Takes::Switch => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Meaningless {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let names = MEANINGLESS.iter().map(|(name, _)| *name);
        Ok(Self(
            names.filter(|name| matches.contains_id(name)).collect(),
        ))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
