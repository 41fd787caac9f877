//! Commands for all containers whose names match a regular expression.

use regex_lite::Regex;

use super::error::{Error, Result};
use super::log::Log;
use super::store::Store;
use crate::chain;

/// Runs `command` for each container that the pattern finds; those for which it fails are warnings first. A pattern
/// that finds none is fine.
///
/// # Errors
/// [`Error::Some`] when it failed for any.
pub(super) fn for_each(
    store: &Store,
    pattern: &str,
    log: &Log,
    command: impl Fn(&str) -> Result<()>,
) -> Result<()> {
    let pattern = Regex::new(pattern).map_err(|error| Error::Argument {
        argument: "--regex",
        reason: error.to_string(),
    })?;
    let mut failed = Vec::new();
    for record in store.list()? {
        if !pattern.is_match(&record.id) {
            continue;
        }
        match command(&record.id) {
            // Somebody else removed it.
            Ok(()) | Err(Error::Missing { .. }) => {}
            Err(error) => {
                log.warning(&format!("{}: {}", record.id, chain(&error)));
                failed.push(record.id);
            }
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Error::Some { ids: failed })
    }
}
