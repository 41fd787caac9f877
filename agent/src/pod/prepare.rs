//! The steps between a Pod and its plan that touch the machine: directories, volumes, files, cgroup.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use podling_runtime::cgroup::Cgroup;
use podling_runtime::chain;
use podling_runtime::pod::plan::{BackOff, Plan};
use podling_runtime::pod::protocol::PLAN_FILE;
use rustix::mount::MountFlags;

use super::builder::{self, EtcFiles, ImageState, Input};
use super::context::Context;
use super::env::PodFacts;
use super::images::blocking;
use super::network::{self, Connection};
use super::resources;
use super::supervisor::{self, Place, ScopeNeeds, SupervisorError, Waiting};
use super::volumes::{PreparedVolume, VolumeContext, Volumes};
use super::worker::Step;

/// The size of a pod's `/dev/shm`, as containerd and Docker have it.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// Makes the pod's directories.
pub(super) fn directories(context: &Context, uid: &str) -> Step<()> {
    for (dir, mode) in [
        (context.run_dir(uid), 0o700),
        (context.run_dir(uid).join("etc"), 0o755),
        (context.data_dir(uid), 0o711),
    ] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&dir)
            .map_err(|error| {
                (
                    "DirectoryFailed",
                    format!("make {}: {error}", dir.display()),
                )
            })?;
    }
    Ok(())
}

/// Everything that the volumes and the plan of a pod are made of.
pub(super) struct Wanted {
    pub(super) context: Arc<Context>,
    pub(super) uid: String,
    pub(super) pod: Pod,
    pub(super) connection: Connection,
    pub(super) images: BTreeMap<String, ImageState>,
    pub(super) generation: u64,
}

/// The same, with volumes and files in place.
pub(super) struct Prepared {
    wanted: Arc<Wanted>,
    volumes: Arc<BTreeMap<String, PreparedVolume>>,
    etc: EtcFiles,
    shm: PathBuf,
}

impl Wanted {
    /// Makes volumes and files, or brings them up to date.
    pub(super) async fn volumes(self) -> Step<Prepared> {
        let work = tokio::task::spawn_blocking(move || self.volumes_blocking());
        match work.await {
            Ok(result) => result,
            Err(error) => Err(("VolumeFailed", error.to_string())),
        }
    }

    fn volumes_blocking(self) -> Step<Prepared> {
        let spec = self.pod.spec.clone().unwrap_or_default();
        let facts = self.facts();
        let objects = self
            .context
            .objects(self.pod.metadata.namespace.as_deref().unwrap_or_default());
        let limit = resources::pod_needs(&spec)
            .ok()
            .and_then(|needs| needs.limits.memory_bytes);
        let every_limited = spec.containers.iter().all(|container| {
            resources::needs(container.resources.as_ref())
                .is_ok_and(|needs| needs.limits.memory_bytes.is_some())
        });
        let volumes = Volumes::new(self.context.data_dir(&self.uid))
            .prepare(
                &spec,
                &VolumeContext {
                    objects: &objects,
                    facts: &facts,
                    memory_limit_bytes: limit
                        .filter(|_| every_limited)
                        .and_then(|limit| u64::try_from(limit).ok()),
                },
            )
            .map_err(|error| ("FailedMount", chain(&error)))?;
        let shm = if spec.host_ipc == Some(true) {
            PathBuf::from("/dev/shm")
        } else {
            shared_memory(&self.context.data_dir(&self.uid))
                .map_err(|error| ("FailedMount", format!("mount /dev/shm: {error}")))?
        };
        let etc = self.etc_files()?;
        Ok(Prepared {
            volumes: Arc::new(volumes),
            wanted: Arc::new(self),
            etc,
            shm,
        })
    }

    fn etc_files(&self) -> Step<EtcFiles> {
        let dir = self.context.run_dir(&self.uid).join("etc");
        let texts = network::texts(&self.context, &self.pod, &self.connection)?;
        let files = EtcFiles {
            hosts: dir.join("hosts"),
            hostname: dir.join("hostname"),
            resolv_conf: dir.join("resolv.conf"),
        };
        for (path, text) in [&files.hosts, &files.hostname, &files.resolv_conf]
            .into_iter()
            .zip(texts)
        {
            write_in_place(path, &text)
                .map_err(|error| ("FailedMount", format!("write {}: {error}", path.display())))?;
        }
        Ok(files)
    }

    fn facts(&self) -> PodFacts<'_> {
        let spec = self.pod.spec.as_ref();
        PodFacts {
            metadata: &self.pod.metadata,
            spec,
            service_account: spec
                .and_then(|spec| spec.service_account_name.as_deref())
                .unwrap_or("default"),
            node_name: &self.context.node_name,
            host_ip: self.context.host_ip,
            pod_ips: &self.connection.pod_ips,
            capacity: self.context.capacity,
        }
    }
}

impl Prepared {
    /// The plan, for a supervisor at this place.
    pub(super) async fn plan(&self, place: &Place) -> Step<Plan> {
        let wanted = Arc::clone(&self.wanted);
        let volumes = Arc::clone(&self.volumes);
        let (etc, shm, place) = (self.etc.clone(), self.shm.clone(), place.clone());
        blocking(move || build(&wanted, &volumes, &etc, shm, place))
            .await
            .map_err(|message| ("PlanFailed", message))
    }

    /// Puts the pod's new supervisor where it belongs.
    pub(super) async fn place(&self, waiting: &Waiting) -> Result<Place, SupervisorError> {
        let wanted = &self.wanted;
        let spec = wanted.pod.spec.clone().unwrap_or_default();
        let name = wanted.pod.metadata.name.as_deref().unwrap_or_default();
        let grace = spec
            .termination_grace_period_seconds
            .and_then(|s| u64::try_from(s).ok());
        // Wrong quantities are found before a plan is made.
        let class = resources::qos(&spec).unwrap_or(resources::Qos::BestEffort);
        let cpu_weight = resources::pod_resources(&spec, 0, &wanted.context.capacity)
            .map_or(1, |resources| supervisor::cpu_weight(&resources));
        let path = class.pod_cgroup(&wanted.context.config.cgroup_parent, &wanted.uid);
        let namespace = wanted.pod.metadata.namespace.as_deref().unwrap_or_default();
        place(
            &wanted.context,
            &wanted.uid,
            &ScopeNeeds {
                description: format!("Pod {namespace}/{name}"),
                grace: Duration::from_secs(grace.unwrap_or(30)),
                cpu_weight,
            },
            path,
            waiting,
        )
        .await
    }
}

fn build(
    wanted: &Wanted,
    volumes: &BTreeMap<String, PreparedVolume>,
    etc: &EtcFiles,
    shm: PathBuf,
    place: Place,
) -> Result<Plan, String> {
    let context = &wanted.context;
    let metadata = &wanted.pod.metadata;
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let name = metadata.name.as_deref().unwrap_or_default();
    let objects = context.objects(namespace);
    let facts = wanted.facts();
    let back_off = context.config.back_off;
    builder::build(&Input {
        pod: &wanted.pod,
        generation: wanted.generation,
        facts: &facts,
        objects: &objects,
        hostname: network::host_name(context, &wanted.pod).short,
        network: wanted.connection.plan.clone(),
        cgroup: place.path,
        scope: place.scope,
        volumes: &Volumes::new(context.data_dir(&wanted.uid)),
        prepared: volumes,
        shm,
        images: &wanted.images,
        etc,
        data_dir: context.data_dir(&wanted.uid),
        log_dir: context.log_dir(namespace, name, &wanted.uid),
        log_max_bytes: context.config.logs.max_bytes,
        log_max_files: context.config.logs.max_files,
        back_off: BackOff {
            initial_ms: back_off.initial_ms,
            max_ms: back_off.max_ms,
            reset_ms: back_off.reset_ms,
        },
        pids_limit: context.config.pids_per_pod,
        min_oom_score_adj: context.min_oom_score_adj,
    })
    .map_err(|error| chain(&error))
}

/// Puts a supervisor that continues a plan where it belongs.
pub(super) async fn place_again(
    context: &Context,
    uid: &str,
    plan: Option<&Plan>,
    waiting: &Waiting,
) -> Result<(), SupervisorError> {
    let Some(plan) = plan else {
        return Ok(());
    };
    let needs = ScopeNeeds {
        description: format!("Pod {}/{}", plan.pod.namespace, plan.pod.name),
        grace: Duration::from_secs(plan.termination_grace_secs),
        cpu_weight: supervisor::cpu_weight(&plan.cgroup.resources),
    };
    place(context, uid, &needs, plan.cgroup.path.clone(), waiting)
        .await
        .map(drop)
}

async fn place(
    context: &Context,
    uid: &str,
    needs: &ScopeNeeds,
    path: PathBuf,
    waiting: &Waiting,
) -> Result<Place, SupervisorError> {
    let Some(pid) = waiting.pid() else {
        return Ok(Place { path, scope: false });
    };
    if let Some(systemd) = &context.systemd {
        return supervisor::place_in_scope(systemd, &context.layout, uid, needs, pid).await;
    }
    if context.layout.is_v2() {
        // In the agent's own cgroup a service manager would end it together with the agent.
        let own = Cgroup::create(
            &context.layout,
            &context.config.cgroup_parent.join("supervisors"),
        )
        .map_err(SupervisorError::Cgroup)?;
        own.add(i32::try_from(pid).unwrap_or(i32::MAX))
            .map_err(SupervisorError::Cgroup)?;
    }
    Ok(Place { path, scope: false })
}

/// Tells systemd of a pod's new share of the CPU, where it has a scope.
pub(super) async fn weigh_again(
    context: &Context,
    uid: &str,
    before: &Plan,
    plan: &Plan,
) -> Step<()> {
    let weight = supervisor::cpu_weight(&plan.cgroup.resources);
    match &context.systemd {
        Some(systemd) if weight != supervisor::cpu_weight(&before.cgroup.resources) => systemd
            .set_properties(
                &supervisor::scope_name(uid),
                &[supervisor::cpu_weight_property(weight)],
            )
            .await
            .map_err(|error| ("ResizeFailed", chain(&error))),
        _ => Ok(()),
    }
}

/// Replaces the pod's plan at once or not at all.
pub(super) fn write_plan(context: &Context, uid: &str, plan: &Plan) -> Step<()> {
    let path = context.run_dir(uid).join(PLAN_FILE);
    let write = || -> io::Result<()> {
        let new = path.with_extension("json.new");
        std::fs::write(&new, serde_json::to_vec(plan)?)?;
        std::fs::rename(&new, &path)
    };
    write().map_err(|error| ("PlanFailed", format!("write {}: {error}", path.display())))
}

/// Writes a file that containers see through a bind mount, so it must stay the same file.
fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
}

/// The tmpfs that the pod's containers share as `/dev/shm`.
fn shared_memory(pod_dir: &Path) -> io::Result<PathBuf> {
    let dir = pod_dir.join("shm");
    std::fs::create_dir_all(&dir)?;
    if is_mount_point(&dir)? {
        return Ok(dir);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(SHM_OPTIONS).map_err(io::Error::other)?;
    rustix::mount::mount("shm", &dir, "tmpfs", flags, Some(options.as_c_str()))?;
    Ok(dir)
}

/// True when something is mounted there: its device is not its parent's.
fn is_mount_point(dir: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let own = std::fs::metadata(dir)?.dev();
    let parent = dir.parent().map(std::fs::metadata).transpose()?;
    Ok(parent.is_some_and(|parent| parent.dev() != own))
}

/// True when the pod has an emptyDir on disk with a limit.
pub(super) fn has_measured_volumes(pod: &Pod) -> bool {
    pod.spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
        .any(|volume| {
            volume.empty_dir.as_ref().is_some_and(|empty| {
                empty.size_limit.is_some() && empty.medium.as_deref() != Some("Memory")
            })
        })
}

/// What the kubelet says of a pod whose volume is over its limit; none while all are within.
pub(super) async fn over_limit(context: &Context, uid: &str, pod: &Pod) -> Step<Option<String>> {
    let volumes = Volumes::new(context.data_dir(uid));
    let spec = pod.spec.clone().unwrap_or_default();
    let over = blocking(move || volumes.over_limit(&spec).map_err(|error| chain(&error)))
        .await
        .map_err(|message| ("VolumeFailed", message))?;
    Ok(over.map(|over| {
        format!(
            "Usage of EmptyDir volume \"{}\" is {} KiB and exceeds the limit of {}",
            over.volume,
            over.used_bytes.div_ceil(1024),
            over.limit
        )
    }))
}
