//! kube-proxy's file and flags as they are found in clusters, and what is refused by name.

use clap::Parser;

use super::*;
use crate::config::{Config, Given, Profile, ReadSettings};

/// What kubeadm writes: every field, most of them empty.
const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

fn taken(body: &str) -> Result<Taken, String> {
    let head = "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\n";
    take(Path::new("f"), &format!("{head}{body}")).map_err(|error| error.to_string())
}

#[test]
fn what_kubeadm_writes_is_taken_without_a_word() {
    let taken = take(Path::new("f"), KUBEADM).unwrap();
    assert_eq!((taken.loose, taken.without_meaning), (None, Vec::new()));
    let expected = Settings {
        kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
        cluster_cidr: Some(vec![Text("10.244.0.0/16".parse().unwrap())]),
        ..Settings::default()
    };
    assert_eq!(taken.settings, expected);
}

#[test]
fn every_field_with_a_meaning_is_taken() {
    let taken = taken(
        "mode: nftables\nhostnameOverride: n\nbindAddress: '::'\nnodePortAddresses: [primary]\noomScoreAdj: -998\n\
         nftables: {syncPeriod: 1m, minSyncPeriod: 2s, masqueradeAll: true}\niptables: {syncPeriod: 9s}\n\
         clusterCIDR: '10.0.0.0/8,fd00::/8'\nudpIdleTimeout: 250ms\nmetricsBindAddress: 0.0.0.0\n\
         clientConnection: {qps: 7.5, burst: 9}\n\
         conntrack: {maxPerCore: 1, min: 0, tcpEstablishedTimeout: 1h, tcpCloseWaitTimeout: 0s, tcpBeLiberal: true,\n\
         \x20 udpTimeout: 3s, udpStreamTimeout: 4s}\n",
    );
    let settings = taken.unwrap().settings;
    let yaml = |settings: &Settings| serde_saphyr::to_string(settings).unwrap();
    let expected = Settings::parse(
        "apiVersion: viaduct.dev/v1alpha1\nkind: ViaductConfiguration\ncapture: nftables\nhostnameOverride: n\n\
         clusterCidr: [10.0.0.0/8, 'fd00::/8']\nnodeportAddresses: [primary]\nmasqueradeAll: true\noomScoreAdj: -998\n\
         iptablesSyncPeriod: 1m\niptablesMinSyncPeriod: 2s\nudpIdleTimeout: 250ms\n\
         healthzBindAddress: '[::]:10256'\nmetricsBindAddress: 0.0.0.0\nkubeApiQps: 7.5\nkubeApiBurst: 9\n\
         conntrackMaxPerCore: 1\nconntrackMin: 0\nconntrackTcpTimeoutEstablished: 1h\nconntrackTcpTimeoutCloseWait: 0s\n\
         conntrackTcpBeLiberal: true\nconntrackUdpTimeout: 3s\nconntrackUdpTimeoutStream: 4s\n",
    );
    let expected = Settings {
        api_version: None,
        kind: None,
        ..expected.unwrap()
    };
    assert_eq!(yaml(&settings), yaml(&expected));
}

#[test]
fn what_means_nothing_here_is_named() {
    let taken = taken(
        "featureGates: {A: true}\nlogging: {verbosity: 4}\nipvs: {scheduler: rr}\n\
         clientConnection: {contentType: a}\nbindAddress: 10.0.0.1\niptables: {masqueradeBit: 14}\nportRange: 1-2\n",
    );
    assert_eq!(
        taken.unwrap().without_meaning,
        [
            "featureGates",
            "clientConnection.contentType",
            "logging",
            "bindAddress",
            "iptables.masqueradeBit",
            "ipvs",
            "portRange"
        ]
    );
}

#[test]
fn an_unknown_or_doubled_field_is_passed_over_and_told_with_its_place() {
    let told = taken("mode: iptables\niptables: {colour: red}\n").unwrap();
    assert_eq!(
        told.settings.capture,
        Some(Text(crate::capture::Mode::Iptables.into()))
    );
    let reason = told.loose.unwrap();
    assert!(
        reason.contains("colour") && reason.contains("line 4"),
        "{reason}"
    );
    let told = taken("mode: iptables\nmode: nftables\n").unwrap();
    assert_eq!(
        told.settings.capture,
        Some(Text(crate::capture::Mode::Nftables.into()))
    );
    assert!(told.loose.unwrap().contains("line 4"));
}

#[test]
fn a_value_that_does_not_do_names_its_field() {
    for (body, message) in [
        ("mode: magic\n", "mode: magic is unknown"),
        (
            "oomScoreAdj: 1001\n",
            "oomScoreAdj: 1001 is no number from -1000 to 1000",
        ),
        ("iptables: {syncPeriod: -1s}\n", "iptables.syncPeriod: "),
        (
            "iptables: {masqueradeBit: 32}\n",
            "iptables.masqueradeBit: 32",
        ),
        ("configSyncPeriod: soon\n", "configSyncPeriod: "),
        ("conntrack: {min: -1}\n", "conntrack.min: -1"),
        ("conntrack: {udpTimeout: -1s}\n", "conntrack.udpTimeout: "),
        (
            "clientConnection: {burst: -1}\n",
            "clientConnection.burst: -1",
        ),
        (
            "healthzBindAddress: 0.0.0.0:0\n",
            "healthzBindAddress: 0.0.0.0:0 is not",
        ),
        (
            "metricsBindAddress: 0.0.0.0:65536\n",
            "metricsBindAddress: 0.0.0.0:65536 is not",
        ),
        (
            "bindAddress: here\n",
            "bindAddress: here is not an IP address",
        ),
        (
            "clusterCIDR: 10.0.0.0\n",
            "clusterCIDR: 10.0.0.0 is not a CIDR",
        ),
        (
            "clusterCIDR: 10.0.0.0/8,11.0.0.0/8\n",
            "clusterCIDR: at most one CIDR of each family",
        ),
        (
            "detectLocalMode: Guess\n",
            "detectLocalMode: Guess is unknown",
        ),
        (
            "detectLocalMode: BridgeInterface\n",
            "detectLocal.bridgeInterface: required",
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\n",
            "detectLocal.interfaceNamePrefix: required",
        ),
        ("oomScoreAdj: much\n", "oomScoreAdj"),
    ] {
        let error = taken(body).unwrap_err();
        let told = error.strip_prefix("--config f: ").unwrap();
        assert!(told.contains(message), "{body}: {error}");
    }
    for good in [
        "iptables: {masqueradeBit: 31}",
        "oomScoreAdj: 1000",
        "healthzBindAddress: 0.0.0.0:65535",
    ] {
        assert!(taken(good).is_ok(), "{good}");
    }
}

#[test]
fn another_version_is_refused() {
    let error = take(
        Path::new("f"),
        "kind: KubeProxyConfiguration\napiVersion: v9\n",
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("apiVersion: v9 is not kubeproxy.config.k8s.io/v1alpha1")
    );
}

#[derive(Parser)]
#[command(args_override_self = true)]
struct Command {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    kube_proxy: KubeProxyFlags,
}

fn given(line: &str) -> Given {
    let command = Command::try_parse_from(line.split_whitespace()).unwrap();
    Given {
        file: None,
        settings: command.settings,
        kube_proxy: command.kube_proxy,
    }
}

#[test]
fn command_lines_written_for_kube_proxy_are_understood() {
    let given = given(
        "kube-proxy --kubeconfig=/k --cluster-cidr=10.0.0.0/8 --proxy-mode iptables --v=2 -v 4 --logtostderr=true \
         --alsologtostderr --oom-score-adj=-998 --oom-score-adj -997 --masquerade-all --feature-gates=A=true,B=false \
         --iptables-min-sync-period 10s --iptables-sync-period=1m --conntrack-max-per-core 0 --nodeport-addresses=primary \
         --ipvs-strict-arp=false --bind-address :: --stderrthreshold -1 --healthz-bind-address=0.0.0.0",
    );
    assert_eq!(given.kube_proxy.v, Some(4));
    let read = given.read().unwrap();
    assert_eq!(
        read.without_meaning,
        [
            "--alsologtostderr",
            "--feature-gates",
            "--ipvs-strict-arp",
            "--logtostderr",
            "--stderrthreshold"
        ]
    );
    let settings = read.settings;
    assert_eq!(settings.oom_score_adj, Some(-997), "the last one wins");
    assert_eq!(
        settings.capture,
        Some(Text(crate::capture::Mode::Iptables.into()))
    );
    assert_eq!(settings.healthz_bind_address.as_deref(), Some("0.0.0.0"));
    assert_eq!(
        settings.metrics_bind_address.as_deref(),
        Some("[::1]:10249")
    );
}

/// Every flag of kube-proxy 1.36 on Linux, with a value that it takes.
const EVERY_FLAG: &str = "--bind-address=0.0.0.0 --bind-address-hard-fail --cleanup=false --cluster-cidr=10.244.0.0/16 \
    --config-sync-period=15m0s --conntrack-max-per-core=32768 --conntrack-min=131072 --conntrack-tcp-be-liberal \
    --conntrack-tcp-timeout-close-wait=1h0m0s --conntrack-tcp-timeout-established=24h0m0s --conntrack-udp-timeout=0s \
    --conntrack-udp-timeout-stream=0s --detect-local-mode=ClusterCIDR --feature-gates=A=true,B=false \
    --healthz-bind-address=0.0.0.0:10256 --healthz-port=10256 --hostname-override=n --init-only=false \
    --iptables-localhost-nodeports=true --iptables-masquerade-bit=14 --iptables-min-sync-period=1s --iptables-sync-period=30s \
    --ipvs-exclude-cidrs=10.0.0.0/8 --ipvs-min-sync-period=1s --ipvs-scheduler=rr --ipvs-strict-arp --ipvs-sync-period=30s \
    --ipvs-tcp-timeout=0s --ipvs-tcpfin-timeout=0s --ipvs-udp-timeout=0s --kube-api-burst=10 \
    --kube-api-content-type=application/vnd.kubernetes.protobuf --kube-api-qps=5 --kubeconfig=/k --log-flush-frequency=5s \
    --log-json-info-buffer-size=0 --log-json-split-stream --log-text-info-buffer-size=0 --log-text-split-stream \
    --logging-format=text --masquerade-all --master=https://192.0.2.1:6443 --metrics-bind-address=127.0.0.1:10249 \
    --metrics-port=10249 --nodeport-addresses=10.0.0.0/8,fd00::/8 --oom-score-adj=-999 --pod-bridge-interface=cni0 \
    --pod-interface-name-prefix=veth --profiling --proxy-mode=nftables --show-hidden-metrics-for-version=1.35 --v=2 \
    --vmodule=a=1 --write-config-to=/dev/null";

#[test]
fn every_flag_of_kube_proxy_is_taken_and_what_has_no_effect_is_named() {
    let read = given(&format!("kube-proxy {EVERY_FLAG}")).read().unwrap();
    assert_eq!(
        read.without_meaning,
        [
            "--config-sync-period",
            "--feature-gates",
            "--healthz-port",
            "--iptables-masquerade-bit",
            "--ipvs-exclude-cidrs",
            "--ipvs-min-sync-period",
            "--ipvs-scheduler",
            "--ipvs-strict-arp",
            "--ipvs-sync-period",
            "--ipvs-tcp-timeout",
            "--ipvs-tcpfin-timeout",
            "--ipvs-udp-timeout",
            "--kube-api-content-type",
            "--log-flush-frequency",
            "--log-json-info-buffer-size",
            "--log-json-split-stream",
            "--log-text-info-buffer-size",
            "--log-text-split-stream",
            "--logging-format",
            "--metrics-port",
            "--profiling",
            "--show-hidden-metrics-for-version",
            "--vmodule",
        ]
    );
    let settings = read.settings;
    assert_eq!(
        (settings.kube_api_qps, settings.kube_api_burst),
        (Some(5.0), Some(10))
    );
    assert_eq!(settings.conntrack_max_per_core, Some(32_768));
    assert_eq!(settings.conntrack_tcp_be_liberal, Some(true));
    assert_eq!(settings.bind_address_hard_fail, Some(true));
}

/// Every field of the document, none of them empty.
const EVERY_FIELD: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
featureGates: {A: true}
clientConnection:
  kubeconfig: /k
  acceptContentTypes: application/json
  contentType: application/vnd.kubernetes.protobuf
  qps: 7
  burst: 12
logging:
  format: json
  flushFrequency: 5s
  verbosity: 2
  vmodule: [{filePattern: a, verbosity: 1}]
  options: {text: {splitStream: true, infoBufferSize: 1Ki}, json: {splitStream: true, infoBufferSize: 1Ki}}
hostnameOverride: n
bindAddress: 192.0.2.1
healthzBindAddress: 0.0.0.0:10256
metricsBindAddress: 127.0.0.1:10249
bindAddressHardFail: true
enableProfiling: true
showHiddenMetricsForVersion: "1.35"
mode: iptables
iptables: {masqueradeBit: 14, masqueradeAll: true, localhostNodePorts: false, syncPeriod: 30s, minSyncPeriod: 1s}
ipvs:
  {syncPeriod: 30s, minSyncPeriod: 1s, scheduler: rr, excludeCIDRs: [10.0.0.0/8], strictARP: true, tcpTimeout: 1s,
   tcpFinTimeout: 1s, udpTimeout: 1s}
nftables: {masqueradeBit: 14, masqueradeAll: true, syncPeriod: 30s, minSyncPeriod: 1s}
winkernel: {networkName: a, sourceVip: 192.0.2.2, enableDSR: true, rootHnsEndpointName: a, forwardHealthCheckVip: true}
detectLocalMode: InterfaceNamePrefix
detectLocal: {bridgeInterface: cni0, interfaceNamePrefix: veth}
clusterCIDR: 10.244.0.0/16
nodePortAddresses: [10.0.0.0/8]
oomScoreAdj: -998
conntrack:
  {maxPerCore: 1, min: 2, tcpEstablishedTimeout: 24h0m0s, tcpCloseWaitTimeout: 1h0m0s, tcpBeLiberal: true, udpTimeout: 30s,
   udpStreamTimeout: 2m0s}
configSyncPeriod: 15m0s
portRange: 1-2
windowsRunAsService: true
"#;

#[test]
fn every_field_of_kube_proxy_is_taken_and_what_has_no_effect_is_named() {
    let taken = take(Path::new("f"), EVERY_FIELD).unwrap();
    assert_eq!(taken.loose, None);
    assert_eq!(
        taken.without_meaning,
        [
            "featureGates",
            "clientConnection.acceptContentTypes",
            "clientConnection.contentType",
            "logging",
            "bindAddress",
            "enableProfiling",
            "showHiddenMetricsForVersion",
            "iptables.masqueradeBit",
            "nftables.masqueradeBit",
            "ipvs",
            "winkernel",
            "configSyncPeriod",
            "portRange",
            "windowsRunAsService",
        ]
    );
    let settings = taken.settings;
    assert_eq!(settings.iptables_localhost_nodeports, Some(false));
    assert_eq!(settings.bind_address_hard_fail, Some(true));
    assert_eq!(
        (settings.kube_api_qps, settings.kube_api_burst),
        (Some(7.0), Some(12))
    );
    assert_eq!(
        (settings.conntrack_max_per_core, settings.conntrack_min),
        (Some(1), Some(2))
    );
    assert_eq!(settings.oom_score_adj, Some(-998));
}

#[test]
fn a_flag_that_kube_proxy_refuses_is_refused_by_name() {
    for (line, message) in [
        ("p --proxy-mode magic", "--proxy-mode: magic is unknown"),
        ("p --bind-address here", "--bind-address: here is not"),
    ] {
        let error = given(line).read().unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let periods = given("p --iptables-sync-period 1s --iptables-min-sync-period 2s --manifests /");
    let settings = periods.read().unwrap().settings;
    let error = Config::resolve(settings, Profile::Run)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("--iptables-min-sync-period: must not be longer"),
        "{error}"
    );
}

#[test]
fn kube_proxys_file_wins_over_flags_but_for_the_name_of_the_node() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "hostnameOverride: file\nhealthzBindAddress: 0.0.0.0:1\nkind: KubeProxyConfiguration\n\
                apiVersion: kubeproxy.config.k8s.io/v1alpha1\n";
    std::fs::write(file.path(), text).unwrap();
    let mut given = given(
        "p --hostname-override flag --healthz-bind-address 0.0.0.0:2 --metrics-bind-address 0.0.0.0:3",
    );
    given.file = Some(file.path().to_owned());
    let settings = given.read().unwrap().settings;
    assert_eq!(settings.hostname_override.as_deref(), Some("flag"));
    assert_eq!(settings.healthz_bind_address.as_deref(), Some("0.0.0.0:1"));
    assert_eq!(settings.metrics_bind_address.as_deref(), Some("0.0.0.0:3"));
    assert!(ReadSettings::of(Some(file.path())).is_ok());
}
