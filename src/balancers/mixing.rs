//! Numbers that look random: a mixing function and two uses of it. The same in every process, so that all nodes agree.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

/// Spreads a number over all 64 bits; nearby numbers come out unrelated.
///
/// Source: the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A hash of an address; a different one for each `seed`.
pub(super) fn hash_ip(ip: IpAddr, seed: u64) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => mix(mix(seed) ^ u64::from(ip.to_bits())),
        IpAddr::V6(ip) => {
            let [high, low] = halves(ip.to_bits());
            mix(mix(mix(seed) ^ high) ^ low)
        }
    }
}

/// A hash of an address with its port; a different one for each `seed`.
pub(super) fn hash_addr(addr: SocketAddr, seed: u64) -> u64 {
    mix(hash_ip(addr.ip(), seed) ^ u64::from(addr.port()))
}

#[allow(clippy::cast_possible_truncation, reason = "each half has 64 bits")]
fn halves(bits: u128) -> [u64; 2] {
    [(bits >> 64) as u64, bits as u64]
}

/// A sequence of numbers that look random, drawn by many threads.
#[derive(Debug, Default)]
pub(super) struct Draws(AtomicU64);

impl Draws {
    /// The next one.
    pub(super) fn next(&self) -> u64 {
        mix(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// A number below `n`, which must be above 0, from 32 of the bits of a drawn one.
#[allow(clippy::cast_possible_truncation, reason = "below n")]
pub(super) fn below(n: usize, bits: u32) -> usize {
    ((u64::from(bits) * n as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_hash_as_ipv4_and_seeds_differ() {
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(hash_ip(ip, 1), hash_ip(mapped, 1));
        assert_ne!(hash_ip(ip, 1), hash_ip(ip, 2));
        let [one, other] = ["10.0.0.1:80", "10.0.0.1:81"].map(|a| a.parse().unwrap());
        assert_ne!(hash_addr(one, 1), hash_addr(other, 1));
    }

    #[test]
    fn draws_cover_their_range_evenly() {
        let draws = Draws::default();
        let mut seen = [0; 7];
        for _ in 0..70_000 {
            let [.., a, b, c, d] = draws.next().to_be_bytes();
            seen[below(7, u32::from_be_bytes([a, b, c, d]))] += 1;
        }
        assert!(seen.iter().all(|n| (9_500..10_500).contains(n)), "{seen:?}");
        assert_eq!((below(7, 0), below(7, u32::MAX)), (0, 6));
    }
}
