//! What this process may do: no more than serving takes, and nothing that a program it starts could add.
//!
//! Capabilities belong to threads, so this runs before there is a second one. Programs that capture needs (`nft`,
//! `iptables`) inherit what is kept, and so does the process that a change of the configuration puts in this one's
//! place. Source: capabilities(7), `PR_SET_NO_NEW_PRIVS` in prctl(2).

use std::collections::HashSet;

use caps::errors::CapsError;
use caps::{CapSet, Capability};
use nix::errno::Errno;

/// What serving takes: rules and transparent sockets; the raw socket of the legacy iptables; ports below 1024; more
/// descriptors and a lower OOM score; files of others, such as the kubeconfig and the data directory in a user's home.
const NEEDED: [Capability; 5] = [
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_SYS_RESOURCE,
];

/// Why a process keeps what it does not need. It can serve all the same.
#[derive(Debug, thiserror::Error)]
pub enum RestrictError {
    /// Programs with a set-user-ID bit could still raise what they may.
    #[error("no-new-privileges is not set: {0}")]
    NewPrivileges(#[from] Errno),
    /// The kernel, or a filter in front of it, said no.
    #[error("capabilities are kept: {0}")]
    Capabilities(#[from] CapsError),
}

/// Gives up every capability but those that serving takes, and for good the right to gain any. What is kept of them is
/// what there was: the names in the kernel's order, none for an ordinary user.
///
/// # Errors
///
/// The kernel refuses.
pub fn restrict() -> Result<Vec<String>, RestrictError> {
    nix::sys::prctl::set_no_new_privs()?;
    let held = caps::read(None, CapSet::Permitted)?;
    let kept: HashSet<Capability> = NEEDED.into_iter().filter(|c| held.contains(c)).collect();
    // Only who holds this may; in a container its runtime has done it.
    if held.contains(&Capability::CAP_SETPCAP) {
        for surplus in caps::read(None, CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *surplus)?;
        }
    }
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::set(None, CapSet::Inheritable, &kept)?;
    // Without it the programs of a user who is not root would inherit nothing.
    caps::set(None, CapSet::Ambient, &kept)?;
    let kept = NEEDED.into_iter().filter(|c| kept.contains(c));
    Ok(kept.map(|capability| capability.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    // In a thread of its own, whose end is the end of it.
    #[test]
    fn what_is_left_is_no_more_than_what_was_and_what_is_needed() {
        let done = std::thread::spawn(|| {
            let held = caps::read(None, CapSet::Permitted).unwrap();
            let kept = restrict().unwrap();
            let sets = [CapSet::Effective, CapSet::Permitted, CapSet::Ambient];
            for set in sets {
                let left = caps::read(None, set).unwrap();
                assert_eq!(left.len(), kept.len(), "{set:?}");
                assert!(left.iter().all(|c| held.contains(c) && NEEDED.contains(c)));
            }
            assert!(nix::sys::prctl::get_no_new_privs().unwrap());
            assert_eq!(restrict().unwrap(), kept, "again, as after a restart");
        });
        done.join().unwrap();
    }
}
