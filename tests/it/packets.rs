//! The fuzz target's seeds, and 20,000 damaged copies of them, through the same function on stable.

use std::fs;
use std::path::Path;

use rand::RngExt;
use rand::SeedableRng;
use viaduct::dns::PacketPath;

use crate::packet_table::table;

fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/dns_packet");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn every_seed_leads_where_it_should() {
    let mut path = PacketPath::new(table()).unwrap();
    let seeds = seeds();
    assert!(seeds.len() > 20, "{} seeds", seeds.len());
    let replies: Vec<usize> = seeds.iter().map(|seed| path.take(seed)).collect();
    // Over both transports, but for replies, which are no questions; the second time from the memo too.
    assert!(replies.contains(&2) && replies.contains(&0), "{replies:?}");
    let again: Vec<usize> = seeds.iter().map(|seed| path.take(seed)).collect();
    assert!(again.contains(&3), "{again:?}");
}

#[test]
fn damaged_packets_break_no_promise() {
    let mut path = PacketPath::new(table()).unwrap();
    let seeds = seeds();
    let mut rng = rand::rngs::StdRng::seed_from_u64(11);
    let mut n_replies = 0;
    for _ in 0..20_000 {
        let mut packet = seeds[rng.random_range(0..seeds.len())].clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..packet.len().max(1));
            match rng.random_range(0..4) {
                0 => packet.truncate(at),
                1 => packet.extend_from_slice(&seeds[rng.random_range(0..seeds.len())][..12]),
                2 => packet[at..]
                    .iter_mut()
                    .take(1)
                    .for_each(|octet| *octet ^= 1 << (at % 8)),
                _ => packet[at..]
                    .iter_mut()
                    .take(1)
                    .for_each(|octet| *octet = rng.random()),
            }
        }
        n_replies += path.take(&packet);
    }
    assert!(n_replies > 10_000, "{n_replies} replies");
}
