//! Takes this process into namespaces of its own, so that whatever a test does to a network is gone with it.
//!
//! Root needs network and mount namespaces only; anybody else becomes root of a new user namespace first. `/run`
//! becomes a private file system, because `ip netns` keeps its names there and iptables its lock.

use std::fmt::Display;
use std::fs;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// Enters the namespaces. Must be called before there is a second thread.
///
/// # Errors
/// What this machine does not allow, in words.
pub(crate) fn enter() -> Result<(), String> {
    let (uid, gid) = (geteuid(), getegid());
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if !(uid.is_root() && unshare(own).is_ok()) {
        unshare(CloneFlags::CLONE_NEWUSER | own).map_err(says("unshare"))?;
        // Without this the kernel lets nobody map groups.
        fs::write("/proc/self/setgroups", "deny").map_err(says("setgroups"))?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).map_err(says("uid_map"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).map_err(says("gid_map"))?;
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(says("private mounts"))?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)
        .map_err(says("tmpfs on /run"))
}

fn says<E: Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}
