//! A Pod becomes a plan: everything that the supervisor needs, resolved. No I/O but what volumes need for a subPath.
//!
//! ```text
//! Pod + ConfigMaps + Secrets + images + volumes + network ──► Plan
//! ```
//!
//! What is wrong with one container alone makes that one wait with `CreateContainerConfigError`; the others run.

mod mounts;
mod probes;
mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, RootBuilder, Spec,
    SpecBuilder,
};
use podling_images::Image;
use podling_runtime::chain;
use podling_runtime::pod::plan::{
    BackOff, CgroupPlan, ContainerKind, ContainerPlan, ContainerSource, LogPlan, NetworkPlan,
    PLAN_VERSION, Plan, PodIdentity, RestartPolicy, RootfsPlan, TerminationMessage,
};
use sha2::{Digest as _, Sha256};

use super::env::{self, EnvError, Objects, PodFacts, Variables};
use super::image_facts::ImageFacts;
use super::resources::{self, PodResourcesError};
use super::security::{self, Security, SecurityError};
use super::volumes::{PreparedVolume, VolumeError, Volumes};
use crate::manifest::quantity::{self, QuantityError};

/// Kubernetes' default for `terminationGracePeriodSeconds`.
const DEFAULT_GRACE_SECS: i64 = 30;
/// The value of `resizePolicy[].restartPolicy` other than its default.
const RESTART_TO_RESIZE: &str = "RestartContainer";
const DEFAULT_TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

/// What a container's image has come to.
#[derive(Debug, Clone)]
pub enum ImageState {
    /// It is here.
    Ready(Box<Image>),
    /// It is not, with the reason that the container shows.
    Waiting {
        /// `ErrImagePull`, `ImagePullBackOff`, …
        reason: String,
        /// For people.
        message: String,
    },
}

/// The files that the node writes into every container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcFiles {
    /// `/etc/hosts`.
    pub hosts: PathBuf,
    /// `/etc/hostname`.
    pub hostname: PathBuf,
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

/// All that a plan is made of.
pub struct Input<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The plan's generation.
    pub generation: u64,
    /// What the downward API can tell, and the machine's capacity.
    pub facts: &'a PodFacts<'a>,
    /// The namespace's ConfigMaps and Secrets.
    pub objects: &'a dyn Objects,
    /// The host name inside the pod.
    pub hostname: String,
    /// Where the pod's network namespace is.
    pub network: NetworkPlan,
    /// The pod's cgroup, or its scope's.
    pub cgroup: PathBuf,
    /// `cgroup` is a systemd scope.
    pub scope: bool,
    /// The pod's volumes.
    pub volumes: &'a Volumes,
    /// Those that are ready, by name.
    pub prepared: &'a BTreeMap<String, PreparedVolume>,
    /// The tmpfs that the pod's containers share as `/dev/shm`.
    pub shm: PathBuf,
    /// The images, by container name.
    pub images: &'a BTreeMap<String, ImageState>,
    /// `/etc/hosts` and the like.
    pub etc: &'a EtcFiles,
    /// The pod's directory below the data directory.
    pub data_dir: PathBuf,
    /// The pod's log directory.
    pub log_dir: PathBuf,
    /// The size of one log file, in bytes.
    pub log_max_bytes: u64,
    /// How many log files are kept.
    pub log_max_files: u32,
    /// Restart delays.
    pub back_off: BackOff,
    /// Processes that the pod may have; 0 is no limit.
    pub pids_limit: i64,
    /// The lowest OOM score that this process may give.
    pub min_oom_score_adj: i32,
}

/// Why a pod has no plan.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A pod without a spec, name, namespace or UID.
    #[error("the pod has no {0}")]
    Lacks(&'static str),
    /// The pod's resources are wrong.
    #[error("the pod's resources")]
    Resources(#[from] PodResourcesError),
}

/// Why one container cannot be made; its text becomes the message of `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
enum ContainerError {
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Quantity(#[from] QuantityError),
    #[error(transparent)]
    User(#[from] podling_images::UserError),
    #[error("container has runAsNonRoot and image will run as root (user {0})")]
    RunsAsRoot(u32),
    #[error("no command specified: neither the manifest nor the image has one")]
    NoCommand,
    #[error("port \"{0}\" of a probe or hook is no port of this container")]
    Port(String),
    #[error("stop signal \"{0}\" is unknown")]
    Signal(String),
    #[error("build the OCI spec: {0}")]
    Spec(#[from] OciSpecError),
}

/// Makes the plan of a pod.
///
/// # Errors
/// When the pod as a whole cannot be planned.
pub fn build(input: &Input<'_>) -> Result<Plan, BuildError> {
    let metadata = &input.pod.metadata;
    let spec = input.pod.spec.as_ref().ok_or(BuildError::Lacks("spec"))?;
    let text = |value: &Option<String>, what| value.clone().ok_or(BuildError::Lacks(what));
    let init = spec.init_containers.iter().flatten();
    let containers = init
        .map(|c| {
            (
                c,
                if resources::is_sidecar(c) {
                    ContainerKind::Sidecar
                } else {
                    ContainerKind::Init
                },
            )
        })
        .chain(spec.containers.iter().map(|c| (c, ContainerKind::Main)))
        .map(|(container, kind)| plan_container(input, spec, container, kind))
        .collect();
    Ok(Plan {
        version: PLAN_VERSION,
        generation: input.generation,
        pod: PodIdentity {
            namespace: text(&metadata.namespace, "namespace")?,
            name: text(&metadata.name, "name")?,
            uid: text(&metadata.uid, "UID")?,
        },
        hostname: input.hostname.clone(),
        cgroup: CgroupPlan {
            path: input.cgroup.clone(),
            scope: input.scope,
            resources: resources::pod_resources(spec, input.pids_limit, &input.facts.capacity)?,
        },
        network: input.network.clone(),
        share_pid: spec.share_process_namespace == Some(true),
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        sysctls: sysctls(spec),
        restart_policy: match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        },
        termination_grace_secs: seconds(
            spec.termination_grace_period_seconds
                .unwrap_or(DEFAULT_GRACE_SECS),
        ),
        back_off: input.back_off,
        active_deadline_secs: spec.active_deadline_seconds.map(seconds),
        containers,
    })
}

fn sysctls(spec: &PodSpec) -> BTreeMap<String, String> {
    let context = spec.security_context.as_ref();
    let listed = context
        .and_then(|c| c.sysctls.as_ref())
        .into_iter()
        .flatten();
    listed
        .map(|s| (s.name.replace('/', "."), s.value.clone()))
        .collect()
}

fn plan_container(
    input: &Input<'_>,
    spec: &PodSpec,
    container: &Container,
    kind: ContainerKind,
) -> ContainerPlan {
    let image = input.images.get(&container.name);
    let details = details(input, spec, container, image);
    let (source, stop_signal, handlers) = match details {
        Ok(details) => (details.source, details.stop_signal, details.handlers),
        Err(error) => {
            let source = ContainerSource::Waiting {
                reason: "CreateContainerConfigError".to_owned(),
                message: chain(&error),
            };
            (source, nix::libc::SIGTERM, probes::Handlers::default())
        }
    };
    ContainerPlan {
        name: container.name.clone(),
        kind,
        spec_hash: spec_hash(container),
        source,
        restart_policy: None,
        startup_probe: handlers.startup,
        liveness_probe: handlers.liveness,
        readiness_probe: handlers.readiness,
        post_start: handlers.post_start,
        pre_stop: handlers.pre_stop,
        stop_signal,
        log: LogPlan {
            dir: input.log_dir.join(&container.name),
            max_bytes: input.log_max_bytes,
            max_files: input.log_max_files,
        },
        termination_message: Some(TerminationMessage {
            path: container
                .termination_message_path
                .as_deref()
                .filter(|path| !path.is_empty())
                .unwrap_or(DEFAULT_TERMINATION_MESSAGE_PATH)
                .into(),
            host_file: container_dir(input, container).join("termination-log"),
            fallback_to_logs: container.termination_message_policy.as_deref()
                == Some("FallbackToLogsOnError"),
        }),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        host_devices: container
            .security_context
            .as_ref()
            .is_some_and(|context| context.privileged == Some(true)),
    }
}

/// The parts of a container's plan that can fail.
struct Details {
    source: ContainerSource,
    stop_signal: i32,
    handlers: probes::Handlers,
}

fn details(
    input: &Input<'_>,
    spec: &PodSpec,
    container: &Container,
    image: Option<&ImageState>,
) -> Result<Details, ContainerError> {
    let handlers = probes::handlers(container)?;
    let image = match image {
        Some(ImageState::Ready(image)) => image,
        Some(ImageState::Waiting { reason, message }) => {
            return Ok(waiting(reason, message, handlers));
        }
        None => return Ok(waiting("ContainerCreating", "", handlers)),
    };
    let security = security::effective(spec, container)?;
    let variables = env::variables(container, input.facts, input.objects)?;
    Ok(Details {
        source: ContainerSource::Ready {
            rootfs: RootfsPlan {
                layers: image.layers.clone(),
                scratch: container_dir(input, container).join("layer"),
            },
            spec: Box::new(oci_spec(
                input, spec, container, image, &security, &variables,
            )?),
            seccomp: security.seccomp.clone(),
        },
        stop_signal: process::stop_signal(container, image)?,
        handlers,
    })
}

fn waiting(reason: &str, message: &str, handlers: probes::Handlers) -> Details {
    Details {
        source: ContainerSource::Waiting {
            reason: reason.to_owned(),
            message: message.to_owned(),
        },
        stop_signal: nix::libc::SIGTERM,
        handlers,
    }
}

fn oci_spec(
    input: &Input<'_>,
    spec: &PodSpec,
    container: &Container,
    image: &Image,
    security: &Security,
    variables: &Variables,
) -> Result<Spec, ContainerError> {
    let needs = resources::needs(container.resources.as_ref())?;
    let mut limits = resources::container_resources(&needs, &input.facts.capacity)?;
    limits.set_devices(Some(device_rules(security)?));
    let bare = security.privileged || security.unmasked_proc;
    let owned = |paths: &[&str]| {
        if bare {
            Vec::new()
        } else {
            paths.iter().map(|p| (*p).to_owned()).collect()
        }
    };
    let name = container.image.as_deref().unwrap_or_default();
    let linux = LinuxBuilder::default()
        .resources(limits)
        .masked_paths(owned(&mounts::MASKED_PATHS))
        .readonly_paths(owned(&mounts::READ_ONLY_PATHS))
        .build()?;
    Ok(SpecBuilder::default()
        .version("1.2.0")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(security.read_only_rootfs)
                .build()?,
        )
        .process(process::process(
            input, spec, container, image, security, variables,
        )?)
        .mounts(mounts::mounts(input, spec, container, security, variables)?)
        .linux(linux)
        .annotations(ImageFacts::of(name, image).annotations())
        .build()?)
}

/// What runc allows by itself (`libcontainer/specconv`, `AllowedDevices`): making any node, using the harmless ones.
fn device_rules(security: &Security) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow, kind, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(kind)
            .access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build()
    };
    if security.privileged {
        return Ok(vec![rule(true, LinuxDeviceType::A, None, None, "rwm")?]);
    }
    let mut rules = vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm")?,
        rule(true, LinuxDeviceType::C, None, None, "m")?,
        rule(true, LinuxDeviceType::B, None, None, "m")?,
    ];
    // null, full, zero, tty, random, urandom, console, pts/*, ptmx
    for (major, minor) in [
        (1, Some(3)),
        (1, Some(7)),
        (1, Some(5)),
        (5, Some(0)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(1)),
        (136, None),
        (5, Some(2)),
    ] {
        rules.push(rule(true, LinuxDeviceType::C, Some(major), minor, "rwm")?);
    }
    Ok(rules)
}

fn container_dir(input: &Input<'_>, container: &Container) -> PathBuf {
    input.data_dir.join("containers").join(&container.name)
}

/// What a running container cannot change: its image, by the name that the manifest has, as in Kubernetes (it runs on when
/// that comes to mean another image); and resources that its `resizePolicy` has it restarted for. Everything else that
/// could change replaces the pod, or applies in place.
pub(super) fn spec_hash(container: &Container) -> String {
    let mut text = container.image.clone().unwrap_or_default();
    for policy in container.resize_policy.iter().flatten() {
        if policy.restart_policy == RESTART_TO_RESIZE {
            text.push_str(&amounts(container, &policy.resource_name));
        }
    }
    hex::encode(&Sha256::digest(text)[..16])
}

/// The request and the limit of a resource, the same for amounts that are written in another way.
fn amounts(container: &Container, resource: &str) -> String {
    let resources = container.resources.as_ref();
    let amount = |list: Option<&BTreeMap<String, Quantity>>| {
        let written = list.and_then(|list| list.get(resource))?;
        quantity::nanos(&written.0).ok()
    };
    let request = amount(resources.and_then(|resources| resources.requests.as_ref()));
    let limit = amount(resources.and_then(|resources| resources.limits.as_ref()));
    format!("\n{resource} {request:?} {limit:?}")
}

fn seconds(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests;
