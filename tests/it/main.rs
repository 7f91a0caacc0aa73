//! Tests that need no privilege. One module per capability that a user sees, and the rules of the house.

#![allow(
    clippy::unwrap_used,
    reason = "a helper that cannot go on ends its test"
)]

mod house_rules;
