//! The `KubeProxyConfiguration` document as kube-proxy writes it.
//!
//! Every field that v1alpha1 knows stands here, so that an unknown one can be told from one without a meaning. The
//! types exist twice: strict ones that refuse what they do not know, and lenient ones that pass over it.
//! Source: k8s.io/kube-proxy/config/v1alpha1, types.go.

use serde_saphyr::options::DuplicateKeyPolicy;

pub(super) use lenient::{Conntrack, Iptables, KubeProxyConfiguration};

/// The only version there is.
pub(crate) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// The kind of the document.
pub(crate) const KIND: &str = "KubeProxyConfiguration";

macro_rules! document {
    ($name:ident $(, #[$strictness:meta])?) => {
        mod $name {
            use std::collections::BTreeMap;

            use serde::{Deserialize, Serialize};
            use serde_json::Value;

            #[derive(Clone, Debug, Default, Deserialize, Serialize)]
            #[serde(rename_all = "camelCase", default)]
            $(#[$strictness])?
            pub(in crate::config) struct KubeProxyConfiguration {
                pub(crate) api_version: Option<String>,
                pub(crate) kind: Option<String>,
                pub(crate) feature_gates: Option<BTreeMap<String, bool>>,
                pub(crate) client_connection: Option<ClientConnection>,
                pub(crate) logging: Option<Value>,
                pub(crate) hostname_override: Option<String>,
                pub(crate) bind_address: Option<String>,
                pub(crate) healthz_bind_address: Option<String>,
                pub(crate) metrics_bind_address: Option<String>,
                pub(crate) bind_address_hard_fail: Option<bool>,
                pub(crate) enable_profiling: Option<bool>,
                pub(crate) show_hidden_metrics_for_version: Option<String>,
                pub(crate) mode: Option<String>,
                pub(crate) iptables: Option<Iptables>,
                pub(crate) ipvs: Option<Value>,
                pub(crate) nftables: Option<Iptables>,
                pub(crate) winkernel: Option<Value>,
                pub(crate) detect_local_mode: Option<String>,
                pub(crate) detect_local: Option<DetectLocal>,
                #[serde(rename = "clusterCIDR")]
                pub(crate) cluster_cidr: Option<String>,
                pub(crate) node_port_addresses: Option<Vec<String>>,
                pub(crate) oom_score_adj: Option<i32>,
                pub(crate) conntrack: Option<Conntrack>,
                pub(crate) config_sync_period: Option<String>,
                pub(crate) port_range: Option<String>,
                pub(crate) udp_idle_timeout: Option<String>,
                pub(crate) windows_run_as_service: Option<bool>,
            }

            #[derive(Clone, Debug, Default, Deserialize, Serialize)]
            #[serde(rename_all = "camelCase", default)]
            $(#[$strictness])?
            pub(in crate::config) struct ClientConnection {
                pub(crate) kubeconfig: Option<String>,
                pub(crate) accept_content_types: Option<String>,
                pub(crate) content_type: Option<String>,
                pub(crate) qps: Option<f64>,
                pub(crate) burst: Option<i32>,
            }

            // Of `iptables` and `nftables`.
            #[derive(Clone, Debug, Default, Deserialize, Serialize)]
            #[serde(rename_all = "camelCase", default)]
            $(#[$strictness])?
            pub(in crate::config) struct Iptables {
                pub(crate) masquerade_bit: Option<i32>,
                pub(crate) masquerade_all: Option<bool>,
                pub(crate) localhost_node_ports: Option<bool>,
                pub(crate) sync_period: Option<String>,
                pub(crate) min_sync_period: Option<String>,
            }

            #[derive(Clone, Debug, Default, Deserialize, Serialize)]
            #[serde(rename_all = "camelCase", default)]
            $(#[$strictness])?
            pub(in crate::config) struct DetectLocal {
                pub(crate) bridge_interface: Option<String>,
                pub(crate) interface_name_prefix: Option<String>,
            }

            #[derive(Clone, Debug, Default, Deserialize, Serialize)]
            #[serde(rename_all = "camelCase", default)]
            $(#[$strictness])?
            pub(in crate::config) struct Conntrack {
                pub(crate) max_per_core: Option<i32>,
                pub(crate) min: Option<i32>,
                pub(crate) tcp_established_timeout: Option<String>,
                pub(crate) tcp_close_wait_timeout: Option<String>,
                pub(crate) tcp_be_liberal: Option<bool>,
                pub(crate) udp_timeout: Option<String>,
                pub(crate) udp_stream_timeout: Option<String>,
            }
        }
    };
}

document!(strict, #[serde(deny_unknown_fields)]);
document!(lenient);

/// Reads the document, and says in one line what a strict reader would have refused: unknown and doubled fields, with
/// line and column.
///
/// # Errors
///
/// What a lenient reader cannot read either.
pub(super) fn parse(
    text: &str,
) -> Result<(KubeProxyConfiguration, Option<String>), serde_saphyr::Error> {
    let strictly = serde_saphyr::from_str::<strict::KubeProxyConfiguration>(text);
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
    let document = serde_saphyr::from_str_with_options(text, options)?;
    Ok((
        document,
        strictly
            .err()
            .map(|error| error.without_snippet().to_string()),
    ))
}
