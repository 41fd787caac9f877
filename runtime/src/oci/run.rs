//! `run`: `create` and `start` in one, and waiting for the end.

use std::os::fd::AsFd;

use super::create::{self, Made, Until, settle, undo_on_error};
use super::error::{Error, Result};
use super::foreground::{self, Signals};
use super::log::Log;
use super::start::run_poststart;
use super::store::Store;
use super::{Globals, delete, notify};

/// Options of `run`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// As for `create`
    #[command(flatten)]
    pub create: create::Options,
    /// Do not wait for the container's end
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the container's state when it has ended
    #[arg(long)]
    pub keep: bool,
}

/// Creates, starts, and unless detached waits, removes, and gives the process's exit code.
pub(super) fn run(store: &Store, options: &Options, globals: &Globals, log: &Log) -> Result<u8> {
    let signals = Signals::catch()?;
    let until = match options.detach {
        true => Until::Started,
        false => Until::Ended,
    };
    let Made {
        entry,
        record,
        spec,
        created,
    } = create::make(store, &options.create, globals, until)?;
    let notify = undo_on_error(notify::listen(&entry), &entry, &record)?;
    let started = created.start().map_err(Error::from);
    let started = settle(started, &options.create);
    let running = undo_on_error(started, &entry, &record)?;
    run_poststart(&entry, &spec, &record, log)?;
    if options.detach {
        if let Some(notify) = notify {
            notify.await_ready(running.pidfd.as_fd(), running.pid);
        }
        return Ok(0);
    }
    let exit = foreground::wait(running, &signals, notify.as_ref())?;
    if !options.keep {
        delete::remove(&entry, &record, &spec, log)?;
    }
    Ok(u8::try_from(exit.code()).unwrap_or(u8::MAX))
}
