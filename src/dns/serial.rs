//! The serial of the SOA records: it grows when what they are about may have changed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::routing::RoutingTable;

/// The second in which the newest table was first seen.
#[derive(Debug, Default)]
pub(super) struct SerialClock {
    generation: AtomicU64,
    serial: AtomicU32,
}

impl SerialClock {
    /// The serial of `table`.
    pub(super) fn at(&self, table: &RoutingTable) -> u32 {
        let seen = self.generation.swap(table.generation, Ordering::Relaxed);
        let serial = self.serial.load(Ordering::Relaxed);
        if seen == table.generation && serial != 0 {
            return serial;
        }
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        // Serial numbers wrap by design (RFC 1982).
        let now = u32::try_from(since_epoch.as_secs() & u64::from(u32::MAX)).unwrap_or(0);
        self.serial.store(now, Ordering::Relaxed);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serial_is_new_with_each_table() {
        let clock = SerialClock::default();
        let mut table = RoutingTable::default();
        let first = clock.at(&table);
        assert_eq!(clock.at(&table), first);
        clock.serial.store(1, Ordering::Relaxed);
        table.generation += 1;
        assert!(clock.at(&table) >= first);
    }
}
