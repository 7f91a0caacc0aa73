//! `viaduct fault`: breaks something on purpose in a running viaduct, and mends it again.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use crate::admin::{FaultOrder, TableView};
use crate::config::default_admin_socket;
use crate::faults::FaultTarget;

use super::ask::{ask, post};
use super::get::align;
use super::print;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Fault {
    /// NAMESPACE/POD of a simulated Pod, or NAMESPACE/SERVICE[:PORT][@BACKEND]; without it, lists what is on
    #[arg(requires = "faults")]
    target: Option<FaultTarget>,
    /// What goes wrong, such as `delay=5ms±2ms; reset=1%`, or `off`
    faults: Option<String>,
    /// Admin socket of the viaduct to ask
    #[arg(long, value_name = "PATH", env = "VIADUCT_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Faults, separated by `;`:
  delay=5ms±2ms   answers come later; on a Service, new connections and each datagram wait
  reset=1%        the connection is reset (TCP)
  cut=1%          the answer ends halfway
  stall=1s/10s    what is due in the first 1 s of each 10 s waits
  rate=10MB/s     bytes per second of one connection or UDP flow
  loss=1%         datagrams are lost (UDP)
  duplicate=1%    datagrams come twice (UDP)
  refuse          connections are refused; on a Service, the next backend is tried
  blackhole       everything goes in and nothing comes out
  error=1%        HTTP answers are status 500 (simulated Pods)
  flap=5s         probes by HTTP fail in every second 5 s (simulated Pods)
  seed=1          the same seed meets the same answers

On a Service they lie between client and backend and meet connections that begin afterwards; of several that name
a backend the closest counts. A restart forgets them.";

impl Fault {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let socket = self.admin_socket.unwrap_or_else(default_admin_socket);
        let (Some(target), Some(faults)) = (self.target, self.faults) else {
            let answer = ask(&socket, "/v1/faults").await?;
            let table: TableView = serde_json::from_slice(&answer).context("reading the answer")?;
            if table.rows.is_empty() {
                eprintln!("No faults are on.");
                return Ok(());
            }
            return print(&align(&table, true));
        };
        let order = FaultOrder {
            target: target.to_string(),
            faults,
        };
        let answer = post(&socket, "/v1/faults", serde_json::to_vec(&order)?).await?;
        let answer: Value = serde_json::from_slice(&answer).context("reading the answer")?;
        print(&format!(
            "{}\n",
            answer["message"].as_str().unwrap_or_default()
        ))
    }
}
