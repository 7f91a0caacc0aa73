//! Running the system's firewall tools: text in, text out, bounded in time.
//!
//! Knows nothing of rules. What a tool writes on standard error is kept and handed on, with a remedy where one is known.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::CaptureError;

/// Loading 40,000 elements takes `nft` less than two seconds; a tool that waits for a lock gives up after five.
const LIMIT: Duration = Duration::from_secs(10);

/// As much of a tool's complaint as an error message carries; `nft` repeats every line it is given.
const MAX_WORDS: usize = 600;

/// Where the tools are if `PATH` does not lead there, as for ordinary users and some service managers.
const SYSTEM_PATHS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";

/// Runs `tool` with `input` and returns what it wrote on standard output.
pub(super) async fn run(
    tool: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, CaptureError> {
    let mut command = Command::new(tool);
    command
        .args(arguments)
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            CaptureError::ToolMissing { tool }
        } else {
            CaptureError::Run { tool, source }
        }
    })?;
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let feed = async {
        // A tool that refuses early closes its end; its own words say more than the broken pipe.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let finished = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(LIMIT, finished)
        .await
        .map_err(|_| CaptureError::TimedOut { tool, limit: LIMIT })?
        .map_err(|source| CaptureError::Run { tool, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = shorten(&String::from_utf8_lossy(&output.stderr));
    let remedy = remedy(&words);
    Err(CaptureError::Refused {
        tool,
        words,
        remedy,
    })
}

impl CaptureError {
    /// The same, if the tool refused, with what it was about ahead of its words.
    pub(super) fn about(self, what: impl Display) -> Self {
        match self {
            Self::Refused {
                tool,
                words,
                remedy,
            } => Self::Refused {
                tool,
                words: format!("{what}: {words}"),
                remedy,
            },
            other @ (Self::ToolMissing { .. } | Self::Run { .. } | Self::TimedOut { .. }) => other,
        }
    }

    /// Whether it says that what was asked for is not there.
    pub(super) fn says_absent(&self) -> bool {
        matches!(self, Self::Refused { words, .. } if words.contains("No such file or directory"))
    }

    /// Whether it says that the transaction is more than the kernel takes at once. Without privilege outside of a user
    /// namespace that is `net.core.wmem_max`; over 5,000 Services get there.
    pub(super) fn says_too_long(&self) -> bool {
        matches!(self, Self::Refused { words, .. } if words.contains("Message too long"))
    }

    /// Whether it says that this can never have worked here, so that nothing can have been left.
    pub(super) fn says_impossible(&self) -> bool {
        match self {
            Self::ToolMissing { .. } => true,
            Self::Refused { words, .. } => LACKING.iter().any(|sign| words.contains(sign)),
            Self::Run { .. } | Self::TimedOut { .. } => false,
        }
    }
}

/// How the tools say that the kernel has no such thing.
const LACKING: [&str; 5] = [
    "Operation not supported",
    "Protocol not supported",
    "Protocol not available",
    "Table does not exist",
    "Address family not supported",
];

fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(SYSTEM_PATHS);
    path
}

/// What to do about a refusal in these words, beginning with "; "; empty if unknown.
fn remedy(words: &str) -> &'static str {
    if words.contains("Operation not permitted") || words.contains("Permission denied") {
        if words.contains("xtables.lock") {
            return "; set XTABLES_LOCKFILE to a path that may be written";
        }
        return "; run as root or with CAP_NET_ADMIN, or use `viaduct dev`, which needs neither";
    }
    if LACKING.iter().any(|sign| words.contains(sign))
        || words.contains("No such file or directory")
    {
        return "; the kernel lacks what this mode needs, try another --capture mode";
    }
    ""
}

/// What the kernel itself refused over rtnetlink.
pub(super) fn refused_by_rtnetlink(error: &io::Error) -> CaptureError {
    let words = error.to_string();
    CaptureError::Refused {
        tool: "rtnetlink",
        remedy: remedy(&words),
        words,
    }
}

fn shorten(words: &str) -> String {
    let line = words
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" | ");
    match line.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_goes_in_and_output_comes_back() {
        let output = run("cat", &[], "ein\nzwei\n").await.unwrap();
        assert_eq!(output, "ein\nzwei\n");
    }

    #[tokio::test]
    async fn a_missing_tool_is_named() {
        let error = run("viaduct-no-such-tool", &[], "").await.unwrap_err();
        assert!(error.says_impossible());
        assert!(error.to_string().contains("viaduct-no-such-tool"));
    }

    #[tokio::test]
    async fn the_tools_own_words_and_the_remedy_are_kept() {
        let script = "echo 'netlink: Error: Operation not permitted' >&2; exit 4";
        let error = run("sh", &["-c", script], &"x".repeat(1 << 20))
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("netlink: Error: Operation not permitted"),
            "{text}"
        );
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
        assert!(!error.says_impossible());
    }

    #[test]
    fn long_complaints_are_cut_at_a_character() {
        assert_eq!(shorten(&"ä".repeat(MAX_WORDS)).chars().count(), MAX_WORDS);
        let cut = shorten(&"ä".repeat(MAX_WORDS + 1));
        assert_eq!(cut.chars().count(), MAX_WORDS + 1);
        assert!(cut.ends_with('…'));
    }
}
