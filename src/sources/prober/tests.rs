//! Probes against small real servers on loopback.
