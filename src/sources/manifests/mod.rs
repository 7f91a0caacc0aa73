//! The directory source: manifests in files, read strictly and followed while they change.
//!
//! ```text
//!  *.yaml *.yml ─► yaml ─┐                                       ┌─► Applied, Removed
//!                        ├─► tree ─► document (decode) ─► directory ─► Problem, Warning, Healed
//!  *.json ───────► json ─┘                                       └── last good state of every file
//! ```
//!
//! `Directory` owns what was read and tells differences; `watch` says when to look. What the objects mean, and whether
//! their fields make sense together, is for `control`.

mod claims;
mod decode;
mod directory;
mod document;
mod file;
mod finding;
mod json;
mod known_file;
mod manifest;
mod mismatch;
mod noticed;
mod pieces;
mod tree;
mod watch;
mod yaml;

pub use directory::{Directory, ScanError, Update};
pub use finding::Finding;
pub use manifest::{Manifest, Origin};
pub use watch::{WatchError, watch};
