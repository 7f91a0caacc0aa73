//! `viaduct echo`: a simulated backend by itself, for load tests of anything.

use std::net::SocketAddr;

use anyhow::bail;
use clap::Args;

use crate::faults::{ActiveFaults, Faults};
use crate::model::Protocol;
use crate::workload::{SimulatedPod, Simulator};

use super::print;
use super::run::catch_signals;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Echo {
    /// Addresses to answer at, over TCP and UDP; port 0 is any free one
    #[arg(value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    listen: Vec<SocketAddr>,
    /// Name that the answers give [default: the hostname]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// What goes wrong in the answers, such as `delay=5ms±2ms; reset=0.1%`
    #[arg(short, long, value_name = "FAULTS", value_parser = Faults::parse)]
    fault: Option<Faults>,
}

const AFTER_HELP: &str = "\
An HTTP request is answered with the name, any other line over TCP and every datagram with `NAME: ` and itself.";

impl Echo {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let name = match self.name {
            Some(name) => name,
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        let (shutdown, _reloads) = catch_signals()?;
        let mut simulator = Simulator::new(ActiveFaults::default());
        let backends = self.listen.iter().map(|addr| SimulatedPod {
            namespace: String::new(),
            name: name.clone(),
            ip: addr.ip(),
            ports: vec![(addr.port(), Protocol::Tcp), (addr.port(), Protocol::Udp)],
            faults: self.fault.clone().unwrap_or_default(),
        });
        if let Some(failure) = simulator.set(backends.collect()).await.first() {
            bail!(
                "ADDR:PORT {}/{}: {}; choose another address or port 0",
                failure.addr,
                failure.protocol,
                failure.error
            );
        }
        let mut text = String::new();
        for (name, addr, protocol) in simulator.addresses() {
            text.push_str(&format!("{name} answers at {addr}/{protocol}\n"));
        }
        print(&text)?;
        shutdown.begun().cancelled().await;
        simulator.shutdown().await;
        Ok(())
    }
}
