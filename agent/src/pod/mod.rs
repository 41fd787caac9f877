//! One pod on this node: from a Pod object to a running supervisor and back to a status.
//!
//! ```text
//!  store: Pod, ConfigMaps, Secrets ─┐
//!  image store: image configs ──────┤            plan.json, Reload           snapshots
//!  network: addresses ──────────────┼─► worker ─────────────────► supervisor ─────────► status ─► store
//!  volumes: directories ────────────┘     (one task per pod)
//! ```
//!
//! Reading order: [`resources`], [`env`], [`security`]: pure rules of Kubernetes.

pub mod builder;
pub mod context;
pub mod env;
pub mod resources;
pub mod security;
pub mod status;
pub mod volumes;
