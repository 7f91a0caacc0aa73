//! How Pods of this node are told from callers outside: kube-proxy's modes, narrowed.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use crate::sources::pod_networks::PodInterfaces;

use super::{ConfigError, Settings, plain, plain_list, value_error};

/// Who counts as a Pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// Addresses in these CIDRs; none are known without any.
    ClusterCidr(Vec<IpNet>),
    /// Addresses in the Pod CIDRs of our Node object.
    NodeCidr,
    /// Addresses that the kernel would reach over these interfaces.
    Interfaces(PodInterfaces),
}

/// The names of `--detect-local-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectLocalMode {
    /// By `--cluster-cidr`.
    ClusterCidr,
    /// By the Node object.
    NodeCidr,
    /// By `--pod-bridge-interface`.
    BridgeInterface,
    /// By `--pod-interface-name-prefix`.
    InterfaceNamePrefix,
}

impl DetectLocalMode {
    const ALL: [(&'static str, Self); 4] = [
        ("ClusterCIDR", Self::ClusterCidr),
        ("NodeCIDR", Self::NodeCidr),
        ("BridgeInterface", Self::BridgeInterface),
        ("InterfaceNamePrefix", Self::InterfaceNamePrefix),
    ];
}

impl FromStr for DetectLocalMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(name, _)| *name == text);
        known.map(|(_, mode)| *mode).ok_or_else(|| {
            "not ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix".to_owned()
        })
    }
}

impl fmt::Display for DetectLocalMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::ALL.iter().find(|(_, mode)| mode == self);
        f.write_str(known.map_or("", |(name, _)| name))
    }
}

/// The mode with what it needs.
pub(super) fn detect_local(settings: &Settings) -> Result<DetectLocal, ConfigError> {
    let named = |flag: &'static str, given: &Option<String>, mode: &str| match given.as_deref() {
        Some(name) if !name.trim().is_empty() => Ok(name.trim().to_owned()),
        Some(_) | None => Err(value_error(
            flag,
            format!("required by --detect-local-mode {mode}"),
        )),
    };
    let mode = plain(settings.detect_local_mode).unwrap_or(DetectLocalMode::ClusterCidr);
    Ok(match mode {
        DetectLocalMode::ClusterCidr => {
            DetectLocal::ClusterCidr(plain_list(settings.cluster_cidr.clone()))
        }
        DetectLocalMode::NodeCidr => DetectLocal::NodeCidr,
        DetectLocalMode::BridgeInterface => DetectLocal::Interfaces(PodInterfaces::Bridge(named(
            "pod-bridge-interface",
            &settings.pod_bridge_interface,
            "BridgeInterface",
        )?)),
        DetectLocalMode::InterfaceNamePrefix => {
            DetectLocal::Interfaces(PodInterfaces::Prefix(named(
                "pod-interface-name-prefix",
                &settings.pod_interface_name_prefix,
                "InterfaceNamePrefix",
            )?))
        }
    })
}
