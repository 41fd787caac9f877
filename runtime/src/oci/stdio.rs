//! A process's standard streams, and its terminal.

use std::path::Path;

use oci_spec::runtime::{Process, Spec};

use super::console;
use super::create::Until;
use super::error::{Error, Result};
use crate::container::{Stdio, TerminalSize};

/// Standard streams as the process wants them.
pub(super) fn stdio_of(process: Option<&Process>) -> Stdio {
    let Some(process) = process.filter(|p| p.terminal().unwrap_or(false)) else {
        return Stdio::Inherit;
    };
    let size = process
        .console_size()
        .as_ref()
        .map_or_else(console::own_size, |size| {
            let cells = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
            Some(TerminalSize {
                columns: cells(size.width()),
                rows: cells(size.height()),
            })
        });
    Stdio::Terminal { size }
}

/// A terminal must go somewhere, and a socket for one needs one.
///
/// # Errors
/// [`Error::Argument`]
pub(super) fn check_console(
    spec: &Spec,
    console_socket: Option<&Path>,
    until: Until,
) -> Result<()> {
    let terminal = spec
        .process()
        .as_ref()
        .is_some_and(|p| p.terminal().unwrap_or(false));
    let reason = match (terminal, console_socket) {
        (true, None) if until != Until::Ended => {
            "process.terminal is set, so a socket must be given"
        }
        (false, Some(_)) => "a socket is given, but process.terminal is not set",
        _ => return Ok(()),
    };
    Err(Error::Argument {
        argument: "--console-socket",
        reason: reason.to_owned(),
    })
}
