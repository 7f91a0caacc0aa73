//! Registering descriptors that tokio has no type for with its reactor, for read readiness only.
#![allow(
    unsafe_code,
    reason = "tokio leaves it to the caller that a registered descriptor stays open"
)]

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::pace_timer::AlarmClock;

/// Types that own one descriptor, the same from birth to drop.
pub trait OwnsDescriptor: AsRawFd + owned::Sealed {}

impl OwnsDescriptor for AlarmClock {}

mod owned {
    pub trait Sealed {}
    impl Sealed for super::AlarmClock {}
}

/// Registers `inner` with the current runtime's reactor.
///
/// # Errors
/// Those of `epoll_ctl(2)`.
pub fn readable<T: OwnsDescriptor>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the sealed trait admits only types that keep their descriptor open until they are dropped, that never
    // change it, and that offer no way to exchange it by shared reference; no caller gets a mutable one.
    let registered = unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) };
    registered.map_err(|refused| refused.into_parts().1)
}
