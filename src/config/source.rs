//! Where the objects come from: a manifest directory, or API servers.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::sources::kube::Access;

use super::{ConfigError, Settings, plain_list, value_error};

/// The source of objects, one or the other.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A manifest directory; we are our own control plane.
    Manifests(PathBuf),
    /// The API servers of a cluster.
    Cluster(Access),
}

impl Source {
    /// The manifest directory, if that is the source.
    pub fn manifests(&self) -> Option<&Path> {
        match self {
            Self::Manifests(directory) => Some(directory),
            Self::Cluster(_) => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests(directory) => write!(f, "{}", directory.display()),
            Self::Cluster(access) => access.fmt(f),
        }
    }
}

/// Manifests where they are asked for, else the cluster that is named, else the cluster that we are in.
pub(super) fn source(settings: &Settings) -> Result<Source, ConfigError> {
    let access = Access {
        kubeconfig: settings.kubeconfig.clone(),
        masters: plain_list(settings.master.clone()),
    };
    let named = access != Access::default();
    let Some(directory) = settings.manifests.clone() else {
        // What cannot be read at the start will hardly be right later; what fails later is tried again.
        access.load()?;
        return Ok(Source::Cluster(access));
    };
    if named {
        return Err(value_error(
            "manifests",
            "serves without an API server; leave out --kubeconfig and --master, or this",
        ));
    }
    if !directory.is_dir() {
        return Err(value_error(
            "manifests",
            format!("{} is not a directory", directory.display()),
        ));
    }
    Ok(Source::Manifests(directory))
}
