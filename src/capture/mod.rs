//! Capture: making the kernel deliver the traffic of virtual addresses to our listeners.
//!
//! A mode takes [`plan::Rules`] and works out what to change; only tables and chains of our own name are touched.
//! The pure part is `plan`; each mode is one file.

pub mod plan;

#[cfg(test)]
mod plan_tests;
