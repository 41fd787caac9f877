//! The cgroup of a container that was created.

use std::sync::OnceLock;

use super::error::{Error, Result};
use super::store::Record;
use crate::cgroup::{self, Cgroup, Layout};

/// The cgroup of a container; none when it was created without.
///
/// # Errors
/// When cgroups are not mounted.
pub(super) fn find(record: &Record) -> Result<Option<Cgroup>> {
    let Some(path) = &record.cgroup else {
        return Ok(None);
    };
    let layout = layout().map_err(attempt("find", record))?;
    Ok(Some(Cgroup::open(layout, path)))
}

/// How cgroups are mounted, looked up once: a command is too short for that to change.
///
/// # Errors
/// When they are not mounted.
pub(super) fn layout() -> cgroup::Result<&'static Layout> {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    if let Some(known) = LAYOUT.get() {
        return Ok(known);
    }
    let found = Layout::detect()?;
    Ok(LAYOUT.get_or_init(|| found))
}

/// As [`find`], for what cannot be done without.
///
/// # Errors
/// [`Error::NoCgroup`] when it was created without.
pub(super) fn of(record: &Record) -> Result<Cgroup> {
    find(record)?.ok_or_else(|| Error::NoCgroup {
        id: record.id.clone(),
    })
}

/// True when the container's processes stand still, before its start too.
///
/// # Errors
/// When its cgroup cannot be looked at.
pub(super) fn is_frozen(record: &Record) -> Result<bool> {
    match find(record)? {
        Some(cgroup) => cgroup.is_frozen().map_err(attempt("look at", record)),
        None => Ok(false),
    }
}

/// Names the attempt and the container.
pub(super) fn attempt(
    attempt: &'static str,
    record: &Record,
) -> impl FnOnce(cgroup::Error) -> Error {
    let id = record.id.clone();
    move |source| Error::Cgroup {
        attempt,
        id,
        source,
    }
}
