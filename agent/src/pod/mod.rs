//! One pod on this node: from a Pod object to a running supervisor and back to a status.
//!
//! ```text
//!  store: Pod, ConfigMaps, Secrets ─┐
//!  image store: image configs ──────┤            plan.json, Reload           snapshots
//!  network: addresses ──────────────┼─► worker ─────────────────► supervisor ─────────► status ─► store
//!  volumes: directories ────────────┘     (one task per pod)
//! ```
//!
//! Reading order: [`quantity`], [`resources`], [`env`], [`security`] (pure rules of Kubernetes), [`builder`] (all of
//! them together: a Pod becomes a plan), [`volumes`] (directories, with I/O), [`status`] (pure: a snapshot becomes a
//! status), [`worker`] (the task that drives it all).

pub mod env;
pub mod quantity;
pub mod resources;
pub mod security;
pub mod status;
pub mod volumes;
