//! Values of kube-proxy's fields and flags: what is empty, and what kube-proxy's own validation refuses. Pure.
//!
//! Source: kubernetes/pkg/proxy/apis/config/validation.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::Value;

use crate::capture::Mode;
use crate::config::values::{GoDuration, Text};
use crate::model::Family;

/// A value that does not do, under the name of its field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub(super) struct Invalid {
    pub(super) field: &'static str,
    pub(super) message: String,
}

fn invalid(field: &'static str, message: impl Into<String>) -> Invalid {
    let message = message.into();
    Invalid { field, message }
}

/// The modes of kube-proxy. Those that name a way to capture are one here too; the others leave the choice.
const MODES: [(&str, Option<Mode>); 4] = [
    ("iptables", Some(Mode::Iptables)),
    ("nftables", Some(Mode::Nftables)),
    ("userspace", None),
    ("ipvs", None),
];

/// The ways of kube-proxy to tell Pods.
const DETECT_LOCAL_MODES: [&str; 4] = [
    "ClusterCIDR",
    "NodeCIDR",
    "BridgeInterface",
    "InterfaceNamePrefix",
];

/// The servers' addresses that follow from a bind address.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Servers {
    pub(super) healthz: Option<String>,
    pub(super) metrics: Option<String>,
}

impl Servers {
    /// Of an IPv6 bind address; of one of IPv4 they are the defaults anyway.
    pub(super) fn beside(field: &'static str, bind: Option<&str>) -> Result<Self, Invalid> {
        let Some(bind) = bind.filter(|bind| !bind.is_empty()) else {
            return Ok(Self::default());
        };
        match bind.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => Ok(Self::default()),
            Ok(IpAddr::V6(_)) => Ok(Self {
                healthz: Some("[::]:10256".to_owned()),
                metrics: Some("[::1]:10249".to_owned()),
            }),
            Err(_) => Err(invalid(field, format!("{bind} is not an IP address"))),
        }
    }
}

/// How Pods are told from others, each value under its name.
pub(super) struct Interfaces<'a> {
    pub(super) mode: (&'static str, Option<&'a str>),
    pub(super) bridge: (&'static str, Option<&'a str>),
    pub(super) prefix: (&'static str, Option<&'a str>),
}

/// Refuses an unknown mode, and one without the interface that it needs.
pub(super) fn check_detect_local(given: &Interfaces<'_>) -> Result<(), Invalid> {
    let (field, mode) = given.mode;
    let mode = mode.unwrap_or_default();
    if !mode.is_empty() && !DETECT_LOCAL_MODES.contains(&mode) {
        let known = DETECT_LOCAL_MODES.join(", ");
        return Err(invalid(
            field,
            format!("{mode} is unknown; known are {known}"),
        ));
    }
    let needed = match mode {
        "BridgeInterface" => given.bridge,
        "InterfaceNamePrefix" => given.prefix,
        _ => return Ok(()),
    };
    match needed {
        (_, Some(name)) if !name.is_empty() => Ok(()),
        (field, _) => Err(invalid(field, format!("required with {mode}"))),
    }
}

/// A text that is not empty.
pub(super) fn said(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Whether a duration is absent or zero, which is the same to kube-proxy.
pub(super) fn is_zero(text: Option<&str>) -> bool {
    let parsed = text
        .filter(|text| !text.is_empty())
        .map(str::parse::<GoDuration>);
    matches!(
        parsed,
        None | Some(Ok(GoDuration(std::time::Duration::ZERO)))
    )
}

/// Whether anything in it is neither empty nor zero.
pub(super) fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(claim) => *claim,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !is_zero(Some(text)) && text != "0" && text != "text",
        Value::Array(values) => values.iter().any(says_something),
        Value::Object(fields) => fields.values().any(says_something),
    }
}

/// The way to capture that a mode of kube-proxy's names, if it names one.
pub(super) fn mode(field: &'static str, given: Option<&str>) -> Result<Option<Mode>, Invalid> {
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        return Ok(None);
    };
    match MODES.iter().find(|(name, _)| *name == given) {
        Some((_, mode)) => Ok(*mode),
        None => {
            let known = MODES.map(|(name, _)| name).join(", ");
            Err(invalid(
                field,
                format!("{given} is unknown; known are {known}"),
            ))
        }
    }
}

/// A duration; absent if it is zero.
pub(super) fn duration(
    field: &'static str,
    given: Option<&str>,
) -> Result<Option<Text<GoDuration>>, Invalid> {
    let given = zero_or_duration(field, given)?;
    Ok(given.filter(|duration| !duration.0.0.is_zero()))
}

/// A duration, of which zero is one.
pub(super) fn zero_or_duration(
    field: &'static str,
    given: Option<&str>,
) -> Result<Option<Text<GoDuration>>, Invalid> {
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        return Ok(None);
    };
    match given.parse() {
        Ok(duration) => Ok(Some(Text(duration))),
        Err(error) => Err(invalid(field, error)),
    }
}

/// A number within `range`.
pub(super) fn in_range(
    field: &'static str,
    given: Option<i32>,
    range: RangeInclusive<i32>,
) -> Result<Option<i32>, Invalid> {
    match given {
        Some(number) if !range.contains(&number) => {
            let (first, last) = range.into_inner();
            Err(invalid(
                field,
                format!("{number} is no number from {first} to {last}"),
            ))
        }
        given => Ok(given),
    }
}

/// A number that is not negative.
pub(super) fn count(field: &'static str, given: Option<i32>) -> Result<Option<u32>, Invalid> {
    let given = in_range(field, given, 0..=i32::MAX)?;
    Ok(given.and_then(|number| u32::try_from(number).ok()))
}

/// CIDRs with commas between them, one or one of each family.
pub(super) fn cidrs(
    field: &'static str,
    given: Option<&str>,
) -> Result<Option<Vec<Text<IpNet>>>, Invalid> {
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        return Ok(None);
    };
    let parse = |text: &str| {
        let refused = || invalid(field, format!("{text} is not a CIDR"));
        text.parse::<Text<IpNet>>().map_err(|_| refused())
    };
    let cidrs: Vec<_> = given.split(',').map(parse).collect::<Result<_, _>>()?;
    let family = |cidr: &Text<IpNet>| Family::of(cidr.0.addr());
    match cidrs.as_slice() {
        [_] => Ok(Some(cidrs)),
        [first, second] if family(first) != family(second) => Ok(Some(cidrs)),
        _ => Err(invalid(field, "at most one CIDR of each family")),
    }
}

/// An address with a port from 1 to 65535, or without one.
pub(super) fn host_port(
    field: &'static str,
    given: Option<String>,
) -> Result<Option<String>, Invalid> {
    let Some(given) = said(given) else {
        return Ok(None);
    };
    let alone = given.parse::<IpAddr>().is_ok();
    let address = given.parse::<SocketAddr>();
    if alone || address.is_ok_and(|address| address.port() != 0) {
        return Ok(Some(given));
    }
    let message = format!("{given} is not ADDRESS:PORT with a port from 1 to 65535");
    Err(invalid(field, message))
}
