//! Which of the caller's descriptors the process keeps (`--preserve-fds`).

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{Mode, OFlags};

use super::cli::Command;
use super::error::{Error, Result};

/// The first number after the standard streams.
const FIRST_PRESERVED: u32 = 3;

/// Limits what is preserved to what is open, before anything of our own takes a number: as with crun, a caller may ask
/// for more than it gives. Numbers in between that are not open are taken, so that nothing else comes by them; they
/// close when the program is executed.
pub(super) fn settle(command: &mut Command) -> Result<()> {
    let count = match command {
        Command::Create(options) => &mut options.preserve_fds,
        Command::Run(options) => &mut options.create.preserve_fds,
        Command::Exec(options) => &mut options.preserve_fds,
        _ => return Ok(()),
    };
    if *count == 0 {
        return Ok(());
    }
    let failed = |source: io::Error| Error::Argument {
        argument: "--preserve-fds",
        reason: format!("cannot see which descriptors are open: {source}"),
    };
    let end = FIRST_PRESERVED.saturating_add(*count);
    let open = fs::read_dir("/proc/self/fd").map_err(failed)?;
    // The directory's own descriptor is among them, and closed by then.
    let numbers: Vec<u32> = open
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| (FIRST_PRESERVED..end).contains(number))
        .collect();
    let is_open = |number: &u32| fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    *count = numbers
        .into_iter()
        .filter(is_open)
        .max()
        .map_or(0, |last| last + 1 - FIRST_PRESERVED);
    fill_up_to(FIRST_PRESERVED + *count).map_err(|error| failed(error.into()))
}

/// Takes all free numbers below `end`.
fn fill_up_to(end: u32) -> rustix::io::Result<()> {
    loop {
        // The kernel gives the lowest number that is free. Nothing can be reached from this file.
        let descriptor = rustix::fs::open(c"/dev/null", OFlags::CLOEXEC, Mode::empty())?;
        if descriptor.as_raw_fd().cast_unsigned() >= end {
            return Ok(());
        }
        std::mem::forget(descriptor);
    }
}
