//! What the lifecycle needs of a plan, and the refusal of plans that this supervisor cannot carry out.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::probe::ProbeKind;
use crate::pod::plan::{
    BackOff, ContainerKind, ContainerPlan, ContainerSource, Handler, PLAN_VERSION, Plan, Probe,
    RestartPolicy,
};

/// Why a plan is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// Written for another supervisor.
    #[error("the plan has version {found}; this supervisor understands {PLAN_VERSION}")]
    Version {
        /// The plan's.
        found: u32,
    },
    /// Two containers of one name.
    #[error("two containers are called {name}")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A name that cannot be a file's and a cgroup's.
    #[error("{name:?} cannot be a container's name: use lower-case letters, digits and -")]
    Name {
        /// The name.
        name: String,
    },
    /// Nothing to run.
    #[error("the plan has no main container")]
    NoMain,
    /// An action that this supervisor cannot do.
    #[error("container {container}: {what}: {problem}")]
    Handler {
        /// The container.
        container: String,
        /// Which probe or hook.
        what: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A field with a value that makes no sense.
    #[error("container {container}: {problem}")]
    Value {
        /// The container.
        container: String,
        /// What is wrong.
        problem: String,
    },
    /// The plan of another pod.
    #[error("the plan is for another pod, {uid}")]
    OtherPod {
        /// Its uid.
        uid: String,
    },
    /// A change that a pod cannot take while it runs.
    #[error("container {container}: {problem}")]
    Change {
        /// The container.
        container: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Nothing can change any more.
    #[error("the pod has ended; it takes no new plan")]
    Ended,
}

/// What counts for all of the pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PodRules {
    pub(super) uid: String,
    pub(super) label: String,
    pub(super) grace_ms: u64,
    pub(super) back_off: BackOff,
    pub(super) active_deadline_ms: Option<u64>,
    /// Where the containers' cgroups are.
    pub(super) cgroup: PathBuf,
}

impl PodRules {
    pub(super) fn of(plan: &Plan) -> Self {
        Self {
            uid: plan.pod.uid.clone(),
            label: format!("{}_{}({})", plan.pod.name, plan.pod.namespace, plan.pod.uid),
            grace_ms: plan.termination_grace_secs.saturating_mul(1_000),
            back_off: plan.back_off,
            active_deadline_ms: plan.active_deadline_secs.map(|s| s.saturating_mul(1_000)),
            cgroup: plan.cgroup.containers_path(),
        }
    }
}

/// What counts for one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Rules {
    pub(super) kind: ContainerKind,
    pub(super) spec_hash: String,
    /// Of the spec that it would start with.
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    /// Why it cannot start: reason and message.
    pub(super) waits: Option<(String, String)>,
    pub(super) restart_policy: RestartPolicy,
    startup: Option<Probe>,
    liveness: Option<Probe>,
    readiness: Option<Probe>,
    pub(super) post_start: Option<Handler>,
    pub(super) pre_stop: Option<Handler>,
    pub(super) stop_signal: i32,
}

impl Rules {
    pub(super) fn of(plan: &Plan, container: &ContainerPlan) -> Self {
        let policy = container.restart_policy.unwrap_or(plan.restart_policy);
        Self {
            kind: container.kind,
            spec_hash: container.spec_hash.clone(),
            annotations: match &container.source {
                ContainerSource::Ready { spec, .. } => {
                    let annotations = spec.annotations().iter().flatten();
                    annotations.map(|(k, v)| (k.clone(), v.clone())).collect()
                }
                ContainerSource::Waiting { .. } => BTreeMap::new(),
            },
            waits: match &container.source {
                ContainerSource::Ready { .. } => None,
                ContainerSource::Waiting { reason, message } => {
                    Some((reason.clone(), message.clone()))
                }
            },
            restart_policy: match (container.kind, policy) {
                // An init container has to succeed once, and no more than once.
                (ContainerKind::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
                (ContainerKind::Sidecar, _) => RestartPolicy::Always,
                (ContainerKind::Ephemeral, _) => RestartPolicy::Never,
                (ContainerKind::Init | ContainerKind::Main, policy) => policy,
            },
            startup: container.startup_probe.clone(),
            liveness: container.liveness_probe.clone(),
            readiness: container.readiness_probe.clone(),
            post_start: container.post_start.clone(),
            pre_stop: container.pre_stop.clone(),
            stop_signal: container.stop_signal,
        }
    }

    pub(super) fn probe(&self, kind: ProbeKind) -> Option<&Probe> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }
}

/// Refuses a plan that this supervisor cannot carry out as it is written.
pub fn check(plan: &Plan) -> Result<(), PlanError> {
    if plan.version != PLAN_VERSION {
        return Err(PlanError::Version {
            found: plan.version,
        });
    }
    let mut names = HashSet::new();
    for container in &plan.containers {
        check_name(&container.name)?;
        if !names.insert(container.name.as_str()) {
            return Err(PlanError::Duplicate {
                name: container.name.clone(),
            });
        }
        check_container(container)?;
    }
    if !plan
        .containers
        .iter()
        .any(|c| c.kind == ContainerKind::Main)
    {
        return Err(PlanError::NoMain);
    }
    Ok(())
}

/// A container's name becomes part of paths: it must be an RFC 1123 label.
fn check_name(name: &str) -> Result<(), PlanError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > 63 || name.starts_with('-') || !name.bytes().all(allowed) {
        return Err(PlanError::Name {
            name: name.to_owned(),
        });
    }
    Ok(())
}

fn check_container(container: &ContainerPlan) -> Result<(), PlanError> {
    let value = |problem: String| {
        Err(PlanError::Value {
            container: container.name.clone(),
            problem,
        })
    };
    if !(1..=64).contains(&container.stop_signal) {
        return value(format!("{} is no signal", container.stop_signal));
    }
    if container.log.max_files == 0 || container.log.max_bytes == 0 {
        return value("its log has no room: max_bytes and max_files must be at least 1".to_owned());
    }
    if let ContainerSource::Ready { spec, .. } = &container.source
        && spec.process().is_none()
    {
        return value("its spec has no process".to_owned());
    }
    let probes = [
        ("startup probe", &container.startup_probe),
        ("liveness probe", &container.liveness_probe),
        ("readiness probe", &container.readiness_probe),
    ];
    for (what, probe) in probes {
        let Some(probe) = probe else { continue };
        if probe.success_threshold == 0 || probe.failure_threshold == 0 || probe.period_ms == 0 {
            return value(format!("{what}: its thresholds and period must be above 0"));
        }
        if matches!(probe.handler, Handler::Sleep { .. }) {
            return value(format!(
                "{what}: sleep is an action of lifecycle hooks only"
            ));
        }
        check_handler(container, what, &probe.handler)?;
    }
    let hooks = [
        ("postStart hook", &container.post_start),
        ("preStop hook", &container.pre_stop),
    ];
    for (what, handler) in hooks {
        if let Some(handler) = handler {
            check_handler(container, what, handler)?;
        }
    }
    Ok(())
}

fn check_handler(
    container: &ContainerPlan,
    what: &'static str,
    handler: &Handler,
) -> Result<(), PlanError> {
    let refuse = |problem: String| {
        Err(PlanError::Handler {
            container: container.name.clone(),
            what,
            problem,
        })
    };
    match handler {
        Handler::Exec { command } if command.is_empty() => {
            refuse("exec: the command is empty".to_owned())
        }
        Handler::Http {
            path,
            headers,
            host,
            ..
        } => {
            let has_control = |s: &str| s.bytes().any(|b| b.is_ascii_control());
            let token = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_graphic());
            if !path.starts_with('/') || path.bytes().any(|b| b.is_ascii_control() || b == b' ') {
                return refuse(format!(
                    "the path {path:?} must start with / and hold no spaces or control characters"
                ));
            }
            if let Some((name, _)) = headers
                .iter()
                .find(|(name, value)| !token(name) || name.contains(':') || has_control(value))
            {
                return refuse(format!("the header {name:?} is not one"));
            }
            match host {
                Some(host) => check_host(host).or_else(refuse),
                None => Ok(()),
            }
        }
        Handler::Tcp {
            host: Some(host), ..
        } => check_host(host).or_else(refuse),
        Handler::Grpc { port: 0, .. } => refuse("gRPC: the port must not be 0".to_owned()),
        Handler::Exec { .. }
        | Handler::Tcp { host: None, .. }
        | Handler::Grpc { .. }
        | Handler::Sleep { .. } => Ok(()),
    }
}

fn check_host(host: &str) -> Result<(), String> {
    crate::pod::probe::hosts::resolve(host)
        .map(drop)
        .map_err(|e| e.to_string())
}
