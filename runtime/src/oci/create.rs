//! `create`, `start` and `run`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use oci_spec::runtime::{ContainerState, Process, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::error::{Error, Result, file};
use super::foreground::{self, Signals};
use super::log::Log;
use super::store::{Entry, Record, Store, replace_file, start_time_of};
use super::{cli, console, delete};
use crate::cgroup::{Cgroup, Layout};
use crate::container::{self, Created, Rootfs, Running, Stdio, TerminalSize, hooks};
use crate::seccomp::{self, Filter};
use crate::sys;

/// Where containers without `linux.cgroupsPath` live, their names added.
const DEFAULT_CGROUP: &str = "/podling-runtime-";

/// A container that was made, and what else there is of it.
struct Made {
    entry: Entry,
    record: Record,
    spec: Spec,
    created: Created,
}

/// `create`: the container waits at its gate, and this process ends.
pub(super) fn create(store: &Store, options: &cli::Create) -> Result<()> {
    let made = make(store, options, true)?;
    let running = settle(made.created.leave().map_err(Error::from), options);
    undo_on_error(running, &made.entry, &made.record).map(drop)
}

/// `start`: lets the container through its gate.
pub(super) fn start(store: &Store, id: &str, log: &Log) -> Result<()> {
    let entry = store.entry(id)?;
    let record = entry.load()?;
    let (status, _) = entry.status(&record)?;
    if status != ContainerState::Created {
        return Err(Error::Status {
            id: id.to_owned(),
            status: super::status_name(status),
            command: "start",
            wanted: "created",
        });
    }
    let connection = connect(&entry)?;
    // From here on it counts as started, whatever comes of it.
    fs::remove_file(entry.gate()).map_err(file("remove", entry.gate()))?;
    container::start_at_gate(connection)?;
    let spec = entry.spec()?;
    run_poststart(&spec, &record, log);
    Ok(())
}

/// `run`: creates, starts, and unless detached waits, removes, and gives the process's exit code.
pub(super) fn run(store: &Store, options: &cli::Run, log: &Log) -> Result<u8> {
    let signals = Signals::catch()?;
    let Made {
        entry,
        record,
        spec,
        created,
    } = make(store, &options.create, false)?;
    let started = created.start().map_err(Error::from);
    let started = settle(started, &options.create);
    let running = undo_on_error(started, &entry, &record)?;
    run_poststart(&spec, &record, log);
    if options.detach {
        return Ok(0);
    }
    let exit = foreground::wait(running, &signals)?;
    if !options.keep {
        delete::remove(&entry, &record, &spec, log)?;
    }
    Ok(u8::try_from(exit.code()).unwrap_or(u8::MAX))
}

/// Makes the container, its cgroup and its record; nothing stays if that fails.
fn make(store: &Store, options: &cli::Create, gated: bool) -> Result<Made> {
    let bundle = fs::canonicalize(&options.bundle).map_err(file("find", &options.bundle))?;
    let config = bundle.join("config.json");
    let text = fs::read(&config).map_err(file("read", &config))?;
    let spec: Spec = serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: config,
        source,
    })?;
    container::validate(&spec)?;
    check_console(&spec, options, gated)?;
    let filter = compile_filter(store, &spec)?;

    let entry = store.reserve(&options.id)?;
    let made = make_in(&entry, options, &bundle, spec, &text, filter, gated);
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

fn make_in(
    entry: &Entry,
    options: &cli::Create,
    bundle: &Path,
    spec: Spec,
    text: &[u8],
    seccomp: Option<Filter>,
    gated: bool,
) -> Result<Made> {
    entry.save_spec(text)?;
    let gate = gated.then(|| listen(entry)).transpose()?;
    let cgroup = make_cgroup(&options.id, &spec)?;
    let made = make_process(entry, options, bundle, &spec, &cgroup, seccomp, gate);
    match made {
        Ok((record, created)) => Ok(Made {
            entry: entry.clone(),
            record,
            spec,
            created,
        }),
        Err(error) => {
            if let Err(error) = cgroup.delete() {
                tracing::warn!(error = &error as &dyn std::error::Error, "a cgroup stays");
            }
            Err(error)
        }
    }
}

fn make_process(
    entry: &Entry,
    options: &cli::Create,
    bundle: &Path,
    spec: &Spec,
    cgroup: &Cgroup,
    seccomp: Option<Filter>,
    gate: Option<OwnedFd>,
) -> Result<(Record, Created)> {
    let failed = |source| Error::Cgroup {
        attempt: "limit",
        id: options.id.clone(),
        source,
    };
    cgroup
        .apply(&container::with_device_rules(spec))
        .map_err(failed)?;
    let root = spec.root().as_ref().ok_or_else(|| Error::Argument {
        argument: "config.json",
        reason: "root is missing".to_owned(),
    })?;
    let created = container::create(container::Create {
        id: &options.id,
        spec,
        bundle: Some(bundle),
        rootfs: Rootfs::Directory(&bundle.join(root.path())),
        stdio: stdio_of(spec.process().as_ref()),
        cgroup: Some(cgroup),
        seccomp,
        preserve_fds: options.preserve_fds,
        gate,
    })?;
    let record = Record {
        oci_version: spec.version().clone(),
        id: options.id.clone(),
        bundle: bundle.to_owned(),
        pid: created.pid(),
        start_time: start_time(created.pid())?,
        cgroup: cgroup.path().to_owned(),
        created: Timestamp::now(),
        owner: rustix::process::getuid().as_raw(),
    };
    entry.save(&record)?;
    Ok((record, created))
}

fn start_time(pid: i32) -> Result<u64> {
    let failed = |source| Error::Process {
        attempt: "look at",
        pid,
        source,
    };
    start_time_of(pid)
        .map_err(failed)?
        .ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ESRCH)))
}

/// Hands the terminal and the pid to who asked for them.
fn settle(running: Result<Running>, options: &cli::Create) -> Result<Running> {
    let mut running = running?;
    let told = hand_out(
        &mut running,
        options.console_socket.as_deref(),
        options.pid_file.as_deref(),
    );
    if let Err(error) = told {
        kill(&running);
        return Err(error);
    }
    Ok(running)
}

/// Sends the terminal to its socket, and writes the pid file.
pub(super) fn hand_out(
    running: &mut Running,
    console_socket: Option<&Path>,
    pid_file: Option<&Path>,
) -> Result<()> {
    if let Some(socket) = console_socket
        && let Some(terminal) = running.terminal.take()
    {
        console::send(socket, terminal.as_fd())?;
    }
    if let Some(path) = pid_file {
        replace_file(path, running.pid.to_string().as_bytes())?;
    }
    Ok(())
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
fn undo_on_error<T>(result: Result<T>, entry: &Entry, record: &Record) -> Result<T> {
    result.inspect_err(|_| {
        if let Err(error) = delete::forget(entry, record) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a container stays"
            );
        }
    })
}

fn run_poststart(spec: &Spec, record: &Record, log: &Log) {
    let Some(list) = spec.hooks().as_ref().and_then(|h| h.poststart().as_ref()) else {
        return;
    };
    let state = hooks::state_json(
        &record.id,
        spec,
        Some(&record.bundle),
        ContainerState::Running,
        Some(record.pid),
    );
    // runtime-spec runtime.md#lifecycle: log a warning and go on with the remaining hooks.
    for hook in list {
        if let Err(error) = hooks::run_all("poststart", Some(&vec![hook.clone()]), &state) {
            log.warning(&super::error::chain(&error));
        }
    }
}

/// The gate's socket, bound by way of its directory's descriptor: an address holds 107 bytes, a path may be longer.
fn listen(entry: &Entry) -> Result<OwnedFd> {
    let path = entry.gate();
    let gate = socket().and_then(|socket| {
        with_short_path(&path, |address| {
            rustix::net::bind(&socket, address).map_err(Into::into)
        })?;
        rustix::net::listen(&socket, 1)?;
        Ok(socket)
    });
    gate.map_err(file("make", path))
}

fn connect(entry: &Entry) -> Result<OwnedFd> {
    let path = entry.gate();
    let connection = socket().and_then(|socket| {
        with_short_path(&path, |address| {
            rustix::net::connect(&socket, address).map_err(Into::into)
        })?;
        Ok(socket)
    });
    connection.map_err(file("connect to", path))
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn with_short_path(
    path: &Path,
    f: impl FnOnce(&SocketAddrUnix) -> io::Result<()>,
) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    f(&SocketAddrUnix::new(&short)?)
}

fn make_cgroup(id: &str, spec: &Spec) -> Result<Cgroup> {
    let failed = |attempt| {
        move |source| Error::Cgroup {
            attempt,
            id: id.to_owned(),
            source,
        }
    };
    let path = cgroup_path(id, spec)?;
    let layout = Layout::detect().map_err(failed("find a place for"))?;
    let cgroup = Cgroup::open(&layout, &path);
    if cgroup.exists() && !cgroup.processes().map_err(failed("look at"))?.is_empty() {
        return Err(Error::CgroupInUse { path });
    }
    Cgroup::create(&layout, &path).map_err(failed("make"))
}

/// `linux.cgroupsPath`, from the root of each hierarchy, a relative one too.
fn cgroup_path(id: &str, spec: &Spec) -> Result<PathBuf> {
    let invalid = |reason: &str| Error::Argument {
        argument: "linux.cgroupsPath",
        reason: reason.to_owned(),
    };
    let asked = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_deref())
        .filter(|path| !path.as_os_str().is_empty());
    let Some(asked) = asked else {
        return Ok(PathBuf::from(format!("{DEFAULT_CGROUP}{id}")));
    };
    if asked.to_string_lossy().contains(':') {
        return Err(invalid(
            "systemd's slice:prefix:name is not supported; give a path",
        ));
    }
    let mut depth = 0;
    for component in asked.components() {
        match component {
            std::path::Component::Normal(_) => depth += 1,
            std::path::Component::ParentDir => return Err(invalid("must not hold ..")),
            _ => {}
        }
    }
    if depth == 0 {
        return Err(invalid("the root cgroup is not the container's own"));
    }
    Ok(Path::new("/").join(asked))
}

fn compile_filter(store: &Store, spec: &Spec) -> Result<Option<Filter>> {
    let profile = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref());
    profile
        .map(|profile| seccomp::compile(profile, Some(&store.seccomp_cache())))
        .transpose()
        .map_err(Error::Seccomp)
}

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
fn check_console(spec: &Spec, options: &cli::Create, gated: bool) -> Result<()> {
    let terminal = spec
        .process()
        .as_ref()
        .is_some_and(|p| p.terminal().unwrap_or(false));
    let reason = match (terminal, &options.console_socket) {
        (true, None) if gated => "process.terminal is set, so a socket must be given",
        (false, Some(_)) => "a socket is given, but process.terminal is not set",
        _ => return Ok(()),
    };
    Err(Error::Argument {
        argument: "--console-socket",
        reason: reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Linux;

    fn path_for(asked: &str) -> Result<PathBuf> {
        let mut linux = Linux::default();
        linux.set_cgroups_path(Some(asked.into()));
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        cgroup_path("id", &spec)
    }

    #[test]
    fn the_cgroup_is_the_containers_own() {
        assert_eq!(path_for("/a/b").expect("fine"), Path::new("/a/b"));
        assert_eq!(path_for("a/b").expect("fine"), Path::new("/a/b"));
        assert_eq!(
            path_for("").expect("fine"),
            Path::new("/podling-runtime-id")
        );
        for refused in ["/", ".", "/..", "/a/../..", "system.slice:x:y"] {
            assert!(path_for(refused).is_err(), "{refused}");
        }
    }
}
