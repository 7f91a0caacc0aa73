//! The capture alone, with stand-ins for the data path: what arrives, what does not, and what the kernel is left with.

mod extent;
mod flows;
mod ownership;
mod reach;
mod silence;
mod transactions;

use viaduct::capture::Mode;
use viaduct::model::Family;

use crate::rig::Rig;
use crate::trials::Trials;

/// A name and what is done in a fresh world under one mode and family.
type Case = (&'static str, fn(Rig));

/// Adds every case for every mode that leads traffic to stand-ins, and those of the kernel for every mode that changes
/// it, in both families.
pub(crate) fn add_to(trials: &mut Trials) {
    let led = [reach::CASES, silence::CASES, ownership::CASES, flows::CASES].concat();
    for mode in [Mode::Nftables, Mode::Iptables, Mode::Tproxy, Mode::Local] {
        let cases = match mode {
            Mode::Nftables => [ownership::KERNEL_CASES, &led, transactions::CASES].concat(),
            Mode::Iptables => [ownership::KERNEL_CASES, &led].concat(),
            Mode::Local => [ownership::KERNEL_CASES, extent::CASES].concat(),
            Mode::Tproxy | Mode::Loopback | Mode::None => ownership::KERNEL_CASES.to_vec(),
        };
        for family in Family::BOTH {
            for (name, case) in cases.clone() {
                let name = format!("{}::{name}", family.as_str().to_lowercase());
                // Both tools: what is not ours is compared in the words of both.
                trials.add(mode, &name, &["nft", "iptables"], move || {
                    case(Rig::new(mode, family))
                });
            }
        }
    }
}
