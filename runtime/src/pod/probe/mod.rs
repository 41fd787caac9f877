//! Trying a handler: the pure parts, and the sockets of HTTP, HTTPS, gRPC and TCP tries.
//!
//! A try never blocks: it owns a non-blocking socket, and goes on each time the event loop says that something
//! happened to it. Its time limit is the caller's.

mod exchange;
pub mod grpc;
pub mod hosts;
pub mod http;
pub mod redirect;
pub mod socket;
mod tls;
