//! The command line: exit statuses and errors that name the flag.

use std::process::{Command, Output};

fn viaduct(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .args(words)
        .output()
        .unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_usage_or_configuration_error_is_2_and_names_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().to_str().unwrap();
    let rows: [(&[&str], &str); 8] = [
        (
            &["run"],
            "error: not in a cluster (KUBERNETES_SERVICE_HOST is not set): give --kubeconfig FILE, or --manifests DIR",
        ),
        (
            &["run", "--kubeconfig", "/nonexistent"],
            "error: --kubeconfig /nonexistent: ",
        ),
        (
            &["run", "--master", "10.0.0.1:6443"],
            "neither http:// nor https://",
        ),
        (
            &["run", "--manifests", "/nonexistent"],
            "error: --manifests: /nonexistent is not a directory",
        ),
        (
            &["run", "--manifests", manifests, "--capture", "magic"],
            "--capture",
        ),
        (
            &[
                "run",
                "--manifests",
                manifests,
                "--healthz-bind-address",
                "here",
            ],
            "error: --healthz-bind-address: here is not",
        ),
        (
            &["run", "--manifests", manifests, "--kubeconfig", "x"],
            "error: --manifests: serves without an API server",
        ),
        (
            &["dev", "/nonexistent"],
            "error: --manifests: /nonexistent is not a directory",
        ),
    ];
    for (words, expected) in rows {
        let output = viaduct(words);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{words:?}: {}",
            error(&output)
        );
        assert!(
            error(&output).contains(expected),
            "{words:?}: {}",
            error(&output)
        );
    }
}

#[test]
fn a_bad_configuration_file_is_named_with_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("viaduct.yaml");
    std::fs::write(
        &file,
        "apiVersion: viaduct.dev/v1alpha1\nkind: ViaductConfiguration\ndrainTimeout: soon\n",
    )
    .unwrap();
    let output = viaduct(&[
        "run",
        "--manifests",
        "/",
        "--config",
        file.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(2));
    let message = error(&output);
    assert!(
        message.contains("viaduct.yaml") && message.contains("soon") && message.contains('3'),
        "{message}"
    );
}

#[test]
fn help_shows_the_flags_of_run() {
    let output = viaduct(&["run", "--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for flag in [
        "--manifests",
        "--capture",
        "--hostname-override",
        "--cluster-cidr",
        "--service-cluster-ip-range",
        "--nodeport-addresses",
        "--iptables-localhost-nodeports[=<BOOL>]",
        "--masquerade-all[=<BOOL>]",
        "--admin-socket",
        "--data-dir",
        "--dns-listen",
        "--dns-upstream",
        "--dns-pods",
        "--dns-service",
        "--dns-hide-empty",
        "--dns-search-completion",
        "--healthz-bind-address",
        "--metrics-bind-address",
        "--drain-timeout",
    ] {
        assert!(help.contains(flag), "{flag} is not in --help");
    }
}

#[test]
fn a_second_viaduct_on_one_admin_socket_is_a_failure_that_says_so() {
    let cluster = crate::cluster::Cluster::start(&[]);
    let socket = cluster.directory().parent().unwrap().join("admin.sock");
    let manifests = cluster.directory();
    let output = viaduct(&[
        "dev",
        manifests.to_str().unwrap(),
        "--admin-socket",
        socket.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error(&output).contains("another viaduct is running there"),
        "{}",
        error(&output)
    );
}

#[test]
fn completions_and_manual_pages_know_every_subcommand() {
    let script = viaduct(&["completion", "bash"]);
    let script = String::from_utf8(script.stdout).unwrap();
    for words in [&["man"][..], &["man", "load"]] {
        let page = viaduct(words);
        assert_eq!(page.status.code(), Some(0), "{}", error(&page));
        let page = String::from_utf8(page.stdout).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    for name in [
        "run", "dev", "get", "explain", "check", "load", "echo", "cleanup",
    ] {
        assert!(script.contains(&format!("viaduct,{name})")), "{name}");
    }
    let unknown = viaduct(&["man", "nosuch"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(error(&unknown).contains("nosuch"), "{}", error(&unknown));
}
