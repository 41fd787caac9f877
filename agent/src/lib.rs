//! The node agent, and the `podling` command that runs it and talks to it.

pub mod api;
pub mod cli;
pub mod manifest;
pub mod network;
pub mod node;
pub mod pod;
pub mod source;
pub mod store;
