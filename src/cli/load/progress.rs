//! The progress line on standard error: overwritten on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::workload::load::Progress;

use super::print::megabytes;

/// Shows how far it is, every second on a terminal and every ten seconds elsewhere, until it is dropped.
pub(super) async fn show(progress: Arc<Progress>, length: Duration) {
    let terminal = stderr().is_terminal();
    let every = Duration::from_secs(if terminal { 1 } else { 10 });
    let start = Instant::now();
    let mut ticks = tokio::time::interval(every);
    ticks.tick().await;
    let mut before = (0, 0);
    loop {
        ticks.tick().await;
        let now = (progress.done(), progress.bytes());
        let per_second = |now: u64, before: u64| (now - before) / every.as_secs();
        let mut line = format!(
            "{}s of {}s: {} done, {}/s, {} failed",
            start.elapsed().as_secs(),
            length.as_secs(),
            now.0,
            per_second(now.0, before.0),
            progress.failed()
        );
        if now.1 > 0 {
            let speed = per_second(now.1, before.1);
            line.push_str(&format!(", {} MB/s", megabytes(speed)));
        }
        before = now;
        if terminal {
            write(&format!("\r{line}\x1b[K"));
        } else {
            write(&format!("{line}\n"));
        }
    }
}

/// Takes the line off a terminal.
pub(super) fn clear() {
    if stderr().is_terminal() {
        write("\r\x1b[K");
    }
}

// A standard error that is gone is no reason to end.
fn write(text: &str) {
    let mut out = stderr();
    let _gone = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
