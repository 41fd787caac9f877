//! The child that becomes a container: one straight list of steps.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{ContainerState, Hook, Process, Spec};
use rustix::fs::Mode;

use super::channel::Channel;
use super::devices::Devices;
use super::error::{At, Error, Failure, Result, Step};
use super::inside::{Inside, Kind};
use super::masks::Masks;
use super::mount_plan::{self, MountPlan, RootPropagation};
use super::mounts::Places;
use super::namespaces::Namespaces;
use super::process::{ProcessPlan, forget_affinity};
use super::rootfs::RootfsPlan;
use super::sysctls::Sysctls;
use super::terminal::Terminal;
use super::user_namespace::UserNamespace;
use super::{
    Create, Stdio, devices, forerunner, guest, hooks, mounts, net_devices, no_pivot, rootfs,
    terminal,
};
use crate::cgroup::Joiner;
use crate::sys;

type Done = std::result::Result<(), Failure>;

/// Everything that the child does, parsed; it holds all descriptors that the child needs.
#[derive(Debug)]
pub(super) struct InitPlan {
    joining: Joining,
    pub(super) namespaces: Namespaces,
    /// The forerunner has joined the cgroup and entered the namespaces.
    entered: bool,
    /// Have the parent move network devices in.
    wait_for_devices: bool,
    /// Tell the parent when the namespaces are there, and wait for its hooks.
    pub(super) wait_for_hooks: bool,
    hostname: Option<String>,
    domainname: Option<String>,
    sysctls: Sysctls,
    /// The mount namespace is somebody else's.
    guest: bool,
    rootfs: RootfsPlan,
    readonly_root: bool,
    new_keyring: bool,
    no_pivot: bool,
    /// To set when all is mounted.
    root_propagation: Option<RootPropagation>,
    mounts: Vec<MountPlan>,
    devices: Devices,
    masks: Masks,
    stdio: Stdio,
    cwd: PathBuf,
    process: ProcessPlan,
    hooks: ContainerHooks,
    gate: Option<OwnedFd>,
}

/// How the child joins its cgroup.
#[derive(Debug)]
pub(super) enum Joining {
    /// It is there: in the caller's, or on v2 by clone3.
    Nothing,
    /// By files that the parent opened.
    With(Joiner),
    /// By files that the parent sends when it has made the cgroup.
    Awaited,
}

impl Joining {
    fn join(&self, parent: &Channel) -> Done {
        match self {
            Self::Nothing => Ok(()),
            Self::With(joiner) => joiner.join().at(Step::JoinCgroup, ""),
            Self::Awaited => {
                let joiner = parent.await_joiner().at(Step::AwaitParent, "")?;
                joiner.join().at(Step::JoinCgroup, "")
            }
        }
    }
}

/// crun's annotation, by which `podman run --group-add keep-groups` leaves the caller's groups to the process.
pub(crate) const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

fn keeps_groups(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    annotations.is_some_and(|all| all.get(KEEP_GROUPS).is_some_and(|value| value == "1"))
}

/// What the later steps need of the root file system that was made.
struct Built {
    places: Places,
    terminal: Option<Terminal>,
    /// See [`ContainerHooks::run_create`].
    hook_pid: Option<i32>,
}

/// The hooks that the child runs, and what they are told.
#[derive(Debug)]
struct ContainerHooks {
    create: Vec<Hook>,
    start: Vec<Hook>,
    id: String,
    bundle: Option<PathBuf>,
    /// The process's environment, for hooks without their own.
    env: Vec<String>,
    /// Only its version and annotations are told. None where there is no hook to tell.
    spec: Option<Box<Spec>>,
}

impl InitPlan {
    pub(super) fn new(create: Create<'_>, joining: Joining) -> Result<Self> {
        let Create {
            id,
            spec,
            bundle,
            rootfs,
            stdio,
            home,
            seccomp,
            preserve_fds,
            listen_fds,
            new_keyring,
            no_pivot,
            gate,
        } = create;
        if no_pivot {
            no_pivot::validate(spec)?;
        }
        let process = super::process_of(spec)?;
        let mut planned = ProcessPlan::new(process, spec.linux().as_ref(), seccomp, preserve_fds)?
            .with_listen_fds(listen_fds)?;
        if keeps_groups(spec) {
            planned.keep_groups();
        }
        Ok(Self {
            joining,
            namespaces: Namespaces::open(spec)?,
            entered: false,
            wait_for_devices: !net_devices::plan(spec)?.is_empty(),
            wait_for_hooks: super::has_runtime_hooks(spec),
            hostname: spec.hostname().clone().filter(|n| !n.is_empty()),
            domainname: spec.domainname().clone().filter(|n| !n.is_empty()),
            sysctls: Sysctls::new(spec)?,
            guest: guest::is_guest(spec),
            rootfs: RootfsPlan::new(rootfs)?,
            readonly_root: spec
                .root()
                .as_ref()
                .is_some_and(|root| root.readonly().unwrap_or(false)),
            root_propagation: mount_plan::late_root_propagation(spec)?,
            mounts: mount_plan::plan(spec, bundle, home.cgroup())?,
            devices: devices::plan(spec)?,
            masks: Masks::new(spec),
            stdio,
            cwd: process.cwd().clone(),
            process: planned,
            hooks: ContainerHooks::new(id, spec, bundle, process),
            new_keyring,
            no_pivot,
            gate,
        })
    }

    /// As [`ProcessPlan::limit_capabilities`].
    pub(super) fn limit_capabilities(&mut self, own_user_namespace: bool) -> Result<()> {
        self.process.limit_capabilities(own_user_namespace)
    }

    /// In the parent, which alone may do it: maps the ids of mounts.
    pub(super) fn map_mounts(&mut self) -> Result<()> {
        mounts::open_id_mapped(&mut self.mounts, &self.namespaces.user)
    }

    /// True when mounts have ids to map.
    pub(super) fn has_mapped_mounts(&self) -> bool {
        mounts::any_id_mapped(&self.mounts)
    }

    /// In the parent, which may reach what the root of a user namespace may not: opens the host's side of the root
    /// file system and the mounts, and gives the standard streams away.
    pub(super) fn open_as_caller(&mut self) -> Result<()> {
        if self.guest {
            return Ok(());
        }
        let opened = self
            .rootfs
            .open()
            .and_then(|()| mounts::open_sources(&mut self.mounts));
        opened.map_err(Failure::into_error)?;
        if let UserNamespace::New(maps) | UserNamespace::Joined(_, Some(maps)) =
            &self.namespaces.user
        {
            self.devices.give(maps).map_err(Failure::into_error)?;
        }
        if let UserNamespace::New(maps) = &self.namespaces.user {
            maps.give_pipes(self.stdio.fds(), self.process.uid())
                .map_err(Error::GivePipes)?;
        }
        Ok(())
    }

    /// Runs in the forerunner, and returns its exit code; the parent is told what fails.
    pub(super) fn run_forerunner(mut self, parent: Channel) -> i32 {
        let entered = sys::process::reset_signals()
            .at(Step::ResetSignals, "")
            .and_then(|()| self.enter_namespaces(&parent));
        if let Err(failure) = entered {
            return report(&parent, &failure);
        }
        let flags = self.namespaces.clone_flags;
        self.entered = true;
        forerunner::hand_over(flags, parent, |parent| self.run(parent))
    }

    /// Runs in the child, and returns its exit code if it fails; its parent is told why.
    pub(super) fn run(mut self, parent: Channel) -> i32 {
        let Built {
            places,
            terminal,
            hook_pid,
        } = match self.build(&parent) {
            Ok(built) => built,
            Err(failure) => return report(&parent, &failure),
        };
        if let Err(failure) = self.enter(&places.inside, terminal.as_ref()) {
            return report(&parent, &failure);
        }
        // The controlling side goes with the message, and closes here with all else.
        let control = terminal
            .as_ref()
            .map(|t| rustix::io::fcntl_dupfd_cloexec(&t.control, 3))
            .transpose();
        let control = match control.at(Step::OpenTerminal, "") {
            Ok(control) => control,
            Err(failure) => return report(&parent, &failure),
        };
        let (parent, gate) = match self
            .process
            .close_descriptors(parent, [self.gate.as_ref(), control.as_ref()])
        {
            Ok(kept) => kept,
            Err(failure) => {
                // The channel may be gone with the rest.
                return failure.exit_code();
            }
        };
        // Their numbers are closed, or belong to others now.
        std::mem::forget((places, terminal, control));
        let [gate, control] = gate;
        let code = self.wait_and_execute(parent, gate, control, hook_pid);
        // The numbers of its descriptors are closed, or belong to others.
        std::mem::forget(self);
        code
    }

    /// Steps with the caller's rights and, with a user namespace, the last of them.
    fn enter_namespaces(&mut self, parent: &Channel) -> Done {
        self.namespaces.make_network()?;
        self.joining.join(parent)?;
        forget_affinity()?;
        let process = &self.process;
        let groups_denied = self
            .namespaces
            .enter(parent, || process.write_oom_score_adj())?;
        if groups_denied {
            self.process.keep_groups();
        }
        Ok(())
    }

    /// Steps that the host's file system is needed for.
    fn build(&mut self, parent: &Channel) -> std::result::Result<Built, Failure> {
        sys::process::reset_signals().at(Step::ResetSignals, "")?;
        if !self.entered {
            self.enter_namespaces(parent)?;
        }
        self.namespaces.make_cgroup()?;
        self.begin_session()?;
        rustix::process::umask(Mode::empty());
        self.await_devices(parent)?;
        self.await_hooks(parent)?;
        self.set_names()?;
        if self.namespaces.has_new_network() {
            sys::network::bring_loopback_up().at(Step::RaiseLoopback, "")?;
        }
        self.sysctls.write()?;
        self.process.open_label_files()?;
        if self.guest {
            self.build_as_guest()
        } else {
            self.build_root()
        }
    }

    /// The root file system with all in it, where only this mount namespace shows it.
    fn build_root(&mut self) -> std::result::Result<Built, Failure> {
        mounts::open_sources(&mut self.mounts)?;
        rootfs::make_private()?;
        self.devices.take_given()?;
        let places = mounts::mount_all(rootfs::make(&self.rootfs)?, &self.mounts)?;
        let inside = &places.inside;
        self.devices
            .make(inside, self.namespaces.has_user_namespace())?;
        let terminal = self.open_terminal(&places)?;
        if self.cwd != Path::new("/") {
            inside
                .ensure(&self.cwd, Kind::Directory)
                .at(Step::MakeCwd, self.cwd.to_string_lossy())?;
        }
        places.make_late_readonly()?;
        let hook_pid = self.hooks.run_create()?;
        self.masks.apply(&places)?;
        if self.readonly_root {
            rootfs::make_readonly(inside)?;
        }
        Ok(Built {
            places,
            terminal,
            hook_pid,
        })
    }

    /// In a mount namespace that is somebody else's, nothing is made.
    fn build_as_guest(&self) -> std::result::Result<Built, Failure> {
        let places = Places::bare(rootfs::open_as_guest(&self.rootfs)?);
        let terminal = self.open_terminal(&places)?;
        let hook_pid = self.hooks.run_create()?;
        Ok(Built {
            places,
            terminal,
            hook_pid,
        })
    }

    fn begin_session(&self) -> Done {
        rustix::process::setsid().at(Step::NewSession, "")?;
        if self.new_keyring {
            self.process.label_keyring()?;
            sys::process::new_session_keyring().at(Step::NewKeyring, "")?;
        }
        Ok(())
    }

    /// Has the parent move network devices in, by a socket of this network namespace.
    fn await_devices(&self, parent: &Channel) -> Done {
        if !self.wait_for_devices {
            return Ok(());
        }
        let socket = net_devices::open_socket().at(Step::MoveDevices, "")?;
        parent
            .send(b"N", Some(socket.as_fd()))
            .at(Step::MoveDevices, "")?;
        parent.await_word(b'n').at(Step::MoveDevices, "")
    }

    /// Has the parent run its hooks.
    fn await_hooks(&self, parent: &Channel) -> Done {
        if !self.wait_for_hooks {
            return Ok(());
        }
        parent.send(b"H", None).at(Step::AwaitParent, "")?;
        parent.await_word(b'h').at(Step::AwaitParent, "")
    }

    /// Steps into the container, with privileges.
    fn enter(&mut self, inside: &Inside, terminal: Option<&Terminal>) -> Done {
        if self.guest {
            guest::change_root(inside)?;
        } else if self.no_pivot {
            no_pivot::cover_root(inside)?;
        } else {
            rootfs::pivot(inside)?;
        }
        if let Some(propagation) = self.root_propagation {
            rootfs::set_propagation(propagation)?;
        }
        terminal::set_up(
            &self.stdio,
            terminal,
            self.process.owner(),
            self.namespaces.has_user_namespace(),
        )?;
        Ok(())
    }

    /// Steps without any descriptor of the host: ready, start, privileges, program.
    fn wait_and_execute(
        &mut self,
        parent: Channel,
        gate: Option<OwnedFd>,
        control: Option<OwnedFd>,
        hook_pid: Option<i32>,
    ) -> i32 {
        self.process.add_home();
        self.hooks.give_environment(&self.process);
        self.process.add_listen_fds();
        let tells_early = gate.is_some() && self.tells_agent_early();
        let able = self
            .process
            .find_program()
            .and_then(|()| self.process.set_limits())
            .and_then(|()| match tells_early {
                true => self.process.give_up_privileges(&parent, || Ok(())),
                false => Ok(()),
            });
        if let Err(failure) = able {
            return report(&parent, &failure);
        }
        if parent
            .send(b"R", control.as_ref().map(AsFd::as_fd))
            .is_err()
        {
            return 1;
        }
        drop(control);
        let Some(starter) = await_start(parent, gate) else {
            return 1;
        };
        let hooks = &self.hooks;
        let ready = match tells_early {
            true => Ok(()),
            false => self.process.set_tight_limits().and_then(|()| {
                self.process
                    .give_up_privileges(&starter, || hooks.run_start(hook_pid))
            }),
        };
        match ready {
            Ok(()) => report(&starter, &self.process.execute()),
            Err(failure) => report(&starter, &failure),
        }
    }

    /// As runc, crun and youki do, the seccomp agent is told when the container is created, if that works: a filter
    /// that forbids what waiting takes, startContainer hooks, which no profile is made for, and limits under which no
    /// start is heard have it told at the start.
    fn tells_agent_early(&self) -> bool {
        self.hooks.start.is_empty() && self.process.tells_agent_early()
    }

    fn set_names(&self) -> Done {
        if let Some(name) = &self.hostname {
            rustix::system::sethostname(name.as_bytes()).at(Step::SetHostname, name)?;
        }
        if let Some(name) = &self.domainname {
            rustix::system::setdomainname(name.as_bytes()).at(Step::SetDomainname, name)?;
        }
        Ok(())
    }

    fn open_terminal(&self, places: &Places) -> std::result::Result<Option<Terminal>, Failure> {
        let Stdio::Terminal { size } = self.stdio else {
            return Ok(None);
        };
        let inside = &places.inside;
        let terminal = Terminal::open(places.devpts.as_ref(), inside, size, self.process.uid())?;
        if self.devices.own_dev() && !self.guest {
            devices::make_console(inside, &terminal.user)?;
        }
        Ok(Some(terminal))
    }
}

impl ContainerHooks {
    fn new(id: &str, spec: &Spec, bundle: Option<&Path>, process: &Process) -> Self {
        let hooks = spec.hooks().as_ref();
        let list = |hooks: Option<&Vec<Hook>>| hooks.cloned().unwrap_or_default();
        let create = list(hooks.and_then(|h| h.create_container().as_ref()));
        let start = list(hooks.and_then(|h| h.start_container().as_ref()));
        let any = !create.is_empty() || !start.is_empty();
        Self {
            create,
            start,
            id: id.to_owned(),
            bundle: bundle.map(Into::into),
            env: process.env().clone().unwrap_or_default(),
            spec: any.then(|| Box::new(spec.clone())),
        }
    }

    /// Returns this process's id as the host sees it, for the later hooks.
    ///
    /// They start in the bundle, as with crun. With runc it is the root file system; the specification leaves it open.
    fn run_create(&self) -> std::result::Result<Option<i32>, Failure> {
        if self.spec.is_none() {
            return Ok(None);
        }
        // The host's /proc knows this process by the host's number.
        let pid = std::fs::read_link("/proc/self")
            .at(Step::RunHook, "(/proc/self)")?
            .to_string_lossy()
            .parse()
            .ok();
        self.run(
            "createContainer",
            &self.create,
            ContainerState::Creating,
            pid,
            self.bundle.as_deref(),
        )?;
        Ok(pid)
    }

    /// What runs at the start, inside the container, has what the process has: HOME too.
    fn give_environment(&mut self, process: &ProcessPlan) {
        if !self.start.is_empty() {
            self.env = process.environment();
        }
    }

    fn run_start(&self, pid: Option<i32>) -> Done {
        self.run(
            "startContainer",
            &self.start,
            ContainerState::Created,
            pid,
            None,
        )
    }

    fn run(
        &self,
        kind: &str,
        list: &[Hook],
        status: ContainerState,
        pid: Option<i32>,
        directory: Option<&Path>,
    ) -> Done {
        let Some(spec) = &self.spec else {
            return Ok(());
        };
        let state = hooks::state_json(&self.id, spec, self.bundle.as_deref(), status, pid);
        for hook in list {
            hooks::run(
                hook,
                &state,
                hooks::Environment::These(&self.env),
                directory,
            )
            .map_err(|reason| {
                let subject = format!("{}: the {kind} hook failed{reason}", hook.path().display());
                Failure::new(
                    Step::RunHook,
                    subject,
                    &std::io::Error::from_raw_os_error(Failure::SAID),
                )
            })?;
        }
        Ok(())
    }
}

/// Waits for whoever starts the container: the parent, or who comes to the gate. None: nobody will.
fn await_start(parent: Channel, gate: Option<OwnedFd>) -> Option<Channel> {
    let starter = match gate {
        None => parent,
        Some(gate) => {
            // A creator that ends before it has recorded the container leaves nobody who waits for ever.
            parent.await_word(b'G').ok()?;
            drop(parent);
            Channel::accept(gate.as_fd()).ok()?
        }
    };
    starter.await_word(b'S').ok()?;
    Some(starter)
}

/// Tells the parent, and gives the child's exit code.
pub(super) fn report(channel: &Channel, failure: &Failure) -> i32 {
    // A parent that is gone cannot be told; the process ends either way.
    match channel.send(&failure.encode(), None) {
        Ok(()) | Err(_) => failure.exit_code(),
    }
}
