//! Defaults, as the API server applies them (`pkg/apis/core/v1/defaults.go` of Kubernetes). Idempotent.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ContainerPort, HTTPGetAction, LifecycleHandler, Namespace, Pod,
    PodSecurityContext, PodSpec, Probe, Secret, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{DEFAULT_NAMESPACE, annotations};

const VOLUME_FILE_MODE: i32 = 0o644;

pub(super) fn namespace(object: &mut Namespace) {
    metadata(&mut object.metadata, false);
    object.status = None;
}

pub(super) fn config_map(object: &mut ConfigMap) {
    metadata(&mut object.metadata, true);
}

pub(super) fn secret(object: &mut Secret) {
    metadata(&mut object.metadata, true);
    object.type_.get_or_insert_with(|| "Opaque".to_owned());
    // Written for convenience, read from `data`; it wins over `data` of the same key.
    for (key, value) in object.string_data.take().into_iter().flatten() {
        let data = object.data.get_or_insert_default();
        data.insert(key, ByteString(value.into_bytes()));
    }
}

pub(super) fn pod(pod: &mut Pod) {
    metadata(&mut pod.metadata, true);
    pod.status = None;
    annotations::apply(pod);
    spec(pod.spec.get_or_insert_default());
}

/// What the node sets is not what the manifest says.
fn metadata(metadata: &mut ObjectMeta, namespaced: bool) {
    metadata.namespace = namespaced.then(|| {
        let given = metadata.namespace.take().filter(|given| !given.is_empty());
        given.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
    });
    metadata.uid = None;
    metadata.resource_version = None;
    metadata.generation = None;
    metadata.creation_timestamp = None;
    metadata.deletion_timestamp = None;
    metadata.deletion_grace_period_seconds = None;
    metadata.managed_fields = None;
    metadata.owner_references = None;
    metadata.self_link = None;
}

fn spec(spec: &mut PodSpec) {
    default_text(&mut spec.restart_policy, "Always");
    default_text(&mut spec.dns_policy, "ClusterFirst");
    default_text(&mut spec.scheduler_name, "default-scheduler");
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.security_context
        .get_or_insert_with(PodSecurityContext::default);
    let host_network = spec.host_network == Some(true);
    for each in spec.init_containers.iter_mut().flatten() {
        container(each, host_network);
    }
    for each in &mut spec.containers {
        container(each, host_network);
    }
    for each in spec.volumes.iter_mut().flatten() {
        volume(each);
    }
}

fn container(container: &mut Container, host_network: bool) {
    if container
        .image_pull_policy
        .as_deref()
        .unwrap_or_default()
        .is_empty()
    {
        let policy = pull_policy(container.image.as_deref().unwrap_or_default());
        container.image_pull_policy = Some(policy.to_owned());
    }
    default_text(
        &mut container.termination_message_path,
        "/dev/termination-log",
    );
    default_text(&mut container.termination_message_policy, "File");
    for each in container.ports.iter_mut().flatten() {
        port(each, host_network);
    }
    for each in container.env.iter_mut().flatten() {
        let reference = each
            .value_from
            .as_mut()
            .and_then(|from| from.field_ref.as_mut());
        if let Some(reference) = reference {
            default_text(&mut reference.api_version, "v1");
        }
    }
    let probes = container.liveness_probe.iter_mut();
    let probes = probes.chain(&mut container.readiness_probe);
    probes.chain(&mut container.startup_probe).for_each(probe);
    if let Some(lifecycle) = &mut container.lifecycle {
        let handlers = lifecycle
            .post_start
            .iter_mut()
            .chain(&mut lifecycle.pre_stop);
        handlers.for_each(handler);
    }
    if let Some(resources) = &mut container.resources {
        // A limit without a request is a request as well.
        for (name, limit) in resources.limits.iter().flatten() {
            let requests = resources.requests.get_or_insert_default();
            requests
                .entry(name.clone())
                .or_insert_with(|| limit.clone());
        }
    }
}

/// `IfNotPresent` for an image with a digest or a tag other than `latest`, else `Always`.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    // A colon before the last slash is a registry's port.
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn port(port: &mut ContainerPort, host_network: bool) {
    default_text(&mut port.protocol, "TCP");
    if host_network {
        port.host_port.get_or_insert(port.container_port);
    }
}

fn probe(probe: &mut Probe) {
    default_number(&mut probe.timeout_seconds, 1);
    default_number(&mut probe.period_seconds, 10);
    default_number(&mut probe.success_threshold, 1);
    default_number(&mut probe.failure_threshold, 3);
    if let Some(get) = &mut probe.http_get {
        http_get(get);
    }
}

fn handler(handler: &mut LifecycleHandler) {
    if let Some(get) = &mut handler.http_get {
        http_get(get);
    }
}

fn http_get(get: &mut HTTPGetAction) {
    default_text(&mut get.path, "/");
    default_text(&mut get.scheme, "HTTP");
}

fn volume(volume: &mut Volume) {
    if let Some(map) = &mut volume.config_map {
        map.default_mode.get_or_insert(VOLUME_FILE_MODE);
    }
    if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(VOLUME_FILE_MODE);
    }
    if let Some(projected) = &mut volume.projected {
        projected.default_mode.get_or_insert(VOLUME_FILE_MODE);
    }
    if let Some(downward) = &mut volume.downward_api {
        downward.default_mode.get_or_insert(VOLUME_FILE_MODE);
    }
    if let Some(path) = &mut volume.host_path {
        path.type_.get_or_insert_default();
    }
}

fn default_text(field: &mut Option<String>, default: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(default.to_owned());
    }
}

/// Zero means the default, as in the API.
fn default_number(field: &mut Option<i32>, default: i32) {
    if field.unwrap_or_default() == 0 {
        *field = Some(default);
    }
}
