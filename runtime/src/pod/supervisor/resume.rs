//! How a supervisor starts: with a new pod, or with what an earlier supervisor left.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::epoll::EpollFlags;

use super::container::{self, Run, remove_cgroup};
use super::journal::say;
use super::reactor::{Reactor, Source};
use super::record::{self, Record};
use super::sandbox::Sandbox;
use super::{Error, Supervisor, connection, failed, listen_to_signals, plans, process};
use crate::cgroup::{Cgroup, Layout};
use crate::chain;
use crate::pod::clock::Now;
use crate::pod::lifecycle::{Exit, ExitStatus, Input, Lifecycle, Remembered};
use crate::pod::plan::Plan;

/// A container that lives.
struct Living {
    remembered: Remembered,
    process: crate::pod::lifecycle::Process,
    handle: OwnedFd,
}

impl Supervisor {
    pub(super) fn new(dir: &Path) -> Result<Self, Error> {
        let signals = listen_to_signals()?;
        let boot_id = record::boot_id()?;
        let record = record::load(dir, &boot_id).unwrap_or_else(|e| {
            say(format_args!("starts anew: {}", chain(&e)));
            None
        });
        let plan = plans::read_first(dir, record.is_some())?;
        let layout = Layout::detect().map_err(Error::Cgroup)?;
        let pod_cgroup = enter_cgroups(&plan, &layout)?;
        let now = Now::read();
        let (mut life, sequence, pid_init, leave_when_ended) = match record {
            Some(record) => remembered_pod(record, &plan, now),
            None => (Lifecycle::new(&plan, now), 0, None, false),
        };
        let (living, mut inputs) = find_living(&life);
        remove_strays(&layout, &pod_cgroup, &living, pid_init.is_some());
        let ns_source = living.first().map(|l| l.process.pid);
        let sandbox = Sandbox::open(&plan, ns_source, pid_init, &pod_cgroup, &layout)?;
        life.resume();
        let mut supervisor = Self {
            snapshot: life.snapshot(sequence, now),
            dir: dir.to_owned(),
            boot_id,
            plan,
            life,
            pod_cgroup,
            layout,
            sandbox,
            reactor: Reactor::new().map_err(failed("make an event queue"))?,
            signals,
            listener_key: None,
            listener_rests_until_ms: None,
            stale: true,
            listener: connection::listener(dir).map_err(failed("listen at the pod's socket"))?,
            runs: std::collections::BTreeMap::new(),
            attempts: std::collections::BTreeMap::new(),
            commands: std::collections::BTreeMap::new(),
            connections: std::collections::BTreeMap::new(),
            inputs: Vec::new(),
            buffer: Vec::new(),
            children_ended: true,
            leave_when_ended,
            record_trouble: false,
            leave: false,
        };
        supervisor.register()?;
        for living in living {
            supervisor.adopt(living, &mut inputs);
        }
        supervisor.inputs = inputs;
        supervisor.save();
        Ok(supervisor)
    }

    /// Goes on with a container that an earlier supervisor started. One that cannot be looked after is ended.
    fn adopt(&mut self, living: Living, inputs: &mut Vec<Input>) {
        let name = living.remembered.name.clone();
        match self.try_adopt(living) {
            Ok((run, starting)) => {
                say(format_args!(
                    "{name}: goes on as process {}",
                    run.process.pid
                ));
                self.runs.insert(name.clone(), run);
                if starting {
                    inputs.push(Input::Started { container: name });
                }
            }
            Err(e) => {
                say(format_args!("{name}: cannot go on: {}", chain(&*e)));
                container::abandon(&name, &self.layout, &self.pod_cgroup);
                inputs.push(lost(name));
            }
        }
    }

    fn try_adopt(
        &mut self,
        living: Living,
    ) -> Result<(Run, bool), Box<dyn std::error::Error + Send + Sync>> {
        let name = &living.remembered.name;
        let plan = self
            .plan
            .containers
            .iter()
            .find(|c| c.name == *name)
            .ok_or("it is no longer in the plan")?;
        let mut run = container::adopt(
            plan,
            &living.remembered,
            living.handle,
            living.process,
            &self.dir,
            &self.layout,
            &self.pod_cgroup,
        )?;
        let source = Source::Container(name.clone());
        let reactor = &mut self.reactor;
        run.key = Some(reactor.add(&run.handle, source, EpollFlags::EPOLLIN)?);
        run.output.listen(name, reactor)?;
        Ok((run, living.remembered.starting))
    }
}

type Resumed = (Lifecycle, u64, Option<crate::pod::lifecycle::Process>, bool);

/// The facts of an earlier supervisor under the plan as it is now.
fn remembered_pod(record: Record, plan: &Plan, now: Now) -> Resumed {
    let mut life = record.lifecycle;
    if !life.has_ended()
        && let Err(e) = life.replace_plan(plan, now)
    {
        // The plan that it knew goes on: the agent is told when it asks for a reload.
        say(format_args!("the plan is refused: {e}"));
    }
    (
        life,
        record.sequence,
        record.pid_init,
        record.leave_when_ended,
    )
}

/// Which of the remembered containers live, and what is to be said of the others.
fn find_living(life: &Lifecycle) -> (Vec<Living>, Vec<Input>) {
    let mut living = Vec::new();
    let mut inputs = Vec::new();
    for remembered in life.remembered() {
        let name = remembered.name.clone();
        match remembered.process {
            None => inputs.push(Input::StartLost { container: name }),
            Some(process) => match process::find(process) {
                Some(handle) => living.push(Living {
                    remembered,
                    process,
                    handle,
                }),
                None => inputs.push(lost(name)),
            },
        }
    }
    (living, inputs)
}

/// It ended while nobody looked.
fn lost(name: String) -> Input {
    Input::Exited {
        container: name,
        exit: Exit {
            status: ExitStatus::Unknown,
            oom_killed: false,
            message: Some("it ended while no supervisor was watching".to_owned()),
        },
    }
}

/// Ends and removes cgroups below the pod's that belong to no living container.
fn remove_strays(layout: &Layout, pod: &Cgroup, living: &[Living], has_init: bool) {
    for name in pod_cgroup_children(layout, pod) {
        let known = living.iter().any(|l| l.remembered.name == name)
            || (has_init && name == super::sandbox::PID_INIT_CGROUP);
        if !known {
            say(format_args!("removes what is left of {name}"));
            remove_cgroup(&Cgroup::open(layout, &pod.path().join(&name)));
        }
    }
}

fn pod_cgroup_children(layout: &Layout, pod: &Cgroup) -> Vec<String> {
    let roots: Vec<PathBuf> = match layout {
        Layout::V2 { root } => vec![root.clone()],
        Layout::V1 { hierarchies } => hierarchies.iter().map(|h| h.root.clone()).collect(),
    };
    let below = pod.path().strip_prefix("/").unwrap_or(pod.path());
    let mut names: Vec<String> = roots
        .iter()
        .filter_map(|root| directories(&root.join(below)).ok())
        .flatten()
        .collect();
    names.sort();
    names.dedup();
    names
}

fn directories(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// With a systemd scope: this process into its own cgroup of it. The pod's with its limits in any case.
fn enter_cgroups(plan: &Plan, layout: &Layout) -> Result<Cgroup, Error> {
    if plan.cgroup.scope {
        Cgroup::create(layout, &plan.cgroup.path.join("supervisor"))
            .and_then(|own| own.join_self())
            .map_err(Error::Cgroup)?;
    }
    let pod = Cgroup::create(layout, &plan.cgroup.containers_path()).map_err(Error::Cgroup)?;
    pod.apply(&plan.cgroup.resources).map_err(Error::Cgroup)?;
    Ok(pod)
}
