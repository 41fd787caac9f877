//! The same for programs without an asynchronous runtime: each call connects, does one thing and closes. Nothing stays
//! behind, neither a thread nor a descriptor, so that the caller may clone itself afterwards.

use std::path::PathBuf;

use crate::bus::{Bus, Error, Result, Scope, ScopePath, Systemd};
use crate::property::Property;

/// Makes a scope and waits until it is there.
///
/// # Errors
/// As [`Systemd::start_scope`]; [`Error::NotRunning`] without systemd.
pub fn start_scope(bus: Bus, scope: &Scope<'_>) -> Result<PathBuf> {
    on(bus, async |systemd| {
        let ScopePath(path) = systemd.start_scope(scope).await?;
        Ok(path)
    })
}

/// Stops a scope. One that is not there is fine.
///
/// # Errors
/// As [`Systemd::stop_scope`]; [`Error::NotRunning`] without systemd.
pub fn stop_scope(bus: Bus, name: &str) -> Result<()> {
    on(bus, async |systemd| systemd.stop_scope(name).await)
}

/// Changes properties of a unit until it ends.
///
/// # Errors
/// As [`Systemd::set_properties`]; [`Error::NotRunning`] without systemd.
pub fn set_properties(bus: Bus, unit: &str, properties: &[Property]) -> Result<()> {
    on(bus, async |systemd| {
        systemd.set_properties(unit, properties).await
    })
}

/// Connects and lets `call` do its work; the connection's threads end with the runtime.
fn on<T>(bus: Bus, call: impl AsyncFnOnce(&Systemd) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(async {
        let systemd = Systemd::connect_to(bus).await?.ok_or(Error::NotRunning)?;
        call(&systemd).await
    })
}
