//! `restore`: makes a container of an image that `checkpoint` saved, by criu.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use oci_spec::runtime::{ContainerState, LinuxDeviceType, Spec};

use super::bundle::Bundle;
use super::checkpoint::DESCRIPTORS;
use super::create::{Takers, kill, record_of};
use super::criu::{Common, Images, Kind, Message, Notice, Opts, Session};
use super::criu::{external_namespaces, text};
use super::error::{Error, Result, file};
use super::foreground::{self, Signals};
use super::input::parse_file;
use super::log::Log;
use super::placement::Placement;
use super::start::run_poststart;
use super::store::{Entry, Record, Store};
use super::{Globals, delete};
use crate::container::{self, Running, is_bind};
use crate::sys::pidfd;

/// criu's log in the work directory.
const LOG: &str = "restore.log";

/// Options of `restore`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The container's name
    pub id: String,
    /// The directory that holds config.json
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// As for `checkpoint`
    #[command(flatten)]
    pub common: Common,
    /// Do not wait for the container's end
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the container's state when it has ended
    #[arg(long)]
    pub keep: bool,
    /// Send the terminal's controlling side to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the first process's pid to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Close the TCP connections that were saved as established
    #[arg(long, conflicts_with = "tcp_established")]
    pub tcp_close: bool,
    /// Another AppArmor profile or SELinux label, as apparmor:NAME
    #[arg(long, value_name = "TYPE:NAME")]
    pub lsm_profile: Option<String>,
    /// Another SELinux context of mounts
    #[arg(long, value_name = "CONTEXT")]
    pub lsm_mount_context: Option<String>,
    /// Refused: criu restores by pivot_root
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted for compatibility, as for `create`
    #[arg(long)]
    pub no_subreaper: bool,
}

/// Restores the container, and unless detached waits, removes, and gives the process's exit code.
pub(super) fn restore(
    store: &Store,
    options: &Options,
    globals: &Globals,
    criu: &Path,
    log: &Log,
) -> Result<u8> {
    if options.no_pivot {
        return Err(Error::Argument {
            argument: "--no-pivot",
            reason: "is refused: criu restores by pivot_root".to_owned(),
        });
    }
    let bundle = Bundle::read(&options.bundle, None)?;
    let signals = Signals::catch()?;
    let entry = store.reserve(&options.id)?;
    let made = entry
        .save_spec(&bundle.text)
        .and_then(|()| Placement::begin(&options.id, &bundle.spec, globals))
        .and_then(|mut place| {
            let made = place
                .complete(&options.id)
                .and_then(|_| make(&entry, options, criu, &bundle, &place));
            match &made {
                Ok(_) => place.settle(),
                Err(_) => place.undo(),
            }
            made
        });
    let (record, running) = match made {
        Ok(made) => made,
        Err(error) => {
            entry.remove()?;
            return Err(error);
        }
    };
    run_poststart(&entry, &bundle.spec, &record, log)?;
    if options.detach {
        return Ok(0);
    }
    let exit = foreground::wait(running, &signals, None)?;
    if !options.keep {
        delete::remove(&entry, &record, &bundle.spec, log)?;
    }
    Ok(u8::try_from(exit.code()).unwrap_or(u8::MAX))
}

fn make(
    entry: &Entry,
    options: &Options,
    criu: &Path,
    bundle: &Bundle,
    place: &Placement,
) -> Result<(Record, Running)> {
    let spec = &bundle.spec;
    let root = Root::mount(&bundle.rootfs, entry.criu_root(), spec)?;
    // After it: criu mounts below these directories, which must be of its own mount namespace.
    let images = Images::open(&options.common, false, LOG)?;
    let criu_log = images.log().to_owned();
    let mut opts = Opts::new(&options.common, &images, root.path(), LOG)?;
    let mut inherited = Vec::new();
    describe(&mut opts, options, bundle)?;
    for (_, key, path) in external_namespaces(spec)? {
        let namespace = OwnedFd::from(File::open(&path).map_err(file("open", &path))?);
        opts.0
            .message(27, &inherit(&key, namespace.as_raw_fd().cast_unsigned()));
        inherited.push(namespace);
    }
    inherited.extend(images.into_descriptors());
    let session = Session::start(criu, inherited)?;
    join_cgroup(&mut opts, place, &options.id, session.pid())?;

    let mut terminal = None;
    let pid = session.request(Kind::Restore, &opts.0, &criu_log, |notice: Notice| {
        tracing::debug!(script = notice.script, "criu works");
        match notice.script.as_str() {
            "setup-namespaces" => run_hooks(&options.id, bundle, notice.pid),
            "orphan-pts-master" => {
                terminal = notice.terminal;
                Ok(())
            }
            _ => Ok(()),
        }
    })?;
    let pid = pid.ok_or(super::criu::Error::Answer)?;
    let pidfd = pidfd::open(pid).map_err(|source| Error::Process {
        attempt: "open",
        pid,
        source,
    })?;
    let running = Running {
        pid,
        pidfd,
        terminal,
    };
    settle(entry, options, bundle, place, running)
}

/// Records the restored process and hands out its terminal and pid; it is killed when that fails.
fn settle(
    entry: &Entry,
    options: &Options,
    bundle: &Bundle,
    place: &Placement,
    mut running: Running,
) -> Result<(Record, Running)> {
    let recorded = record_of(&options.id, bundle, place, running.pid);
    let told = recorded.and_then(|record| {
        entry.draft(&record)?.put()?;
        let takers = Takers {
            console_socket: options.console_socket.as_deref(),
            pidfd_socket: None,
            pid_file: options.pid_file.as_deref(),
        };
        takers.hand_out(&mut running)?;
        Ok(record)
    });
    match told {
        Ok(record) => Ok((record, running)),
        Err(error) => {
            kill(&running);
            Err(error)
        }
    }
}

/// `criu_opts` of a restore.
fn describe(opts: &mut Opts, options: &Options, bundle: &Bundle) -> Result<()> {
    let spec = &bundle.spec;
    // The restored process is our child, not criu's.
    opts.0
        .flag(6, true)
        .flag(26, true)
        .flag(52, options.tcp_close);
    if let Some(profile) = &options.lsm_profile {
        opts.0.text(53, profile);
    }
    if let Some(context) = &options.lsm_mount_context {
        opts.0.text(63, context);
    }
    for mount in spec.mounts().iter().flatten().filter(|it| is_bind(it)) {
        let source = mount.source().clone().unwrap_or_default();
        let key = mount.destination().display().to_string();
        opts.external_mount(&key, text(&bundle.directory.join(source))?);
    }
    let masked = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.masked_paths().as_ref());
    if masked.is_some_and(|masked| !masked.is_empty()) {
        opts.external_mount("/dev/null", "/dev/null");
    }
    let devices = spec.linux().as_ref().and_then(|it| it.devices().as_ref());
    for device in devices.into_iter().flatten() {
        if !matches!(device.typ(), LinuxDeviceType::P) {
            let path = text(device.path())?;
            opts.external_mount(path, path);
        }
    }
    let descriptors: Vec<String> = parse_file(&options.common.image_path.join(DESCRIPTORS))?;
    for (number, name) in (0_u32..).zip(&descriptors) {
        if name.contains("pipe:") {
            opts.0.message(27, &inherit(name, number));
        }
    }
    Ok(())
}

/// `inherit_fd`: what has this name in the image is the descriptor with this number.
fn inherit(key: &str, fd: u32) -> Message {
    let mut message = Message::default();
    message.text(1, key).number(2, fd.into());
    message
}

/// criu makes the processes in its own cgroups; the image's are renamed to them.
fn join_cgroup(opts: &mut Opts, place: &Placement, id: &str, criu: i32) -> Result<()> {
    let Some(cgroup) = place.cgroup() else {
        return Ok(());
    };
    cgroup.add(criu).map_err(|source| Error::Cgroup {
        attempt: "put criu into",
        id: id.to_owned(),
        source,
    })?;
    let path = PathBuf::from(format!("/proc/{criu}/cgroup"));
    let own = fs::read_to_string(&path).map_err(file("read", &path))?;
    for line in own.lines() {
        // `4:cpu,cpuacct:/path`; v2 has no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        for controller in controllers.split(',') {
            let mut root = Message::default();
            root.text(1, controller).text(2, path);
            opts.0.message(25, &root);
        }
    }
    Ok(())
}

fn run_hooks(id: &str, bundle: &Bundle, pid: Option<i32>) -> Result<()> {
    let Some(list) = bundle.spec.hooks() else {
        return Ok(());
    };
    let creating = ContainerState::Creating;
    let state =
        container::hooks::state_json(id, &bundle.spec, Some(&bundle.directory), creating, pid);
    let directory = Some(bundle.directory.as_path());
    container::hooks::run_all(
        "createRuntime",
        list.create_runtime().as_ref(),
        &state,
        directory,
    )?;
    Ok(())
}

/// The root directory as a mount, which criu wants, in a mount namespace of this process's own: the host sees none of
/// it, and it goes with this process at the latest.
#[derive(Debug)]
struct Root {
    place: PathBuf,
}

impl Root {
    fn mount(rootfs: &Path, place: PathBuf, spec: &Spec) -> Result<Self> {
        container::make_mount_places(spec, rootfs)
            .map_err(file("make mount targets in", rootfs))?;
        fs::create_dir(&place).map_err(file("make", &place))?;
        let none = None::<&str>;
        let failed = |error: nix::Error| file("mount", rootfs)(io::Error::from(error));
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(failed)?;
        let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        nix::mount::mount(none, "/", none, slave, none).map_err(failed)?;
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        nix::mount::mount(Some(rootfs), &place, none, bind, none).map_err(failed)?;
        Ok(Self { place })
    }

    fn path(&self) -> &Path {
        &self.place
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let gone = nix::mount::umount2(&self.place, MntFlags::MNT_DETACH)
            .map_err(io::Error::from)
            .and_then(|()| fs::remove_dir(&self.place));
        if let Err(error) = gone {
            tracing::warn!(%error, "criu's root directory stays");
        }
    }
}
