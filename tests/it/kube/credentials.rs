//! Who we are to a server: tokens that rotate, and plugins that print them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use viaduct::control::Kind;
use viaduct::sources::kube::{Access, DnsNeeds, Patience};

use super::listener::{Listener, node, patience, service, slice};
use crate::api_server::{ApiServer, Asked};
use crate::cluster::eventually;

/// What no log and no view may show.
const SECRET: &str = "hunter2";

/// The client library asks a plugin for a certificate, and then for a token.
const RUNS_OF_A_CLIENT: usize = 2;

fn server() -> ApiServer {
    let server = ApiServer::start();
    server.apply(service("s1", "10.96.0.1"));
    server.apply(slice("s1", &["10.1.0.1"], 8080));
    server.apply(node("z1"));
    server
}

/// A kubeconfig, and what its user is made of.
struct Credentials(tempfile::TempDir);

impl Credentials {
    fn of_user(server: &ApiServer, user: impl FnOnce(&Self) -> String) -> Self {
        let credentials = Self(tempfile::tempdir().unwrap());
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts:\n- {{name: a, context: {{cluster: c, user: u}}}}\nclusters:\n- {{name: c, cluster: {{server: '{}'}}}}\nusers:\n- {{name: u, user: {}}}\n",
            server.url(),
            user(&credentials)
        );
        credentials.write("config", &config);
        credentials
    }

    /// With a token in a file.
    fn token_file(server: &ApiServer) -> Self {
        Self::of_user(server, |all| {
            format!("{{tokenFile: {}}}", all.path("token").display())
        })
    }

    /// With a plugin, whose script is still to be written.
    fn plugin(server: &ApiServer) -> Self {
        Self::of_user(server, |all| {
            format!(
                "{{exec: {{apiVersion: client.authentication.k8s.io/v1, interactiveMode: IfAvailable, command: {}}}}}",
                all.path("plugin").display()
            )
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    // Renamed into place, so that nobody reads half of it or runs it while it is written.
    fn write(&self, name: &str, text: &str) {
        let new = self.path("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    /// Replaces the plugin by one that does this; every run is counted.
    fn script(&self, lines: &str) {
        let runs = self.path("runs");
        self.write(
            "plugin",
            &format!("#!/bin/sh\necho >> {}\n{lines}\n", runs.display()),
        );
    }

    /// One that prints a credential which is valid for so long.
    fn prints(&self, token: &str, seconds: i64) {
        let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        self.script(&format!(
            "echo '{{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \"ExecCredential\", \"status\": {{\"token\": \"{token}\", \"expirationTimestamp\": \"{until}\"}}}}'"
        ));
    }

    fn runs(&self) -> usize {
        fs::read(self.path("runs")).unwrap_or_default().len()
    }

    fn access(&self) -> Access {
        Access {
            kubeconfig: Some(self.path("config")),
            masters: Vec::new(),
        }
    }

    fn listener(&self, patience: Patience) -> Listener {
        Listener::with(self.access(), DnsNeeds::Nothing, patience)
    }
}

#[test]
fn a_token_that_is_refused_is_read_again() {
    let server = server();
    server.expect_token("first");
    let credentials = Credentials::token_file(&server);
    credentials.write("token", "first");
    let listener = credentials.listener(patience());
    listener.synced();
    server.expect_token("second");
    server.end_watches();
    listener.loses_touch("401");
    credentials.write("token", "second");
    listener.is_in_touch();
    server.apply(service("s9", "10.96.0.9"));
    listener.agrees(&server, Kind::Service, "services");
}

#[test]
fn a_plugin_is_asked_once_for_as_long_as_its_token_is_valid() {
    let server = server();
    server.expect_token("first");
    let credentials = Credentials::plugin(&server);
    credentials.prints("first", 3600);
    let listener = credentials.listener(patience());
    listener.synced();
    server.end_watches();
    server.apply(service("s9", "10.96.0.9"));
    listener.agrees(&server, Kind::Service, "services");
    assert_eq!(credentials.runs(), RUNS_OF_A_CLIENT);

    // Refused before its time: somebody has withdrawn it.
    credentials.prints("second", 3600);
    server.expect_token("second");
    server.end_watches();
    listener.loses_touch("401");
    listener.is_in_touch();
    server.apply(service("s8", "10.96.0.8"));
    listener.agrees(&server, Kind::Service, "services");
    assert_eq!(credentials.runs(), 2 * RUNS_OF_A_CLIENT);
}

#[test]
fn a_token_about_to_expire_is_fetched_again_before_it_is_refused() {
    let server = server();
    server.expect_token("first");
    let credentials = Credentials::plugin(&server);
    credentials.prints("first", 30);
    let listener = credentials.listener(patience());
    listener.synced();
    eventually("watches", || {
        let watches = server.asked().into_iter().filter(Asked::is_watch);
        (watches.count() == 3).then_some(()).ok_or(())
    });
    credentials.prints("second", 3600);
    let runs = credentials.runs();
    server.expect_token("second");
    server.end_watches();
    eventually("another run", || match credentials.runs() {
        more if more > runs => Ok(()),
        other => Err(other),
    });
    server.apply(service("s9", "10.96.0.9"));
    listener.agrees(&server, Kind::Service, "services");
    assert_eq!(listener.failures(), 0.0);
    assert_eq!(listener.out_of_touch(), None);
}

#[test]
fn a_plugin_that_fails_is_run_again_and_its_words_are_not_told() {
    let server = server();
    server.expect_token("first");
    let credentials = Credentials::plugin(&server);
    let listener = credentials.listener(patience());
    let told = |words: &str| {
        listener.loses_touch(words);
        let reason = listener.out_of_touch().unwrap().reason;
        assert!(!reason.contains(SECRET), "{reason}");
    };
    told("the exec plugin cannot be run: No such file");
    credentials.script(&format!("echo {SECRET}; echo {SECRET} >&2; exit 3"));
    told("the exec plugin failed: exit status: 3");
    credentials.script(&format!("echo {SECRET}"));
    told("the exec plugin printed no ExecCredential");
    credentials.prints("first", 30);
    listener.synced();
    listener.is_in_touch();

    // The client asks by itself for a token that is about to expire.
    credentials.script(&format!("echo {SECRET}; echo {SECRET} >&2; exit 4"));
    server.end_watches();
    told("the exec plugin failed: exit status: 4");
    credentials.script("echo '{}'");
    told("did not contain a status");
    assert_eq!(listener.heard().lists[&Kind::Service], 1);
    credentials.prints("first", 3600);
    listener.is_in_touch();
    server.apply(service("s9", "10.96.0.9"));
    listener.agrees(&server, Kind::Service, "services");
}

#[test]
fn a_plugin_that_hangs_is_run_once_and_what_it_prints_at_last_is_used() {
    let server = server();
    server.expect_token("first");
    let credentials = Credentials::plugin(&server);
    let (gate, open) = (credentials.path("gate"), credentials.path("open"));
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    credentials.prints("first", 3600);
    let script = fs::read_to_string(credentials.path("plugin")).unwrap();
    let (wait, echo) = (gate.display(), "echo '");
    let waits = format!("[ -e {} ] || read line < {wait}\n{echo}", open.display());
    credentials.write("plugin", &script.replacen(echo, &waits, 1));
    let quick = Patience {
        answer: Duration::from_millis(100),
        ..patience()
    };
    let listener = credentials.listener(quick);
    eventually("several failures", || {
        let many = listener.failures() >= 6.0;
        many.then_some(()).ok_or_else(|| listener.out_of_touch())
    });
    assert_eq!(credentials.runs(), 1);
    listener.loses_touch("no answer within 100ms");
    fs::write(open, "").unwrap();
    fs::write(gate, "go on\n").unwrap();
    listener.synced();
    listener.is_in_touch();
    assert_eq!(credentials.runs(), RUNS_OF_A_CLIENT);
}
