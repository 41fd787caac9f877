//! The node: its configuration, and what it owns while it runs.
//!
//! ```text
//!  Config ─► Node::start ─┬─ sources (directory, etcd) ─► Store ─► dispatcher ─► one pod worker per pod
//!                         ├─ ImageStore, Network, garbage collection    │
//!                         └─ NodeHandle ◄── API, `podling run` ◄────────┘ waits
//! ```
//!
//! The dispatcher is one task: it watches the store and owns the table of workers. A worker owns everything of its
//! pod. Nothing else starts or ends pods.

pub mod config;
mod dispatcher;
mod error;
pub mod garbage;
mod handle;
mod machine;
pub mod registries;
mod scrub;
mod sources;
mod start;
pub mod trust;
pub mod why;

pub use config::Config;
pub use error::NodeError;
pub use handle::{Node, NodeHandle, Options, Shutdown};
pub use why::Wait;
