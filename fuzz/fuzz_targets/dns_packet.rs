//! Any octets as a DNS message: see `viaduct::dns::PacketPath`. `tests/it/packets.rs` runs the same on stable.
#![no_main]

#[path = "../../tests/support/packet_table.rs"]
mod packet_table;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use viaduct::dns::PacketPath;

thread_local! {
    static PATH: RefCell<PacketPath> = RefCell::new(PacketPath::new(packet_table::table()).expect("metrics of its own"));
}

fuzz_target!(|octets: &[u8]| {
    PATH.with_borrow_mut(|path| path.take(octets));
});
