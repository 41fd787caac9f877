//! What Podling asks of systemd: a transient scope for each pod over D-Bus, and for each container of the OCI command
//! when its caller wants one; readiness, status and watchdog of the agent. Its unit files lie beside this crate's
//! sources, in `units/`.
//!
//! ```text
//! agent ── Systemd::start_scope(pids of the supervisor) ──► org.freedesktop.systemd1.Manager
//!       ◄─ the scope's cgroup, once its job is done ──────
//! agent ── service::{ready, status, stopping, watchdog} ──► $NOTIFY_SOCKET
//! ```
//!
//! Where systemd does not run the machine, all of it does nothing. Deliberately absent: services and timers of pods,
//! and limits of pods as unit properties: they are written to the delegated cgroup, one way for every machine. What a
//! container's limits are as properties is the runtime's to say.

pub mod service;

#[cfg(feature = "bus")]
pub mod blocking;
#[cfg(feature = "bus")]
mod bus;
#[cfg(feature = "bus")]
mod property;

#[cfg(feature = "bus")]
pub use bus::{Bus, Error, Result, Scope, ScopePath, Systemd};
#[cfg(feature = "bus")]
pub use property::{Property, PropertyValue};

use std::path::Path;

/// True when systemd runs the machine (sd_booted(3)).
pub fn runs_the_machine() -> bool {
    Path::new("/run/systemd/system").is_dir()
}
