//! One pod on this node: from a Pod object to a running supervisor and back to a status.
//!
//! ```text
//!  store: Pod, ConfigMaps, Secrets ─┐
//!  image store: image configs ──────┤            plan.json, Reload           snapshots
//!  network: addresses ──────────────┼─► worker ─────────────────► supervisor ─────────► status ─► store
//!  volumes: directories ────────────┘     (one task per pod)
//! ```
//!
//! Reading order: [`resources`], [`env`], [`security`], [`status`] (pure rules of Kubernetes), [`builder`] (all of
//! them together: a Pod becomes a plan), [`volumes`], [`pull_secrets`], [`images`], [`layers`], [`network`], [`supervisor`] (what a plan needs of the
//! machine), [`worker`] (the task that drives it all).

pub mod builder;
pub mod context;
pub mod env;
pub mod final_status;
pub(crate) mod image_facts;
pub mod images;
pub mod layers;
pub mod network;
mod prepare;
pub mod pull_secrets;
pub mod resources;
pub mod security;
pub mod status;
pub mod supervisor;
mod teardown;
pub mod tiers;
pub mod volumes;
pub mod worker;
