//! How the heap is laid out, and that free memory goes back to the kernel. Knows nothing of what is in it.
#![allow(
    unsafe_code,
    reason = "the C library's allocator has no safe interface"
)]

/// Has all threads share one heap. The C library gives each of the first threads one of its own, and what the control
/// plane frees in one is no use to another: with 50,000 endpoints that was 6 MB of 70. Threads keep small pieces at hand
/// for themselves all the same, so the data path does not meet the others there. To be called before any thread starts.
///
/// Source: mallopt(3), `M_ARENA_MAX`.
pub fn share_one() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time; it sets a number.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Returns free pages of the heap. Takes some milliseconds for each hundred megabytes, so for moments after which much
/// less is needed than before, such as the end of a start. Does nothing where the C library gives pages back on its own.
///
/// Source: malloc_trim(3).
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time from any thread; no memory that is in use is touched.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
