//! Where things are kept if nobody says: by user, as the XDG base directory specification has it.

use std::env;
use std::path::PathBuf;

/// The admin socket: `/run/viaduct/admin.sock` for root, else below `$XDG_RUNTIME_DIR`, else below the data directory.
pub(super) fn admin_socket() -> PathBuf {
    let runtime = if is_root() {
        Some(PathBuf::from("/run"))
    } else {
        absolute("XDG_RUNTIME_DIR")
    };
    match runtime {
        Some(directory) => directory.join("viaduct/admin.sock"),
        None => data_dir().join("admin.sock"),
    }
}

/// The data directory: `/var/lib/viaduct` for root, else below `$XDG_STATE_HOME` or `~/.local/state`, else a
/// folder of the user's own below the folder for temporary files.
pub(super) fn data_dir() -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/lib/viaduct");
    }
    let home = || absolute("HOME").filter(|home| home.is_dir());
    let state = absolute("XDG_STATE_HOME").or_else(|| home().map(|home| home.join(".local/state")));
    match state {
        Some(directory) => directory.join("viaduct"),
        // A service user without a home: a folder of its own, so that users do not meet.
        None => env::temp_dir().join(format!("viaduct-{}", nix::unistd::geteuid())),
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

// The specification says to ignore paths that are not absolute.
fn absolute(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}
