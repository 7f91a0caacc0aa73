//! Exec probes: a command that exits with status 0.
//!
//! There is no container to run it in: a Pod stands for something that runs on this machine already, so the command
//! runs here, as the user of this process, with its environment and working directory. Whoever may write manifests may
//! run commands; `--exec-probes=false` is for where that is not wanted. What it prints is thrown away. A command that
//! does not end in time is killed with its process group; what it moved out of the group, or left running after it
//! ended by itself, goes on.

use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

use super::attempt::Attempt;

/// Runs a command until it ends, or until the future is dropped.
pub(super) async fn probe(command: &[String]) -> Attempt {
    let Some((program, arguments)) = command.split_first() else {
        return Attempt::Malfunction("there is no command to run".to_owned());
    };
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return Attempt::Malfunction(format!("starting {program:?}: {error}")),
    };
    let mut group = Group(child.id());
    let ended = child.wait().await;
    // The number may belong to somebody else from here on.
    group.0 = None;
    match ended {
        Ok(status) if status.success() => Attempt::Success,
        Ok(status) => Attempt::Failure(format!("{program:?} ended with {status}")),
        Err(error) => Attempt::Malfunction(format!("waiting for {program:?}: {error}")),
    }
}

/// A process group that is killed when it is dropped while its leader has not been waited for.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(leader) = leader {
            // It may have ended by itself; nobody else can have its number before it is waited for.
            let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        }
    }
}
