//! Containers: names, images, environment, ports, resources, security.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, EnvVar, PodSpec, ResourceFieldSelector, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::super::quantity::{self, QuantityError};
use super::{Faults, probe, text, volume};

const NOT_IN_INIT: &str = "an init container that is not a sidecar (`restartPolicy: Always`) runs to its end: it has none";
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
/// The resources that variables and files may take from a container.
const RESOURCES: [&str; 4] = [
    "limits.cpu",
    "limits.memory",
    "requests.cpu",
    "requests.memory",
];
/// The fields that a variable may take from the pod.
const POD_FIELDS: [&str; 8] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.podIP",
    "status.podIPs",
];

/// All containers of a pod.
pub(super) fn containers(spec: &PodSpec, faults: &mut Faults) {
    let mut names = BTreeSet::new();
    let inits = spec.init_containers.iter().flatten().enumerate();
    let mains = spec.containers.iter().enumerate();
    let all = inits
        .map(|(at, each)| (format!("spec.initContainers[{at}]"), each, true))
        .chain(mains.map(|(at, each)| (format!("spec.containers[{at}]"), each, false)));
    for (path, each, init) in all {
        if let Err(message) = text::dns_label(&each.name) {
            faults.add(format!("{path}.name"), message);
        }
        if !names.insert(each.name.as_str()) {
            let message = format!("another container is named `{}`", each.name);
            faults.add(format!("{path}.name"), message);
        }
        container(&path, each, init, spec, faults);
    }
    host_ports(spec, faults);
    if spec.containers.is_empty() {
        faults.add("spec.containers", "a pod needs at least one container");
    }
}

/// One port of the host goes to one container.
fn host_ports(spec: &PodSpec, faults: &mut Faults) {
    let mut taken = BTreeSet::new();
    let inits = spec.init_containers.iter().flatten().enumerate();
    // Those that run to their end do so before others need the port.
    let inits = inits
        .filter(|(_, each)| each.restart_policy.as_deref() == Some("Always"))
        .map(|(at, each)| (format!("spec.initContainers[{at}]"), each));
    let mains = spec.containers.iter().enumerate();
    let mains = mains.map(|(at, each)| (format!("spec.containers[{at}]"), each));
    for (path, each) in inits.chain(mains) {
        for (at, port) in each.ports.iter().flatten().enumerate() {
            let of_host = spec.host_network == Some(true);
            let number = port.host_port.filter(|number| *number != 0);
            let Some(number) = number.or(of_host.then_some(port.container_port)) else {
                continue;
            };
            let protocol = port.protocol.as_deref().filter(|it| !it.is_empty());
            let address = port.host_ip.as_deref().unwrap_or_default();
            if !taken.insert((protocol.unwrap_or("TCP"), address, number)) {
                let message = format!("the pod has the host's port {number} already");
                faults.add(format!("{path}.ports[{at}].hostPort"), message);
            }
        }
    }
}

fn container(path: &str, container: &Container, init: bool, spec: &PodSpec, faults: &mut Faults) {
    let image = container.image.as_deref().unwrap_or_default();
    let image_path = format!("{path}.image");
    if image.is_empty() {
        faults.add(image_path, "required");
    } else if image.trim() != image {
        faults.add(image_path, "may not begin or end with spaces");
    } else if let Err(error) = image.parse::<podling_images::Reference>() {
        faults.add(image_path, format!("`{image}` is not an image: {error}"));
    }
    let policy = container.image_pull_policy.as_deref();
    faults.one_of(&format!("{path}.imagePullPolicy"), policy, &PULL_POLICIES);
    let policy = container.termination_message_policy.as_deref();
    let allowed = ["File", "FallbackToLogsOnError"];
    faults.one_of(
        &format!("{path}.terminationMessagePolicy"),
        policy,
        &allowed,
    );
    if let Some(message_path) = container.termination_message_path.as_deref()
        && !message_path.is_empty()
        && (!message_path.starts_with('/') || message_path.split('/').any(|part| part == ".."))
    {
        let field = format!("{path}.terminationMessagePath");
        faults.add(field, "must be absolute, without `..`");
    }
    restart_policy(path, container, init, faults);
    environment(path, container, spec, faults);
    ports(path, container, spec, faults);
    resources(path, container, faults);
    resize_policy(path, container, spec, faults);
    volume::mounts(path, container, spec, faults);
    let runs_to_end = init && container.restart_policy.as_deref() != Some("Always");
    let none = runs_to_end.then_some(NOT_IN_INIT);
    probe::probes(path, container, none, faults);
    probe::lifecycle(path, container, none, faults);
    if let Some(context) = &container.security_context {
        security(&format!("{path}.securityContext"), context, spec, faults);
    }
}

fn restart_policy(path: &str, container: &Container, init: bool, faults: &mut Faults) {
    let field = format!("{path}.restartPolicy");
    match container
        .restart_policy
        .as_deref()
        .filter(|policy| !policy.is_empty())
    {
        None => {}
        Some("Always") if init => {}
        Some(_) if init => faults.add_with(
            field,
            "an init container has only `Always`, which makes it a sidecar",
            "remove it",
        ),
        Some(_) => faults.add_with(
            field,
            "not supported: the policy of a container that is not an init container",
            "set spec.restartPolicy",
        ),
    }
}

fn environment(path: &str, container: &Container, spec: &PodSpec, faults: &mut Faults) {
    for (at, variable) in container.env.iter().flatten().enumerate() {
        let path = format!("{path}.env[{at}]");
        if let Err(message) = text::env_name(&variable.name) {
            faults.add(format!("{path}.name"), message);
        }
        value_from(&path, variable, spec, faults);
    }
    for (at, from) in container.env_from.iter().flatten().enumerate() {
        let path = format!("{path}.envFrom[{at}]");
        let names = [
            (
                "configMapRef",
                from.config_map_ref.as_ref().map(|from| &from.name),
            ),
            ("secretRef", from.secret_ref.as_ref().map(|from| &from.name)),
        ];
        if names.iter().filter(|(_, name)| name.is_some()).count() != 1 {
            faults.add_with(
                &path,
                "takes from one place",
                "give configMapRef or secretRef",
            );
        }
        for (field, name) in names {
            if name.is_some_and(|name| name.is_empty()) {
                faults.add(format!("{path}.{field}.name"), "required");
            }
        }
        if let Some(prefix) = from.prefix.as_deref().filter(|prefix| !prefix.is_empty())
            && let Err(message) = text::env_name(prefix)
        {
            faults.add(format!("{path}.prefix"), message);
        }
    }
}

fn value_from(path: &str, variable: &EnvVar, spec: &PodSpec, faults: &mut Faults) {
    let Some(from) = &variable.value_from else {
        return;
    };
    let path = format!("{path}.valueFrom");
    if variable
        .value
        .as_deref()
        .is_some_and(|value| !value.is_empty())
    {
        faults.add(&path, "a variable has a value or takes one, not both");
    }
    let sources = [
        from.config_map_key_ref.is_some(),
        from.secret_key_ref.is_some(),
        from.field_ref.is_some(),
        from.resource_field_ref.is_some(),
        from.file_key_ref.is_some(),
    ];
    if sources.iter().filter(|is| **is).count() != 1 {
        faults.add(&path, "takes from exactly one place");
    }
    let keys = [
        (
            "configMapKeyRef",
            from.config_map_key_ref.as_ref().map(|r| (&r.name, &r.key)),
        ),
        (
            "secretKeyRef",
            from.secret_key_ref.as_ref().map(|r| (&r.name, &r.key)),
        ),
    ];
    for (field, reference) in keys {
        let Some((name, key)) = reference else {
            continue;
        };
        if name.is_empty() {
            faults.add(format!("{path}.{field}.name"), "required");
        }
        if let Err(message) = text::data_key(key) {
            faults.add(format!("{path}.{field}.key"), message);
        }
    }
    if let Some(reference) = &from.field_ref {
        faults.one_of(
            &format!("{path}.fieldRef.apiVersion"),
            reference.api_version.as_deref(),
            &["v1"],
        );
        pod_field(
            &format!("{path}.fieldRef.fieldPath"),
            &reference.field_path,
            faults,
        );
    }
    if let Some(reference) = &from.resource_field_ref {
        resource_field(&format!("{path}.resourceFieldRef"), reference, spec, faults);
    }
}

/// A resource of one of the pod's containers.
pub(super) fn resource_field(
    path: &str,
    reference: &ResourceFieldSelector,
    spec: &PodSpec,
    faults: &mut Faults,
) {
    let resource = Some(reference.resource.as_str());
    faults.one_of(&format!("{path}.resource"), resource, &RESOURCES);
    if reference.resource.is_empty() {
        faults.add(format!("{path}.resource"), "required");
    }
    let inits = spec.init_containers.iter().flatten();
    let mut all = inits.chain(&spec.containers);
    if let Some(name) = reference
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
        && !all.any(|container| container.name == name)
    {
        let message = format!("the pod has no container `{name}`");
        faults.add(format!("{path}.containerName"), message);
    }
    if let Some(divisor) = &reference.divisor
        && let Err(error) = quantity::nanos(&divisor.0)
    {
        bad_quantity(&format!("{path}.divisor"), &error, faults);
    }
}

/// A field of the pod that a file of a volume may take.
pub(super) fn volume_field(path: &str, field: &str, faults: &mut Faults) {
    if matches!(field, "metadata.labels" | "metadata.annotations") {
        return;
    }
    if field.starts_with("metadata.") {
        return pod_field(path, field, faults);
    }
    let remedy = "use a field of metadata, or a variable of the environment";
    faults.add_with(path, format!("a file cannot take `{field}`"), remedy);
}

fn pod_field(path: &str, field: &str, faults: &mut Faults) {
    let subscript = |map: &str| {
        let key = field.strip_prefix(map)?.strip_prefix("['")?;
        key.strip_suffix("']")
    };
    let key = subscript("metadata.labels").or_else(|| subscript("metadata.annotations"));
    if key.is_some_and(|key| text::qualified_name(key).is_ok())
        || POD_FIELDS.contains(&field)
        || field == "status.hostIPs"
    {
        return;
    }
    let remedy = match super::super::decode::nearest(field, POD_FIELDS) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "use a field such as metadata.name, metadata.labels['key'] or status.podIP".into(),
    };
    faults.add_with(path, format!("a variable cannot take `{field}`"), remedy);
}

fn ports(path: &str, container: &Container, spec: &PodSpec, faults: &mut Faults) {
    let mut names = BTreeSet::new();
    for (at, port) in container.ports.iter().flatten().enumerate() {
        let path = format!("{path}.ports[{at}]");
        let number = Some(i64::from(port.container_port));
        faults.between(&format!("{path}.containerPort"), number, 1, 65535);
        let host_port = format!("{path}.hostPort");
        faults.between(&host_port, port.host_port.map(i64::from), 1, 65535);
        if spec.host_network == Some(true)
            && port
                .host_port
                .is_some_and(|host_port| host_port != port.container_port)
        {
            faults.add(
                &host_port,
                "must equal containerPort: the pod uses the host's network",
            );
        }
        let protocols = ["TCP", "UDP", "SCTP"];
        let protocol = port.protocol.as_deref();
        faults.one_of(&format!("{path}.protocol"), protocol, &protocols);
        if protocol == Some("SCTP") && port.host_port.is_some() {
            let message = "not supported: a host port for SCTP";
            faults.add(format!("{path}.protocol"), message);
        }
        if let Some(ip) = port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
            let message = match ip.parse() {
                Ok(std::net::IpAddr::V4(_)) => None,
                Ok(std::net::IpAddr::V6(_)) => Some(format!(
                    "not supported: the IPv6 address `{ip}`; pods have IPv4 addresses"
                )),
                Err(_) => Some(format!("`{ip}` is not an address")),
            };
            if let Some(message) = message {
                faults.add(format!("{path}.hostIP"), message);
            }
        }
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            if let Err(message) = text::port_name(name) {
                faults.add(format!("{path}.name"), message);
            }
            if !names.insert(name) {
                faults.add(
                    format!("{path}.name"),
                    format!("another port is named `{name}`"),
                );
            }
        }
    }
}

fn resources(path: &str, container: &Container, faults: &mut Faults) {
    let Some(resources) = &container.resources else {
        return;
    };
    let path = format!("{path}.resources");
    let limits = amounts(&format!("{path}.limits"), resources.limits.as_ref(), faults);
    let requests = amounts(
        &format!("{path}.requests"),
        resources.requests.as_ref(),
        faults,
    );
    for (name, request) in &requests {
        if limits.get(name).is_some_and(|limit| request > limit) {
            faults.add_with(
                format!("{path}.requests.{name}"),
                format!("the request for {name} is larger than its limit"),
                "raise the limit or lower the request",
            );
        }
    }
}

fn resize_policy(path: &str, container: &Container, spec: &PodSpec, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (at, policy) in container.resize_policy.iter().flatten().enumerate() {
        let path = format!("{path}.resizePolicy[{at}]");
        let name = policy.resource_name.as_str();
        let field = format!("{path}.resourceName");
        if name.is_empty() {
            faults.add(&field, "required");
        } else if !seen.insert(name) {
            faults.add(&field, format!("another policy is for `{name}`"));
        }
        faults.one_of(&field, Some(name), &["cpu", "memory"]);
        let restart = policy.restart_policy.as_str();
        let field = format!("{path}.restartPolicy");
        if restart.is_empty() {
            faults.add(&field, "required");
        }
        faults.one_of(&field, Some(restart), &["NotRequired", "RestartContainer"]);
        if restart == "RestartContainer" && spec.restart_policy.as_deref() == Some("Never") {
            let message = "not with the pod's restartPolicy Never";
            faults.add_with(field, message, "use NotRequired");
        }
    }
}

fn amounts<'a>(
    path: &str,
    list: Option<&'a BTreeMap<String, Quantity>>,
    faults: &mut Faults,
) -> BTreeMap<&'a str, i128> {
    let mut amounts = BTreeMap::new();
    for (name, amount) in list.into_iter().flatten() {
        let path = super::super::node::child_path(path, name);
        if name != "cpu" && name != "memory" {
            let remedy = match super::super::decode::nearest(name, ["cpu", "memory"]) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "remove it".to_owned(),
            };
            let message = "not supported: this node limits cpu and memory";
            faults.add_with(path, message, remedy);
            continue;
        }
        match quantity::nanos(&amount.0) {
            Ok(nanos) if nanos < 0 => {
                faults.add(path, format!("`{}` is negative", amount.0));
            }
            // People write `100m` for 100 MiB; it is a tenth of a byte.
            Ok(nanos) if name == "memory" && nanos % 1_000_000_000 != 0 => faults.add_with(
                path,
                format!("`{}` is not a whole number of bytes", amount.0),
                "for mebibytes write `Mi`",
            ),
            Ok(nanos) => {
                amounts.insert(name.as_str(), nanos);
            }
            Err(error) => bad_quantity(&path, &error, faults),
        }
    }
    amounts
}

pub(super) fn bad_quantity(path: &str, error: &QuantityError, faults: &mut Faults) {
    let remedy = match quantity::suggestion(error) {
        Some(suffix) => format!("did you mean the suffix `{suffix}`?"),
        None => "write it like `500m`, `2` or `128Mi`".to_owned(),
    };
    faults.add_with(path, error.to_string(), remedy);
}

fn security(path: &str, context: &SecurityContext, spec: &PodSpec, faults: &mut Faults) {
    let proc_mount = format!("{path}.procMount");
    let kind = context.proc_mount.as_deref();
    faults.one_of(&proc_mount, kind, &["Default", "Unmasked"]);
    if kind == Some("Unmasked") && spec.host_users != Some(false) {
        // As the API server has it: root of the host would have all of the host's /proc.
        let message = "only for pods with a user namespace of their own (hostUsers: false)";
        faults.add(proc_mount, message);
    }
    let most = i64::from(i32::MAX);
    faults.between(&format!("{path}.runAsUser"), context.run_as_user, 0, most);
    faults.between(&format!("{path}.runAsGroup"), context.run_as_group, 0, most);
    if context.allow_privilege_escalation == Some(false) && context.privileged == Some(true) {
        let field = format!("{path}.allowPrivilegeEscalation");
        faults.add(field, "a privileged container cannot be kept from it");
    }
    let lists = context
        .capabilities
        .as_ref()
        .map(|c| [("add", &c.add), ("drop", &c.drop)]);
    for (field, names) in lists.into_iter().flatten() {
        for (at, name) in names.iter().flatten().enumerate() {
            let short = name.strip_prefix("CAP_").unwrap_or(name);
            if short != "ALL" && !is_capability(short) {
                let path = format!("{path}.capabilities.{field}[{at}]");
                faults.add(path, format!("Linux has no capability `{name}`"));
            }
        }
    }
    seccomp(path, context.seccomp_profile.as_ref(), faults);
    app_armor(path, context.app_armor_profile.as_ref(), faults);
}

fn is_capability(name: &str) -> bool {
    name.parse::<oci_spec::runtime::Capability>().is_ok()
}

pub(super) fn seccomp(
    path: &str,
    profile: Option<&k8s_openapi::api::core::v1::SeccompProfile>,
    faults: &mut Faults,
) {
    let Some(profile) = profile else { return };
    let path = format!("{path}.seccompProfile");
    let localhost = profile.localhost_profile.as_deref();
    let file = profile_name(&path, &profile.type_, localhost, faults);
    seccomp_file(&format!("{path}.localhostProfile"), file, faults);
}

/// The file of a profile, below the directory of profiles.
pub(super) fn seccomp_file(path: &str, file: Option<&str>, faults: &mut Faults) {
    if let Some(Err(message)) = file.map(text::inner_path) {
        faults.add(path, message);
    }
}

pub(super) fn app_armor(
    path: &str,
    profile: Option<&k8s_openapi::api::core::v1::AppArmorProfile>,
    faults: &mut Faults,
) {
    let Some(profile) = profile else { return };
    let path = format!("{path}.appArmorProfile");
    let localhost = profile.localhost_profile.as_deref();
    let name = profile_name(&path, &profile.type_, localhost, faults);
    app_armor_name(&format!("{path}.localhostProfile"), name, faults);
}

/// The name of a profile that the kernel has.
pub(super) fn app_armor_name(path: &str, name: Option<&str>, faults: &mut Faults) {
    if name.is_some_and(|name| name.len() > PROFILE_NAME_MAX_BYTES || name.trim() != name) {
        let message = format!(
            "not a profile's name: at most {PROFILE_NAME_MAX_BYTES} characters, without spaces at its ends"
        );
        faults.add(path, message);
    }
}

/// As Kubernetes has it for the profiles of AppArmor.
const PROFILE_NAME_MAX_BYTES: usize = 4095;

/// What a profile of the type Localhost names. Faults are added here.
fn profile_name<'a>(
    path: &str,
    kind: &str,
    localhost: Option<&'a str>,
    faults: &mut Faults,
) -> Option<&'a str> {
    let allowed = ["RuntimeDefault", "Unconfined", "Localhost"];
    faults.one_of(&format!("{path}.type"), Some(kind), &allowed);
    let name = localhost.filter(|name| !name.is_empty());
    let field = format!("{path}.localhostProfile");
    match (kind, name) {
        ("Localhost", Some(name)) => return Some(name),
        ("Localhost", None) => faults.add(field, "required"),
        (_, Some(_)) => faults.add(field, "only for the type Localhost"),
        (_, None) => {}
    }
    None
}
