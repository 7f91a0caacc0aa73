//! The API server as a source: the real client against a server that does what servers do, good and bad.

mod addresses;
mod answers;
mod cluster_mode;
mod credentials;
mod listener;
mod proxy;
mod source;
