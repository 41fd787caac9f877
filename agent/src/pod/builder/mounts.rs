//! What a container finds mounted.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, PodSpec, VolumeMount};
use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder};

use super::{ContainerError, Input};
use crate::pod::env::{self, Variables};
use crate::pod::security::Security;
use crate::pod::volumes::Propagation;

/// Hidden from containers, as by containerd and Docker.
pub(super) const MASKED_PATHS: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Shown to containers, but not for writing.
pub(super) const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The mounts of a container: the kernel's file systems, the node's files, then the volumes, each after what it may
/// lie on. A volume replaces what would be at its path otherwise.
pub(super) fn mounts(
    input: &Input<'_>,
    spec: &PodSpec,
    container: &Container,
    security: &Security,
    variables: &Variables,
) -> Result<Vec<Mount>, ContainerError> {
    let mut volumes = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        volumes.push(volume_mount(input, container, index, mount, variables)?);
    }
    volumes.sort_by_key(|mount| mount.destination().components().count());
    let taken: HashSet<PathBuf> = volumes
        .iter()
        .map(|mount| mount.destination().clone())
        .collect();

    let mut mounts = kernel_mounts(security)?;
    mounts.push(shm(input, spec)?);
    mounts.extend(node_files(input)?);
    mounts.retain(|mount| !taken.contains(mount.destination()));
    mounts.extend(volumes);
    Ok(mounts)
}

fn kernel_mounts(security: &Security) -> Result<Vec<Mount>, OciSpecError> {
    let access = if security.privileged { "rw" } else { "ro" };
    Ok(vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        )?,
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        )?,
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", access],
        )?,
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        )?,
    ])
}

/// The containers of a pod share one `/dev/shm`, with their IPC namespace.
fn shm(input: &Input<'_>, spec: &PodSpec) -> Result<Mount, OciSpecError> {
    let source = if spec.host_ipc == Some(true) {
        Path::new("/dev/shm")
    } else {
        &input.shm
    };
    bind(
        Path::new("/dev/shm"),
        source,
        &["bind", "rw", "nosuid", "nodev", "noexec"],
    )
}

fn node_files(input: &Input<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let etc = input.etc;
    [
        ("/etc/hosts", &etc.hosts),
        ("/etc/hostname", &etc.hostname),
        ("/etc/resolv.conf", &etc.resolv_conf),
    ]
    .into_iter()
    .map(|(path, file)| {
        bind(
            Path::new(path),
            file,
            &["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"],
        )
    })
    .collect()
}

fn volume_mount(
    input: &Input<'_>,
    container: &Container,
    index: usize,
    mount: &VolumeMount,
    variables: &Variables,
) -> Result<Mount, ContainerError> {
    let expanded = mount
        .sub_path_expr
        .as_deref()
        .map(|expr| env::expand(expr, |name| variables.get(name)));
    let sub_path = expanded.as_deref().or(mount.sub_path.as_deref());
    let source = input
        .volumes
        .source_of(input.prepared, container, index, mount, sub_path)?;
    let node_writes = input
        .prepared
        .get(&mount.name)
        .is_some_and(|volume| volume.read_only);
    let read_only = mount.read_only == Some(true);
    let access = match mount.recursive_read_only.as_deref() {
        Some("Enabled" | "IfPossible") if read_only => "rro",
        _ if read_only || node_writes => "ro",
        _ => "rw",
    };
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        _ => Propagation::None,
    };
    propagation.check(&mount.name, &source)?;
    Ok(bind(
        Path::new(&mount.mount_path),
        &source,
        &["rbind", access, propagation.option()],
    )?)
}

fn mount(
    destination: &str,
    kind: &str,
    source: &str,
    options: &[&str],
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
}

fn bind(destination: &Path, source: &Path, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
}
