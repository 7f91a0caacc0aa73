//! Routing: from Services and slices to the table that every flow is looked up in. Pure.
//!
//! ```text
//!  Service ─┐ frontends ─► who answers at which address
//!  slices  ─┤ eligible  ─► which endpoints may serve
//!  node    ─┘ table     ─► RoutingTable, immutable, shared by pointer
//! ```
//!
//! A change of one Service costs work for that Service: the table's maps are persistent and share the rest.
//! The balancing algorithms live in `balancers`; here is only the trait that a route carries.

mod backends;
mod balance;
mod builder;
mod by_address;
mod claims;
mod eligible;
mod explain;
mod explanation;
mod frontends;
mod health_checks;
mod held_back;
mod judge;
mod live;
mod load;
mod remarks;
mod replace;
mod route;
mod shown_source;
mod table;
mod target;

#[cfg(test)]
mod tests;

pub use balance::{Balancer, BalancerFactory, Choice, ClientMemory};
pub use builder::{Built, TableBuilder};
pub use claims::Conflict;
pub use eligible::{Candidates, eligible};
pub use explanation::{
    ExplainedConnections, ExplainedEndpoint, ExplainedFlow, ExplainedFrontend, ExplainedPort,
    Explanation, Outcome,
};
pub use frontends::{FrontendKind, NodePortAddresses, NodeView, Origin};
pub use health_checks::HealthCheck;
pub use held_back::{Ejection, HeldBack, Warming};
pub use judge::{Standing, Topology};
pub use live::Live;
pub use load::{CountedConnection, ServiceLoad};
pub use route::{Backend, Route, Verdict};
pub use shown_source::Caller;
pub use table::{Destination, Published, RoutingTable, ServiceEntry};
pub use target::{InvalidTarget, Target, UnknownTarget};
