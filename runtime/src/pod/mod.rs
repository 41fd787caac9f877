//! One pod: the plan that comes down, the snapshot that goes up, and the protocol between them.
//!
//! ```text
//! agent ── plan.json, Request ──► podling-pod (supervisor) ──► containers
//!       ◄── Snapshot ───────────
//! ```
//!
//! This crate knows nothing of images, manifests or Kubernetes types: a [`plan::Plan`] is fully resolved.

pub mod client;
pub mod clock;
pub mod lifecycle;
pub mod log;
pub mod packet;
pub mod plan;
pub mod probe;
pub mod protocol;
pub mod snapshot;
pub mod supervisor;
