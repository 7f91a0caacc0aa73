//! How much there is in the kernel with many Services, where no golden file shows it: routes and addresses.

use std::net::IpAddr;

use viaduct::model::{Frontend, Protocol};

use super::Case;
use crate::rig::Rig;
use crate::world::Place;

/// Those in which nobody is served.
pub(super) const CASES: &[Case] = &[
    (
        "ten_thousand_services_are_as_many_routes_and_no_address",
        ten_thousand_services_are_as_many_routes_and_no_address,
    ),
    (
        "a_route_of_somebody_else_does_as_well_and_stays",
        a_route_of_somebody_else_does_as_well_and_stays,
    ),
];

const MANY: u16 = 10_000;

/// The ports of each: an address is one route however many lead there.
const PORTS: [(u16, Protocol); 3] = [
    (80, Protocol::Tcp),
    (53, Protocol::Udp),
    (53, Protocol::Tcp),
];

fn ten_thousand_services_are_as_many_routes_and_no_address(mut rig: Rig) {
    // Whether a link is up yet, and the address that it then gets by itself, is no concern.
    let addresses = |rig: &Rig| rig.world.shell(Place::Node, "ip -o addr show scope global");
    let before = addresses(&rig);
    for number in 0..MANY {
        for (port, protocol) in PORTS {
            let ip = address(rig.v6(), number);
            rig.rules
                .redirects
                .insert(Frontend { ip, port, protocol }, 40000);
        }
    }
    rig.apply();
    assert_eq!(routes(&rig), usize::from(MANY));
    assert_eq!(addresses(&rig), before);
    let last = address(rig.v6(), MANY - 1);
    for (port, protocol) in PORTS {
        let ip = last;
        rig.rules.redirects.remove(&Frontend { ip, port, protocol });
    }
    rig.apply();
    assert_eq!(routes(&rig), usize::from(MANY) - 1);
    assert!(!rig.reassert());
    rig.release();
    assert_eq!(routes(&rig), 0);
}

fn a_route_of_somebody_else_does_as_well_and_stays(mut rig: Rig) {
    let ip = address(rig.v6(), 0);
    let flag = if rig.v6() { "-6" } else { "-4" };
    let add = format!("ip {flag} route add local {ip} dev lo proto 5");
    rig.world.shell(Place::Node, &add);
    for (port, protocol) in PORTS {
        let frontend = Frontend { ip, port, protocol };
        rig.rules.redirects.insert(frontend, 40000);
    }
    rig.apply();
    assert!(!rig.reassert(), "nothing was restored");
    assert_eq!(routes(&rig), 0, "none of ours");
    rig.release();
    let theirs = format!("ip {flag} route show table local {ip}");
    assert!(rig.world.shell(Place::Node, &theirs).contains("proto 5"));
}

fn address(v6: bool, number: u16) -> IpAddr {
    if v6 {
        [0xfd00, 0x10, 0x96, 0, 0, 0, 0, number].into()
    } else {
        let [high, low] = number.to_be_bytes();
        [10, 96, high, low].into()
    }
}

fn routes(rig: &Rig) -> usize {
    let version = if rig.v6() { "-6" } else { "-4" };
    let list = format!("ip {version} route show table all proto 86");
    rig.world.shell(Place::Node, &list).lines().count()
}
