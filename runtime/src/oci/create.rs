//! `create`, and what it has in common with `run`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use oci_spec::runtime::Spec;

use super::bundle::Bundle;
use super::error::{Error, Result, file};
use super::placement::Placement;
use super::replacement::replace_file;
use super::stdio::{check_console, stdio_of};
use super::store::{Entry, Record, Store, start_time_of};
use super::{Globals, activation, console, delete, descriptor_socket, gate, notify};
use crate::container::{self, Created, Rootfs, Running};
use crate::seccomp::{self, Filter};
use crate::sys;

/// Options of `create` that `run` has too.
// Flattened into the options of `run`, whose group has the same name.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// The container's name
    pub id: String,
    /// The directory that holds config.json
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// Read this file instead of the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Send the terminal's controlling side to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the first process's pid to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Send a descriptor of the first process to this socket
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Let the process keep this many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t)]
    pub preserve_fds: u32,
    /// Cover the host's root directory instead of pivot_root, which an initial RAM disk does not allow
    #[arg(long)]
    pub no_pivot: bool,
    /// Let the container have the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Accepted for compatibility: no process here becomes a subreaper
    #[arg(long)]
    pub no_subreaper: bool,
}

/// How long this process stays with a container that it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// `create`: the container waits for its start at its gate, and this process ends before.
    Created,
    /// `run --detach`
    Started,
    /// `run`: it can hold a terminal of the container's.
    Ended,
}

/// A container that was made, and what else there is of it.
pub(super) struct Made {
    pub(super) entry: Entry,
    pub(super) record: Record,
    pub(super) spec: Box<Spec>,
    pub(super) created: Created,
}

/// `create`: the container waits at its gate, and this process ends.
pub(super) fn create(store: &Store, options: &Options, globals: &Globals) -> Result<()> {
    let made = make(store, options, globals, Until::Created)?;
    let running = settle(made.created.leave().map_err(Error::from), options);
    undo_on_error(running, &made.entry, &made.record).map(drop)
}

/// Makes the container, its cgroup and its record; nothing stays if that fails.
pub(super) fn make(
    store: &Store,
    options: &Options,
    globals: &Globals,
    until: Until,
) -> Result<Made> {
    let bundle = Bundle::read(&options.bundle, options.config.as_deref())?;
    check_console(&bundle.spec, options.console_socket.as_deref(), until)?;
    let filter = compile_filter(&bundle.spec)?;
    let entry = store.reserve(&options.id)?;
    let made = make_in(&entry, options, globals, bundle, filter, until);
    if made.is_err()
        && let Err(error) = entry.remove()
    {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "an unfinished container stays"
        );
    }
    made
}

/// What stays of it after a failure is in the entry only.
fn make_in(
    entry: &Entry,
    options: &Options,
    globals: &Globals,
    mut bundle: Bundle,
    filter: Option<Filter>,
    until: Until,
) -> Result<Made> {
    entry.save_spec(&bundle.text)?;
    notify::prepare(entry, &mut bundle.spec)?;
    let gate = match until {
        Until::Created => Some(gate::listen(entry)?),
        Until::Started | Until::Ended => None,
    };
    let mut place = Placement::begin(&options.id, &bundle.spec, globals)?;
    match make_process(entry, options, &bundle, &mut place, filter, gate) {
        Ok((record, created)) => {
            place.settle();
            Ok(Made {
                entry: entry.clone(),
                record,
                spec: bundle.spec,
                created,
            })
        }
        Err(error) => {
            place.undo();
            Err(error)
        }
    }
}

fn make_process(
    entry: &Entry,
    options: &Options,
    bundle: &Bundle,
    place: &mut Placement,
    filter: Option<Filter>,
    gate: Option<OwnedFd>,
) -> Result<(Record, Created)> {
    let spec = &bundle.spec;
    let mut creating = container::begin(container::Create {
        id: &options.id,
        spec,
        bundle: Some(&bundle.directory),
        rootfs: Rootfs::Directory(&bundle.rootfs),
        stdio: stdio_of(spec.process().as_ref()),
        home: place.home(),
        seccomp: filter,
        preserve_fds: options.preserve_fds,
        listen_fds: activation::passed()?,
        new_keyring: !options.no_new_keyring,
        no_pivot: options.no_pivot,
        gate,
    })?;
    if place.complete(&options.id)?
        && let Some(cgroup) = place.cgroup()
    {
        creating.cgroup_is_made(cgroup)?;
    }
    // Written while the process works, and in its place when that is ready. Why it failed, if it has, is heard first.
    let recorded = record_of(&options.id, bundle, place, creating.pid()?)
        .and_then(|record| Ok((entry.draft(&record)?, record)));
    let created = creating.wait()?;
    let (draft, mut record) = recorded?;
    tracing::debug!(
        pid = created.pid(),
        "the container's process waits for its start"
    );
    if created.agent_is_told() {
        record.agent_is_told = true;
        drop(draft);
        entry.draft(&record)?.put()?;
    } else {
        draft.put()?;
    }
    Ok((record, created))
}

/// What is written down of a container with this first process.
///
/// # Errors
/// When the process cannot be looked at.
pub(super) fn record_of(id: &str, bundle: &Bundle, place: &Placement, pid: i32) -> Result<Record> {
    let failed = |source| Error::Process {
        attempt: "look at",
        pid,
        source,
    };
    Ok(Record {
        oci_version: bundle.spec.version().clone(),
        id: id.to_owned(),
        bundle: bundle.directory.clone(),
        pid,
        start_time: start_time_of(pid)
            .map_err(failed)?
            .ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ESRCH)))?,
        rootfs: bundle.rootfs.clone(),
        cgroup: place.cgroup().map(|cgroup| cgroup.path().to_owned()),
        systemd: place.unit().cloned(),
        agent_is_told: false,
        created: Timestamp::now(),
        owner: rustix::process::getuid().as_raw(),
    })
}

/// Hands the terminal and the pid to who asked for them; the process does not outlive a failure.
pub(super) fn settle(running: Result<Running>, options: &Options) -> Result<Running> {
    let mut running = running?;
    let told = options.takers().hand_out(&mut running);
    if let Err(error) = told {
        kill(&running);
        return Err(error);
    }
    Ok(running)
}

impl Options {
    fn takers(&self) -> Takers<'_> {
        Takers {
            console_socket: self.console_socket.as_deref(),
            pidfd_socket: self
                .pidfd_socket
                .as_deref()
                .map(|socket| (socket, b"standard".as_slice())),
            pid_file: self.pid_file.as_deref(),
        }
    }
}

/// Who asked for what of a process that was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Takers<'a> {
    /// Gets the terminal.
    pub(super) console_socket: Option<&'a Path>,
    /// Gets a descriptor of the process, with these bytes.
    pub(super) pidfd_socket: Option<(&'a Path, &'a [u8])>,
    /// Gets the pid.
    pub(super) pid_file: Option<&'a Path>,
}

impl Takers<'_> {
    /// Sends the terminal and the process's descriptor to their sockets, and writes the pid file.
    pub(super) fn hand_out(self, running: &mut Running) -> Result<()> {
        if let Some(socket) = self.console_socket
            && let Some(terminal) = running.terminal.take()
        {
            console::send(socket, terminal.as_fd())?;
        }
        if let Some((socket, word)) = self.pidfd_socket {
            descriptor_socket::send(socket, word, running.pidfd.as_fd())
                .map_err(file("send the process's descriptor to", socket))?;
        }
        if let Some(path) = self.pid_file {
            replace_file(path, running.pid.to_string().as_bytes())?;
        }
        Ok(())
    }
}

/// Kills and reaps a child that cannot be handed over.
pub(super) fn kill(running: &Running) {
    let ended = sys::pidfd::send_signal(running.pidfd.as_fd(), libc::SIGKILL)
        .and_then(|()| sys::pidfd::wait(running.pidfd.as_fd()));
    if let Err(error) = ended {
        tracing::debug!(%error, pid = running.pid, "the process had ended already");
    }
}

/// Removes what is left of a container that could not be started.
pub(super) fn undo_on_error<T>(result: Result<T>, entry: &Entry, record: &Record) -> Result<T> {
    result.inspect_err(|_| {
        let forgotten = entry.spec().and_then(|spec| {
            delete::forget(entry, record)?;
            Ok(container::resctrl::release(&spec, &record.id)?)
        });
        if let Err(error) = forgotten {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a container stays"
            );
        }
    })
}

/// The filter of `linux.seccomp`.
///
/// # Errors
/// [`Error::Seccomp`]
pub(super) fn compile_filter(spec: &Spec) -> Result<Option<Filter>> {
    let profile = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref());
    profile
        .map(seccomp::compile)
        .transpose()
        .map_err(Error::Seccomp)
}
