//! Annotations that are more than notes: what they say, and that the fields which took their place say nothing else
//! (`validateAppArmorAnnotationsAndFieldsMatchOnCreate` of Kubernetes, and its like for seccomp until 1.27).

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::super::annotations::{APP_ARMOR, Profile, REFUSED, SECCOMP, SECCOMP_OF_POD};
use super::{Faults, container};

pub(super) fn annotations(pod: &Pod, faults: &mut Faults) {
    let Some(spec) = &pod.spec else { return };
    for (key, value) in pod.metadata.annotations.iter().flatten() {
        // An empty value is the same as none.
        if value.is_empty() {
            continue;
        }
        let path = format!("metadata.annotations[{key}]");
        if let Some(refused) = REFUSED.iter().find(|refused| refused.key == key) {
            let message = format!("not supported: {}", refused.why);
            faults.add_with(path, message, refused.remedy);
        } else if let Some(name) = of_container(key, APP_ARMOR) {
            app_armor(&path, name, value, spec, faults);
        } else if let Some(name) = of_container(key, SECCOMP) {
            seccomp(&path, name, value, spec, faults);
        } else if let Some(name) = of_container(key, SECCOMP_OF_POD) {
            seccomp_of_pod(&path, name, value, spec, faults);
        }
    }
}

/// What follows the prefix; empty where the prefix is all there is, with or without its slash.
fn of_container<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    match key.strip_prefix(prefix) {
        None if prefix.strip_suffix('/') == Some(key) => Some(""),
        found => found,
    }
}

fn app_armor(path: &str, name: &str, value: &str, spec: &PodSpec, faults: &mut Faults) {
    let Some(container) = named(path, name, spec, faults) else {
        return;
    };
    let Some(profile) = profile(path, value, false, faults) else {
        return;
    };
    let own = container.security_context.as_ref();
    let field = own.and_then(|context| context.app_armor_profile.as_ref());
    let said = profile.app_armor();
    match field {
        None => container::app_armor_name(path, profile.localhost, faults),
        Some(field) if *field != said => differs(path, "appArmorProfile", &field.type_, faults),
        Some(_) => {}
    }
}

fn seccomp(path: &str, name: &str, value: &str, spec: &PodSpec, faults: &mut Faults) {
    let Some(container) = named(path, name, spec, faults) else {
        return;
    };
    let own = container.security_context.as_ref();
    let field = own.and_then(|context| context.seccomp_profile.as_ref());
    seccomp_profile(path, value, field, faults);
}

fn seccomp_of_pod(path: &str, name: &str, value: &str, spec: &PodSpec, faults: &mut Faults) {
    if name != "pod" {
        let remedy = format!("write {SECCOMP_OF_POD}pod, or {SECCOMP} and a container's name");
        return faults.add_with(path, "Kubernetes has no such annotation", remedy);
    }
    let own = spec.security_context.as_ref();
    let field = own.and_then(|context| context.seccomp_profile.as_ref());
    seccomp_profile(path, value, field, faults);
}

fn seccomp_profile(
    path: &str,
    value: &str,
    field: Option<&k8s_openapi::api::core::v1::SeccompProfile>,
    faults: &mut Faults,
) {
    let Some(profile) = profile(path, value, true, faults) else {
        return;
    };
    match field {
        None => container::seccomp_file(path, profile.localhost, faults),
        Some(field) if *field != profile.seccomp() => {
            differs(path, "seccompProfile", &field.type_, faults);
        }
        Some(_) => {}
    }
}

fn named<'a>(
    path: &str,
    name: &str,
    spec: &'a PodSpec,
    faults: &mut Faults,
) -> Option<&'a Container> {
    let all = || {
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
    };
    if name.is_empty() {
        let remedy = "end it with `/` and the name of a container of the pod";
        faults.add_with(path, "names no container", remedy);
        return None;
    }
    let found = all().find(|container| container.name == name);
    if found.is_none() {
        let names = all().map(|container| container.name.as_str());
        let remedy = match super::super::decode::nearest(name, names) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "remove it, or add the container".to_owned(),
        };
        faults.add_with(path, format!("the pod has no container `{name}`"), remedy);
    }
    found
}

fn profile<'a>(
    path: &str,
    value: &'a str,
    is_seccomp: bool,
    faults: &mut Faults,
) -> Option<Profile<'a>> {
    let known = Profile::parse(value).filter(|_| is_seccomp || value != "docker/default");
    if known.is_none() {
        let message = format!("`{value}` is not a profile");
        let remedy = "use runtime/default, unconfined, or localhost/ and a profile's name";
        faults.add_with(path, message, remedy);
    }
    known
}

fn differs(path: &str, field: &str, kind: &str, faults: &mut Faults) {
    let message = format!("the field securityContext.{field} says another profile (`{kind}`)");
    faults.add_with(path, message, "remove the annotation: the field is enough");
}
