//! Where the API servers are, and who we are to them: a kubeconfig, or the service account of our Pod.
//!
//! Read anew whenever a connection is made after a failure, so that rotated certificates, tokens and moved servers are
//! taken over. Errors say what is wrong and where, never what is in a file or what an exec plugin wrote: that may be a
//! secret.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hyper::Uri;
use kube::client::AuthError;
use kube::config::{
    AuthInfo, Config, ExecInteractiveMode, InClusterError, KubeConfigOptions, Kubeconfig,
    KubeconfigError,
};

/// The files that Kubernetes mounts into a Pod.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where to find the API servers, and our credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A kubeconfig; without it the service account of our Pod is who we are.
    pub kubeconfig: Option<PathBuf>,
    /// Servers in place of the one that the configuration names, tried in turn.
    pub masters: Vec<Master>,
}

/// The URL of an API server, `http` or `https`, without credentials in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master(Uri);

impl FromStr for Master {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| "not a URL".to_owned())?;
        let Some(authority) = uri.authority() else {
            return Err("not https://HOST:PORT".to_owned());
        };
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err("neither http:// nor https://".to_owned());
        }
        if authority.as_str().contains('@') {
            return Err("credentials belong into a kubeconfig".to_owned());
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kubeconfig {
            Some(path) => write!(f, "kubeconfig {}", path.display())?,
            None => f.write_str("service account")?,
        }
        for (index, master) in self.masters.iter().enumerate() {
            f.write_str(if index == 0 { " at " } else { ", " })?;
            master.fmt(f)?;
        }
        Ok(())
    }
}

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Not told where, and not in a Pod.
    #[error(
        "not in a cluster ({0}): give --kubeconfig FILE, or --manifests DIR to serve without an API server"
    )]
    NotInCluster(String),
    /// The service account of our Pod cannot be read.
    #[error("service account in {SERVICE_ACCOUNT}: {0}")]
    ServiceAccount(String),
    /// The kubeconfig cannot be used.
    #[error("--kubeconfig {}: {message}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// There is a configuration, but the client cannot be made from it.
    #[error("credentials cannot be used: {0}")]
    Credentials(String),
}

impl Access {
    /// Reads the configuration of every server, in the order in which they are tried. Never empty. Blocks on files.
    ///
    /// # Errors
    ///
    /// A file that is missing or broken; no cluster to be in.
    pub fn load(&self) -> Result<Vec<Config>, AccessError> {
        let mut named = match &self.kubeconfig {
            Some(path) => from_kubeconfig(path)?,
            None => self.with_service_account()?,
        };
        if let Some(exec) = &mut named.auth_info.exec {
            // There is nobody to talk to.
            exec.interactive_mode = Some(ExecInteractiveMode::Never);
        }
        if self.masters.is_empty() {
            return Ok(vec![named]);
        }
        let at = |master: &Master| {
            let mut config = named.clone();
            config.cluster_url = master.0.clone();
            config
        };
        Ok(self.masters.iter().map(at).collect())
    }

    /// The URLs of the servers, as far as they can be told.
    pub(super) fn servers(&self) -> Vec<String> {
        let configs = self.load().unwrap_or_default();
        configs
            .iter()
            .map(|config| config.cluster_url.to_string())
            .collect()
    }

    // With a server given, a process that is in no Pod asks without credentials, as kube-proxy does.
    fn with_service_account(&self) -> Result<Config, AccessError> {
        let Some(master) = self.masters.first() else {
            return Config::incluster_env().map_err(|error| {
                if let InClusterError::ReadEnvironmentVariable(_) = error {
                    AccessError::NotInCluster("KUBERNETES_SERVICE_HOST is not set".to_owned())
                } else {
                    AccessError::ServiceAccount(error.to_string())
                }
            });
        };
        let mut config = Config::new(master.0.clone());
        let directory = Path::new(SERVICE_ACCOUNT);
        let (authority, token) = (directory.join("ca.crt"), directory.join("token"));
        config.root_cert_file = authority.is_file().then_some(authority);
        if token.is_file() {
            config.auth_info = AuthInfo {
                token_file: Some(token.to_string_lossy().into_owned()),
                ..AuthInfo::default()
            };
        }
        Ok(config)
    }
}

fn from_kubeconfig(path: &Path) -> Result<Config, AccessError> {
    let refused = |message: String| AccessError::Kubeconfig {
        path: path.to_owned(),
        message,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| refused(told(&error)))?;
    let options = KubeConfigOptions::default();
    let config =
        futures_util::FutureExt::now_or_never(Config::from_custom_kubeconfig(kubeconfig, &options));
    let config = config
        .ok_or_else(|| refused("a context that cannot be read at once".to_owned()))?
        .map_err(|error| refused(told(&error)))?;
    if config.proxy_url.is_some() {
        return Err(refused("proxy-url is not supported".to_owned()));
    }
    Ok(config)
}

// A parser quotes what it stumbles over.
fn told(error: &KubeconfigError) -> String {
    if let KubeconfigError::Parse(error) = error {
        return match error.location() {
            Some(at) => format!(
                "line {}, column {}: not a kubeconfig",
                at.line(),
                at.column()
            ),
            None => "not a kubeconfig".to_owned(),
        };
    }
    if let KubeconfigError::ReadConfig(error, _) = error {
        return error.to_string();
    }
    error.to_string()
}

/// What the client says about credentials, without what a plugin wrote and without the environment it got.
pub(super) fn credentials_error(error: &kube::Error) -> AccessError {
    let told = if let kube::Error::Auth(error) = error {
        why_refused(error)
    } else {
        error.to_string()
    };
    AccessError::Credentials(told)
}

/// The same of credentials that are fetched again while the client is in use.
pub(super) fn why_refused(error: &AuthError) -> String {
    if let AuthError::AuthExecRun { out, .. } = error {
        format!("the exec plugin failed: {}", out.status)
    } else if let AuthError::AuthExecParse(_) = error {
        "the exec plugin printed no ExecCredential".to_owned()
    } else if let AuthError::AuthExecStart(error) = error {
        format!("the exec plugin cannot be run: {error}")
    } else if let AuthError::ReadTokenFile(error, path) = error {
        format!("{}: {error}", path.display())
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(kubeconfig: &str, masters: &[&str]) -> Result<Vec<Config>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        std::fs::write(&path, kubeconfig).unwrap();
        let access = Access {
            kubeconfig: Some(path),
            masters: masters.iter().map(|url| url.parse().unwrap()).collect(),
        };
        let place = directory.path().display().to_string();
        access
            .load()
            .map_err(|error| error.to_string().replace(&place, ""))
    }

    fn kubeconfig(user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts:\n- {{name: a, context: {{cluster: c, user: u}}}}\nclusters:\n- {{name: c, cluster: {{server: 'https://192.0.2.1:6443'}}}}\nusers:\n- name: u\n  user: {user}\n"
        )
    }

    #[test]
    fn masters_replace_the_server_and_keep_the_credentials() {
        let servers = |masters: &[&str]| -> Vec<String> {
            let configs = load(&kubeconfig("{tokenFile: /token}"), masters).unwrap();
            assert!(
                configs
                    .iter()
                    .all(|config| config.auth_info.token_file.as_deref() == Some("/token"))
            );
            configs
                .iter()
                .map(|config| config.cluster_url.to_string())
                .collect()
        };
        assert_eq!(servers(&[]), ["https://192.0.2.1:6443/"]);
        assert_eq!(
            servers(&["https://192.0.2.2:6443", "http://[fd00::1]:8080"]),
            ["https://192.0.2.2:6443/", "http://[fd00::1]:8080/"]
        );
    }

    #[test]
    fn a_broken_file_is_refused_by_its_place_and_without_its_words() {
        let secret = "token: [hunter2";
        let broken = kubeconfig("").replace("user: \n", &format!("user:\n    {secret}\n"));
        let message = load(&broken, &[]).err().unwrap();
        assert!(message.starts_with("--kubeconfig /config: "), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
        let missing = Access {
            kubeconfig: Some("/nonexistent/config".into()),
            masters: Vec::new(),
        };
        assert!(
            missing
                .load()
                .unwrap_err()
                .to_string()
                .contains("No such file")
        );
    }

    #[test]
    fn secrets_do_not_show_in_a_debug_print() {
        let user =
            "{token: hunter2, password: hunter2, username: me, client-key-data: aHVudGVyMg==}";
        let configs = load(&kubeconfig(user), &[]).unwrap();
        let printed = format!("{configs:?}");
        assert!(!printed.contains("hunter2") && !printed.contains("aHVudGVyMg"));
    }

    #[test]
    fn a_failed_plugin_is_told_without_what_it_printed() {
        let user = "{exec: {apiVersion: client.authentication.k8s.io/v1, command: sh, args: [-c, 'echo hunter2; exit 3'], env: [{name: A, value: hunter2}]}}";
        let config = load(&kubeconfig(user), &[]).unwrap().remove(0);
        let error = kube::client::ConfigExt::auth_layer(&config).err().unwrap();
        assert_eq!(
            credentials_error(&error).to_string(),
            "credentials cannot be used: the exec plugin failed: exit status: 3"
        );
    }

    #[test]
    fn a_master_is_a_url_without_credentials() {
        for bad in ["10.0.0.1:6443", "ftp://a", "https://me:secret@a", "/", ""] {
            let message = bad.parse::<Master>().unwrap_err();
            assert!(!message.contains("secret"), "{message}");
        }
        assert_eq!(
            "https://a:6443".parse::<Master>().unwrap().to_string(),
            "https://a:6443/"
        );
    }
}
