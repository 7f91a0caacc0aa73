//! Tests against a real kernel, in network namespaces of their own: one trial per capture mode, family and capability.
//!
//! Nothing outside the namespaces is read or changed, and no privilege is needed where user namespaces are allowed.
//! A trial that cannot run here is skipped by name, with what it needs; with `VIADUCT_REQUIRE_ALL=1` it fails instead,
//! unless it is the kernel that cannot.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    reason = "tests may end at the first surprise, and this binary prints its own summary"
)]

mod backends;
mod capture;
mod isolation;
mod program;
mod rig;
mod stand_in;
mod trials;
#[path = "../support/world.rs"]
mod world;

use std::process::ExitCode;

use libtest_mimic::Arguments;

use trials::Trials;

/// Trials mostly wait for silence, not for a core.
const TRIALS_AT_ONCE: usize = 8;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(TRIALS_AT_ONCE);
    let isolated = if arguments.list {
        Ok(())
    } else {
        isolation::enter()
    };
    let mut trials = Trials::new(isolated);
    capture::add_to(&mut trials);
    program::add_to(&mut trials);
    trials.run(&arguments)
}
