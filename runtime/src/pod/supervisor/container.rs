//! One run of a container: its process, cgroup, streams and log.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use thiserror::Error;

use super::attempt::Purpose;
use super::filter::filter;
use super::journal::say;
use super::keeper::Keeper;
use super::last_words::{last_words, make_message_file};
use super::launch::{Launch, LaunchError};
use super::output::Output;
use super::process;
use super::reactor::{Key, Reactor};
use super::run_spec::complete;
use super::sandbox::Sandbox;
use super::scratch::{fresh_scratch, remove_other_scratch};
use crate::cgroup::{self, Cgroup, Layout};
use crate::chain;
use crate::container::{
    self, Container, Create, Created, Creating, Exec, Home, Rootfs, Running, Stdio,
};
use crate::pod::lifecycle::{Exit, ExitStatus, Process, Remembered};
use crate::pod::log::LogWriter;
use crate::pod::plan::{ContainerPlan, ContainerSource};
use crate::seccomp::{self, Filter};

/// Why a container could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The plan has no image yet.
    #[error("the container has nothing to run yet")]
    NotReady,
    /// Its cgroup.
    #[error("cannot prepare its cgroup")]
    Cgroup(#[source] cgroup::Error),
    /// A file or directory of its own.
    #[error("cannot prepare {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its standard streams.
    #[error("cannot prepare its standard input and output")]
    Streams(#[source] io::Error),
    /// Its seccomp profile.
    #[error("cannot use its seccomp profile")]
    Seccomp(#[source] seccomp::Error),
    /// Its seccomp profile's file.
    #[error("{} is no seccomp profile", path.display())]
    Profile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Its OCI spec.
    #[error("cannot complete its OCI spec")]
    Spec(#[from] oci_spec::OciSpecError),
    /// What it was started with is not known.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The runtime. Its words stand for themselves.
    #[error(transparent)]
    Runtime(#[from] container::Error),
    /// Its process could not be looked at.
    #[error("cannot look at its process")]
    Process(#[source] io::Error),
}

/// What a run needs of the pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) dir: &'a Path,
    pub(super) layout: &'a Layout,
    pub(super) pod_cgroup: &'a Cgroup,
    pub(super) sandbox: &'a Sandbox,
}

/// A run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: String,
    pub(super) process: Process,
    pub(super) handle: OwnedFd,
    pub(super) key: Option<Key>,
    pub(super) cgroup: Cgroup,
    pub(super) log: LogWriter,
    pub(super) output: Output,
    /// What was said of its probes and hooks.
    pub(super) warned: Vec<Purpose>,
    keeper: Option<Keeper>,
    filter: Option<Filter>,
    oom_kills_before: u64,
}

/// What a run has beside its process.
struct Belongings {
    cgroup: Cgroup,
    log: LogWriter,
    /// A terminal's comes with the process.
    output: Output,
    keeper: Option<Keeper>,
    filter: Option<Filter>,
    scratch: PathBuf,
    keep: String,
    oom_kills_before: u64,
}

/// A run whose process makes its container.
pub(super) struct Making {
    creating: Creating,
    dir: PathBuf,
    name: String,
    launch: Launch,
    belongings: Belongings,
}

/// A run whose program waits to be executed.
pub(super) struct Made {
    created: Created,
    pub(super) process: Process,
    belongings: Belongings,
}

/// A run whose program is being executed.
pub(super) struct Executing {
    executing: container::Executing,
    process: Process,
    belongings: Belongings,
}

/// All but the execution of the program, which is not waited for. What is left after a failure, the next try removes.
pub(super) fn make(
    plan: &ContainerPlan,
    id: &str,
    restart_count: u32,
    pod: Surroundings<'_>,
) -> Result<Making, StartError> {
    let ContainerSource::Ready {
        rootfs,
        spec,
        seccomp,
    } = &plan.source
    else {
        return Err(StartError::NotReady);
    };
    let limits = container::with_device_rules(spec);
    let cgroup = fresh_cgroup(&plan.name, &limits, pod)?;
    let keep = restart_count.to_string();
    let (upper, work) = fresh_scratch(rootfs, &keep)?;
    if let Some(message) = &plan.termination_message {
        make_message_file(&message.host_file).map_err(file_error(&message.host_file))?;
    }
    let launch = Launch::new(id, spec, seccomp)?;
    let filter = filter(seccomp, &launch.process)?;
    launch.save(pod.dir, &plan.name)?;
    let spec = complete(spec, plan, pod.sandbox)?;
    let log = LogWriter::open(&plan.log, restart_count);
    let (output, stdio) = streams(plan, pod.dir)?;
    let oom_kills_before = cgroup.oom_kills().map_err(StartError::Cgroup)?;
    let creating = container::begin(Create {
        id,
        spec: &spec,
        bundle: None,
        rootfs: Rootfs::Overlay {
            layers: &rootfs.layers,
            upper: &upper,
            work: &work,
        },
        stdio,
        home: Home::In(&cgroup),
        seccomp: filter.clone(),
        preserve_fds: 0,
        listen_fds: None,
        new_keyring: true,
        no_pivot: false,
        gate: None,
    })?;
    Ok(Making {
        creating,
        dir: pod.dir.to_owned(),
        name: plan.name.clone(),
        launch,
        belongings: Belongings {
            cgroup,
            log,
            output,
            keeper: None,
            filter,
            scratch: rootfs.scratch.clone(),
            keep,
            oom_kills_before,
        },
    })
}

/// A terminal's output comes with the process.
fn streams(plan: &ContainerPlan, dir: &Path) -> Result<(Output, Stdio), StartError> {
    if plan.tty {
        return Ok((Output::default(), Stdio::Terminal { size: None }));
    }
    Output::make(dir, &plan.name, plan.stdin, plan.stdin_once).map_err(StartError::Streams)
}

impl Making {
    /// Returns when the container is made.
    pub(super) fn wait(mut self) -> Result<Made, StartError> {
        let mut created = self.creating.wait()?;
        let process = process::look(created.pid()).map_err(StartError::Process)?;
        if let Some(control) = created.terminal() {
            let keeper = hold_terminal(control.as_fd(), &self.belongings.cgroup, &self.name);
            self.launch.keeper = keeper.as_ref().map(|keeper| keeper.process);
            self.launch.save(&self.dir, &self.name)?;
            self.belongings.keeper = keeper;
            self.belongings.output = Output::terminal(control).map_err(StartError::Streams)?;
        }
        Ok(Made {
            created,
            process,
            belongings: self.belongings,
        })
    }
}

/// A keeper for a terminal; only a supervisor that is killed would miss it.
fn hold_terminal(control: BorrowedFd<'_>, cgroup: &Cgroup, name: &str) -> Option<Keeper> {
    Keeper::start(control, cgroup)
        .inspect_err(|e| say(format_args!("{name}: nobody else holds its terminal: {e}")))
        .ok()
}

impl Made {
    /// Lets the program be executed.
    pub(super) fn go(self) -> Result<Executing, StartError> {
        Ok(Executing {
            executing: self.created.go()?,
            process: self.process,
            belongings: self.belongings,
        })
    }
}

impl Executing {
    /// Returns when the program has been executed.
    pub(super) fn wait(self, id: String) -> Result<Run, StartError> {
        let Running { pidfd, .. } = self.executing.wait()?;
        let own = self.belongings;
        remove_other_scratch(&own.scratch, &own.keep);
        Ok(Run {
            id,
            process: self.process,
            handle: pidfd,
            key: None,
            cgroup: own.cgroup,
            log: own.log,
            output: own.output,
            warned: Vec::new(),
            keeper: own.keeper,
            filter: own.filter,
            oom_kills_before: own.oom_kills_before,
        })
    }
}

/// What is left of a start that failed.
pub(super) fn abandon(name: &str, layout: &Layout, pod_cgroup: &Cgroup) {
    remove_cgroup(&Cgroup::open(layout, &pod_cgroup.path().join(name)));
}

/// A run that an earlier supervisor started, and whose process lives.
pub(super) fn adopt(
    plan: &ContainerPlan,
    remembered: &Remembered,
    handle: OwnedFd,
    process: Process,
    pod_dir: &Path,
    layout: &Layout,
    pod_cgroup: &Cgroup,
) -> Result<Run, StartError> {
    let name = &plan.name;
    let launch = Launch::load(pod_dir, name, &remembered.id)?;
    let found = match launch.keeper {
        Some(process) => Keeper::find(process).and_then(|(keeper, control)| {
            Output::terminal(control).map(|output| (output, Some(keeper)))
        }),
        None => Output::find(pod_dir, name, plan.stdin, plan.stdin_once).map(|o| (o, None)),
    };
    let (output, keeper) = found.unwrap_or_else(|e| {
        say(format_args!("{name}: its output is lost: {e}"));
        (Output::default(), None)
    });
    // Commands of probes and clients are held to the same filter.
    let filter = filter(&launch.seccomp, &launch.process)?;
    Ok(Run {
        id: remembered.id.clone(),
        process,
        handle,
        key: None,
        log: LogWriter::open(&plan.log, remembered.restart_count),
        cgroup: Cgroup::open(layout, &pod_cgroup.path().join(name)),
        output,
        warned: Vec::new(),
        keeper,
        filter,
        // Its cgroup was made for this run.
        oom_kills_before: 0,
    })
}

impl Run {
    /// Runs a command beside the container's own, with the environment, user and rights that the run was started
    /// with: the plan's are those of the next run.
    pub(super) fn exec(
        &self,
        pod_dir: &Path,
        container: &str,
        command: &[String],
        stdio: Stdio,
    ) -> Result<Running, StartError> {
        let launch = Launch::load(pod_dir, container, &self.id)?;
        let spec = launch.told();
        let Launch { mut process, .. } = launch;
        process.set_args(Some(command.to_vec()));
        process.set_terminal(Some(matches!(stdio, Stdio::Terminal { .. })));
        Ok(container::exec(Exec {
            target: self.handle.as_fd(),
            process: &process,
            container: Some(Container {
                id: &self.id,
                spec: &spec,
                bundle: None,
                pid: self.process.pid,
            }),
            stdio,
            cgroup: Some(&self.cgroup),
            seccomp: self.filter.clone(),
            preserve_fds: 0,
        })?)
    }

    /// The process has ended: gathers what it left and removes its cgroup.
    pub(super) fn finish(
        mut self,
        status: ExitStatus,
        plan: Option<&ContainerPlan>,
        name: &str,
        pod: Surroundings<'_>,
        buffer: &mut Vec<u8>,
        reactor: &mut Reactor,
    ) -> Exit {
        if let Some(key) = self.key.take() {
            reactor.remove(&self.handle, key);
        }
        if pod.sandbox.processes_outlive_the_first()
            && let Err(e) = self.cgroup.kill_all()
        {
            say(format_args!("{name}: {}", chain(&e)));
        }
        if let Err(e) = self
            .output
            .close(pod.dir, name, &mut self.log, buffer, reactor)
        {
            say(format_args!("{name}: cannot remove its FIFOs: {e}"));
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.end();
        }
        if let Err(e) = Launch::remove(pod.dir, name) {
            say(format_args!("{name}: cannot remove its record: {e}"));
        }
        self.log.end(jiff::Timestamp::now());
        let oom_killed = match self.cgroup.oom_kills() {
            Ok(kills) => kills > self.oom_kills_before,
            Err(e) => {
                say(format_args!("{name}: {}", chain(&e)));
                false
            }
        };
        let failed = status != ExitStatus::Code(0);
        let message = plan
            .and_then(|plan| plan.termination_message.as_ref())
            .and_then(|message| last_words(message, failed, self.log.path()));
        remove_cgroup(&self.cgroup);
        Exit {
            status,
            oom_killed,
            message,
        }
    }
}

/// Removes a cgroup, ending what is still in it.
pub(super) fn remove_cgroup(cgroup: &Cgroup) {
    if !cgroup.exists() || cgroup.delete().is_ok() {
        return;
    }
    if let Err(e) = cgroup.kill_all().and_then(|()| cgroup.delete()) {
        say(format_args!("{}", chain(&e)));
    }
}

fn fresh_cgroup(
    name: &str,
    resources: &LinuxResources,
    pod: Surroundings<'_>,
) -> Result<Cgroup, StartError> {
    let path = pod.pod_cgroup.path().join(name);
    remove_cgroup(&Cgroup::open(pod.layout, &path));
    let cgroup = Cgroup::create(pod.layout, &path).map_err(StartError::Cgroup)?;
    cgroup.apply(resources).map_err(StartError::Cgroup)?;
    cgroup.kill_together_on_oom().map_err(StartError::Cgroup)?;
    Ok(cgroup)
}

pub(super) fn file_error(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::File { path, source }
}
