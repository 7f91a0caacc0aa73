//! balancers.
