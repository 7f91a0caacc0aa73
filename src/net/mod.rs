//! net.

pub mod conntrack;
