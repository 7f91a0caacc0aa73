//! The process's limit of open descriptors. Raises it once at start; never counts what is open.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open descriptors to the hard one and returns the limit that holds then.
///
/// # Errors
/// If the limit cannot even be read. A refused raise is no error: what holds is returned.
pub fn raise_limit() -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let limit = if raised { hard } else { soft };
    // "Unlimited" is more than fits nowhere; the kernel's own ceiling (fs.nr_open) is 2^20 by default.
    Ok(usize::try_from(limit).unwrap_or(usize::MAX).min(1 << 20))
}

/// Whether an error says that descriptors or kernel memory ran out, here or in the whole system: a local shortage
/// that passes, and no peer's fault.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::EMFILE | nix::libc::ENFILE | nix::libc::ENOBUFS | nix::libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_ends_at_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let expected = usize::try_from(hard).unwrap_or(usize::MAX).min(1 << 20);
        assert_eq!(raise_limit().unwrap(), expected);
        assert_eq!(
            raise_limit().unwrap(),
            expected,
            "raising again changes nothing"
        );
    }

    #[test]
    fn shortages_are_told_from_other_errors() {
        assert!(is_shortage(&io::Error::from_raw_os_error(
            nix::libc::EMFILE
        )));
        assert!(!is_shortage(&io::Error::from_raw_os_error(
            nix::libc::ECONNABORTED
        )));
    }
}
