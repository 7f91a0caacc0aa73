//! Memory that is free goes back to the kernel. Knows nothing of what was in it.
#![allow(
    unsafe_code,
    reason = "the C library's allocator has no safe interface"
)]

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
