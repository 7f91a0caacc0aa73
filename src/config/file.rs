//! The configuration file, of either kind, and what holds when flags and environment are there too.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::options::DuplicateKeyPolicy;
use tracing::warn;

use super::kube_proxy::{self, KubeProxyFlags};
use super::{ConfigError, Settings};

/// What was given to a command: where settings come from, each time they are read.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Flags and environment.
    pub settings: Settings,
    /// Flags that only kube-proxy has.
    pub kube_proxy: KubeProxyFlags,
}

/// Settings as they were read, without defaults.
#[derive(Debug, Default)]
pub struct ReadSettings {
    /// What was set.
    pub settings: Settings,
    /// Fields and flags of kube-proxy's that were set and mean nothing here.
    pub without_meaning: Vec<String>,
    /// What a strict reader of kube-proxy's file would have refused, with line and column.
    pub loose: Option<String>,
    /// The file is kube-proxy's, and wins over flags.
    file_wins: bool,
}

impl Given {
    /// Reads the file and lays flags and environment over it; kube-proxy's own file wins over them, but for the name of
    /// the node.
    ///
    /// # Errors
    ///
    /// Those of [`ReadSettings::of`], and values of kube-proxy's flags that do not do.
    pub fn read(&self) -> Result<ReadSettings, ConfigError> {
        let mut read = ReadSettings::of(self.file.as_deref())?;
        let flags = self.settings.clone().or(self.kube_proxy.settings()?);
        let file = std::mem::take(&mut read.settings);
        read.settings = if read.file_wins {
            Settings {
                hostname_override: flags.hostname_override.clone(),
                ..Settings::default()
            }
            .or(file)
            .or(flags)
        } else {
            flags.or(file)
        };
        read.without_meaning
            .extend(self.kube_proxy.without_meaning());
        Ok(read)
    }
}

impl ReadSettings {
    /// Reads the file of either kind; without one, nothing is set.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, another kind of document, what does not do in it (with line and column, or its
    /// field).
    pub fn of(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        if is_kube_proxys(&text) {
            let taken = kube_proxy::take(path, &text)?;
            return Ok(Self {
                settings: taken.settings,
                without_meaning: taken.without_meaning,
                loose: taken.loose,
                file_wins: true,
            });
        }
        let settings = Settings::parse(&text).map_err(|message| ConfigError::Parse {
            path: path.to_owned(),
            message,
        })?;
        Ok(Self {
            settings,
            ..Self::default()
        })
    }

    /// Says in the log what was passed over: one line for what is unknown, one for what means nothing here.
    pub fn warn(&self) {
        if let Some(reason) = &self.loose {
            warn!(%reason, "the configuration file is taken leniently");
        }
        if !self.without_meaning.is_empty() {
            let ignored = List(&self.without_meaning);
            warn!(%ignored, "settings of kube-proxy without a meaning here");
        }
    }
}

struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

// A document that cannot be read at all is ours to complain about.
fn is_kube_proxys(text: &str) -> bool {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Head {
        kind: Option<String>,
    }
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
    let head = serde_saphyr::from_str_with_options::<Head>(text, options);
    head.is_ok_and(|head| head.kind.as_deref() == Some(kube_proxy::KIND))
}
