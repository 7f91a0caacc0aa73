//! A world with a capture mode on its node: what the trials of the capture work with.

use std::net::{IpAddr, SocketAddr};

use tokio::runtime::{Builder, Runtime};
use viaduct::capture::plan::Rules;
use viaduct::capture::{self, Capture, CaptureError, Mode};
use viaduct::model::{Family, Frontend, Protocol};

use crate::stand_in::StandIn;
use crate::world::{Answer, Place, QUIET, World, patience};

/// The world, the mode under test and what it was asked to do last.
pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) mode: Mode,
    pub(crate) family: Family,
    pub(crate) rules: Rules,
    capture: Box<dyn Capture>,
}

/// Where the service of a rig answers.
pub(crate) const PORT: u16 = 80;
/// Its node port.
pub(crate) const NODE_PORT: u16 = 30080;
/// Whoever may call.
pub(crate) const CALLERS: [Place; 3] = [Place::Pod, Place::Outside, Place::Node];

impl Rig {
    /// A world whose node captures nothing yet.
    pub(crate) fn new(mode: Mode, family: Family) -> Self {
        let world = World::new();
        let capture = open(&world, mode, family);
        let mut rig = Self {
            world,
            mode,
            family,
            rules: Rules::none(family),
            capture,
        };
        let gateways = [Place::Pod, Place::Local, Place::Remote, Place::Outside];
        let node: Vec<IpAddr> = gateways
            .into_iter()
            .map(|place| place.gateway(rig.v6()))
            .collect();
        rig.rules.local_addresses.extend(&node);
        rig.rules.node_addresses.extend(node);
        match family {
            Family::V4 => {
                let loopback = IpAddr::from([127, 0, 0, 1]);
                rig.rules.local_addresses.insert(loopback);
                rig.rules.node_addresses.insert(loopback);
            }
            Family::V6 => {
                rig.rules
                    .local_addresses
                    .insert(std::net::Ipv6Addr::LOCALHOST.into());
            }
        }
        let pods = if rig.v6() {
            "fd00:10:244::/64"
        } else {
            "10.244.0.0/24"
        };
        rig.rules.pod_cidrs = vec![pods.parse().unwrap()];
        rig
    }

    pub(crate) fn v6(&self) -> bool {
        self.family == Family::V6
    }

    /// The service's cluster address; `number` tells services apart.
    pub(crate) fn service(&self, number: u8) -> IpAddr {
        if self.v6() {
            format!("fd00:10:96::{number:x}").parse().unwrap()
        } else {
            IpAddr::from([10, 96, 0, number])
        }
    }

    pub(crate) fn frontend(&self, number: u8, protocol: Protocol) -> Frontend {
        Frontend {
            ip: self.service(number),
            port: PORT,
            protocol,
        }
    }

    pub(crate) fn stand_in(&self, word: &'static str) -> StandIn {
        StandIn::new(&self.world, self.v6(), word)
    }

    /// Leads service `number` and the node port, over both protocols, to `stand_in`.
    pub(crate) fn lead(&mut self, number: u8, stand_in: &StandIn) {
        for (protocol, port) in [(Protocol::Tcp, stand_in.tcp), (Protocol::Udp, stand_in.udp)] {
            let frontend = self.frontend(number, protocol);
            self.rules.redirects.insert(frontend, port);
            self.rules.node_ports.insert((protocol, NODE_PORT), port);
        }
        self.rules.guarded_udp_ports.insert(stand_in.udp);
    }

    pub(crate) fn apply(&mut self) {
        let rules = self.rules.clone();
        self.drive(async |capture| capture.apply(&rules).await)
            .unwrap();
    }

    pub(crate) fn reassert(&mut self) -> bool {
        self.drive(async |capture| capture.reassert().await)
            .unwrap()
    }

    pub(crate) fn release(&mut self) {
        self.drive(async |capture| capture.release().await).unwrap();
    }

    /// As after a crash: what was applied stays in the kernel, and nobody remembers it.
    pub(crate) fn restart(&mut self) {
        self.capture = open(&self.world, self.mode, self.family);
    }

    pub(crate) fn all_rules(&self) -> String {
        all_rules(&self.world)
    }

    pub(crate) fn ask(&self, from: Place, protocol: Protocol, to: SocketAddr) -> Answer {
        self.ask_within(from, protocol, to, patience())
    }

    pub(crate) fn assert_silent(&self, from: Place, protocol: Protocol, to: SocketAddr) {
        let answer = self.ask_within(from, protocol, to, QUIET);
        assert_eq!(answer, Answer::Silence, "{from:?} to {to}/{protocol}");
    }

    fn ask_within(
        &self,
        from: Place,
        protocol: Protocol,
        to: SocketAddr,
        wait: std::time::Duration,
    ) -> Answer {
        match protocol {
            Protocol::Tcp => self.world.ask_tcp(from, to, wait),
            Protocol::Udp => self.world.ask_udp(from, to, wait),
        }
    }

    // The tools are started by the thread that drives the capture, so that thread is on the node.
    fn drive<T: Send>(
        &mut self,
        work: impl AsyncFnOnce(&mut Box<dyn Capture>) -> Result<T, CaptureError> + Send,
    ) -> Result<T, CaptureError> {
        let capture = &mut self.capture;
        self.world
            .in_ns(Place::Node, || runtime().block_on(work(capture)))
    }
}

/// Opens a mode on the node of a world.
pub(crate) fn open(world: &World, mode: Mode, family: Family) -> Box<dyn Capture> {
    let metrics = capture::Metrics::new(&prometheus::Registry::new()).unwrap();
    world
        .in_ns(Place::Node, || {
            runtime().block_on(capture::open(mode, family, &metrics))
        })
        .unwrap()
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Every rule, route and address of every program on the node, without counters. Tables of iptables are listed by iptables only: over
/// nf_tables it makes built-in chains when they are first named, and lets them stand.
pub(crate) fn all_rules(world: &World) -> String {
    let line =
        "nft list tables | sort | grep -vE ' (nat|mangle|filter|raw)$' | while read -r _ family name; do \
                    nft -s list table $family $name; done
                for table in nat mangle filter raw; do for tool in iptables ip6tables; do \
                    $tool-save -t $table 2>/dev/null | grep -v '^#' | sed 's/\\[.*//'; done; done
                for v in 4 6; do ip -$v -br addr; ip -$v rule; ip -$v route show table all | sed '/ proto kernel /d'; done";
    world.shell(Place::Node, line)
}
