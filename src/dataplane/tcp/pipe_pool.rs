//! Each data thread's pool of empty pipes. Bounded in bytes, because that is what the kernel's quota counts: past
//! 16,384 pages per user without privileges, it grants pipes of two pages (measured: 62 pipes of 1 MiB, then none).

use std::cell::RefCell;

use crate::net::pipes::Pipe;

/// What one thread's pipes may hold together: 16 MiB.
const POOL_BYTES: usize = 16 << 20;

/// Preferred while few flows are bulk: a single stream is 18 % faster with it than with 64 KiB.
const LARGE: usize = 1 << 20;

/// Enough when many flows are bulk.
const MEDIUM: usize = 256 << 10;

/// Below this, splicing is no better than copying.
const SMALLEST: usize = 64 << 10;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { idle: Vec::new(), bytes: 0, limit: POOL_BYTES }) };
}

struct Pool {
    idle: Vec<Pipe>,
    // Capacity of all pipes of this thread, idle or in use.
    bytes: usize,
    limit: usize,
}

/// A pipe from the pool. Empty, it is to be [returned](PooledPipe::give_back); dropped, it is closed with whatever it
/// holds.
#[derive(Debug)]
pub(super) struct PooledPipe(Option<Pipe>);

impl PooledPipe {
    /// An empty pipe of this thread's pool; `None` if the pool is at its bound or the kernel grants no useful one.
    pub(super) fn take() -> Option<Self> {
        POOL.with_borrow_mut(Pool::take)
            .map(|pipe| Self(Some(pipe)))
    }

    /// The pipe itself.
    pub(super) fn pipe(&self) -> Option<&Pipe> {
        self.0.as_ref()
    }

    /// Back to the pool, empty.
    pub(super) fn give_back(mut self) {
        if let Some(pipe) = self.0.take() {
            POOL.with_borrow_mut(|pool| pool.idle.push(pipe));
        }
    }
}

impl Drop for PooledPipe {
    fn drop(&mut self) {
        if let Some(pipe) = self.0.take() {
            // The pool may be gone already when a thread ends with flows in it.
            let _thread_ends = POOL.try_with(|pool| pool.borrow_mut().bytes -= capacity(&pipe));
        }
    }
}

impl Pool {
    fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        let wanted = if self.bytes < self.limit / 2 {
            LARGE
        } else {
            MEDIUM
        };
        if self.bytes + wanted > self.limit {
            return None;
        }
        let pipe = Pipe::with_capacity(u32::try_from(wanted).ok()?).ok()?;
        if capacity(&pipe) < SMALLEST {
            // The quota is used up; asking again would cost three system calls each time.
            self.limit = self.bytes;
            return None;
        }
        self.bytes += capacity(&pipe);
        Some(pipe)
    }
}

fn capacity(pipe: &Pipe) -> usize {
    usize::try_from(pipe.capacity()).unwrap_or(usize::MAX)
}

/// Bytes of pipes that this thread has.
#[cfg(test)]
pub(super) fn pooled_bytes() -> usize {
    POOL.with_borrow(|pool| pool.bytes)
}

/// From now on this thread gets no pipe, as where the quota is used up.
#[cfg(test)]
pub(super) fn refuse_pipes() {
    POOL.with_borrow_mut(|pool| pool.limit = 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded_in_bytes_and_recovers() {
        let mut taken: Vec<_> = std::iter::from_fn(PooledPipe::take).collect();
        let bytes: usize = taken
            .iter()
            .filter_map(PooledPipe::pipe)
            .map(capacity)
            .sum();
        assert!(bytes <= POOL_BYTES, "{bytes}");
        assert!(taken.len() > 8, "large ones first, then medium ones");
        assert!(PooledPipe::take().is_none());

        taken.pop().unwrap().give_back();
        let again = PooledPipe::take().unwrap();
        assert!(PooledPipe::take().is_none());

        drop(again);
        assert!(PooledPipe::take().is_some(), "a closed one makes room too");
    }
}
