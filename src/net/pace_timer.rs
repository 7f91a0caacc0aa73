//! A timer that is punctual to microseconds, where the reactor's own counts in milliseconds.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

use super::readable::readable;

/// One alarm at a time.
#[derive(Debug)]
pub struct PaceTimer {
    timer: AsyncFd<AlarmClock>,
}

/// The descriptor of the timer. Never exchanged, open until it is dropped.
#[derive(Debug)]
pub(super) struct AlarmClock(TimerFd);

impl AsRawFd for AlarmClock {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl PaceTimer {
    /// A timer of the current runtime.
    ///
    /// # Errors
    /// Those of `timerfd_create(2)`, above all shortages.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let clock = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        Ok(Self {
            timer: readable(AlarmClock(clock))?,
        })
    }

    /// Waits that long, to some tens of microseconds.
    ///
    /// # Errors
    /// Those of `timerfd_settime(2)`; none are expected.
    pub async fn wait(&self, time: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let time = time.max(Duration::from_nanos(1)).into();
        let clock = &self.timer.get_ref().0;
        clock.set(Expiration::OneShot(time), TimerSetTimeFlags::empty())?;
        loop {
            let mut ready = self.timer.readable().await?;
            match ready.try_io(|clock| Ok(clock.get_ref().0.wait()?)) {
                Ok(rung) => return rung,
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn it_never_rings_early_and_can_be_set_again() {
        let timer = PaceTimer::new().unwrap();
        for micros in [0, 300, 2500] {
            let wanted = Duration::from_micros(micros);
            let begun = Instant::now();
            timer.wait(wanted).await.unwrap();
            assert!(begun.elapsed() >= wanted);
        }
    }
}
