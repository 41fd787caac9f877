//! Annotations that are more than notes.

use super::*;

const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io";
const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io";
const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";

/// A pod with an annotation, and with these fields of the pod and of its container `c`.
fn annotated(annotation: &str, pod: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    {annotation}\nspec:\n  \
         securityContext: {{{pod}}}\n  initContainers:\n  - {{name: first, image: i:1}}\n  containers:\n  - name: c\n    \
         image: i:1\n    securityContext: {{{container}}}\n"
    )
}

/// The profiles that a container comes to have, as `type name`.
fn profiles(text: &str, container: &str) -> (String, String) {
    let pod = read_pod(text);
    let spec = pod.spec.as_ref().expect("a spec");
    let mut all = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let found = all.find(|it| it.name == container).expect("the container");
    let own = found.security_context.clone().unwrap_or_default();
    let pod = spec.security_context.clone().unwrap_or_default();
    let say = |kind: String, name: Option<String>| {
        let name = name.unwrap_or_default();
        format!("{kind} {name}").trim_end().to_owned()
    };
    let app_armor = own.app_armor_profile.or(pod.app_armor_profile);
    let seccomp = own.seccomp_profile.or(pod.seccomp_profile);
    (
        app_armor.map_or_else(String::new, |it| say(it.type_, it.localhost_profile)),
        seccomp.map_or_else(String::new, |it| say(it.type_, it.localhost_profile)),
    )
}

#[test]
fn annotations_for_profiles_are_applied_as_the_fields_that_took_their_place() {
    for (value, expected) in [
        ("runtime/default", "RuntimeDefault"),
        ("unconfined", "Unconfined"),
        ("localhost/a/b", "Localhost a/b"),
        ("''", ""),
    ] {
        let app_armor = annotated(&format!("{APP_ARMOR}/c: {value}"), "", "");
        assert_eq!(profiles(&app_armor, "c"), (expected.into(), "".into()));
        assert_eq!(profiles(&app_armor, "first"), ("".into(), "".into()));
        let seccomp = annotated(&format!("{SECCOMP}/first: {value}"), "", "");
        assert_eq!(profiles(&seccomp, "first"), ("".into(), expected.into()));
        assert_eq!(profiles(&seccomp, "c"), ("".into(), "".into()));
        let of_pod = annotated(&format!("{SECCOMP_OF_POD}: {value}"), "", "");
        for container in ["first", "c"] {
            assert_eq!(profiles(&of_pod, container), ("".into(), expected.into()));
        }
    }
    let docker = annotated(&format!("{SECCOMP_OF_POD}: docker/default"), "", "");
    assert_eq!(profiles(&docker, "c").1, "RuntimeDefault");
}

/// As the API server has it: an annotation is as near to its container as the container's own field.
#[test]
fn an_annotation_for_a_container_wins_over_the_field_of_the_pod() {
    let text = annotated(
        &format!("{APP_ARMOR}/c: localhost/a"),
        "appArmorProfile: {type: Unconfined}",
        "",
    );
    assert_eq!(profiles(&text, "c").0, "Localhost a");
    assert_eq!(profiles(&text, "first").0, "Unconfined");
}

#[test]
fn a_field_and_its_annotation_that_differ_are_refused() {
    let same = annotated(
        &format!("{APP_ARMOR}/c: localhost/a"),
        "",
        "appArmorProfile: {type: Localhost, localhostProfile: a}",
    );
    assert_eq!(profiles(&same, "c").0, "Localhost a");
    for (annotation, pod, container) in [
        (
            "container.apparmor.security.beta.kubernetes.io/c: unconfined",
            "",
            "appArmorProfile: {type: RuntimeDefault}",
        ),
        (
            "container.apparmor.security.beta.kubernetes.io/c: localhost/b",
            "",
            "appArmorProfile: {type: Localhost, localhostProfile: a}",
        ),
        (
            "container.seccomp.security.alpha.kubernetes.io/c: unconfined",
            "",
            "seccompProfile: {type: RuntimeDefault}",
        ),
        (
            "seccomp.security.alpha.kubernetes.io/pod: unconfined",
            "seccompProfile: {type: RuntimeDefault}",
            "",
        ),
    ] {
        let found = only_problem(&annotated(annotation, pod, container));
        assert!(found.starts_with("6 metadata.annotations["), "{found}");
        assert!(found.contains("says another profile"), "{found}");
    }
}

#[test]
fn annotations_that_would_have_no_effect_are_refused() {
    for (annotation, expected) in [
        (
            format!("{APP_ARMOR}/d: unconfined"),
            "the pod has no container `d` (did you mean `c`?)",
        ),
        (
            format!("{APP_ARMOR}: unconfined"),
            "end it with `/` and the name of a container",
        ),
        (
            format!("{APP_ARMOR}/c: docker/default"),
            "`docker/default` is not a profile",
        ),
        (
            format!("{APP_ARMOR}/c: localhost/"),
            "`localhost/` is not a profile",
        ),
        (
            format!("{APP_ARMOR}/c: 'localhost/a '"),
            "not a profile's name",
        ),
        (
            format!("{SECCOMP}/c: Unconfined"),
            "`Unconfined` is not a profile",
        ),
        (format!("{SECCOMP}/c: localhost/../a"), "leaves"),
        (format!("{SECCOMP_OF_POD}: localhost//a"), "absolute"),
        (
            "seccomp.security.alpha.kubernetes.io/c: unconfined".to_owned(),
            "no such annotation",
        ),
        ("kubernetes.io/egress-bandwidth: 1M".to_owned(), "bandwidth"),
        (
            "security.alpha.kubernetes.io/sysctls: a=1".to_owned(),
            "spec.securityContext.sysctls",
        ),
        (
            "pod.beta.kubernetes.io/init-containers: '[]'".to_owned(),
            "spec.initContainers",
        ),
    ] {
        let found = only_problem(&annotated(&annotation, "", ""));
        assert!(found.starts_with("6 metadata.annotations["), "{found}");
        assert!(found.contains(expected), "{annotation}: {found}");
    }
    for note in [
        "prometheus.io/scrape: 'true'",
        "kubernetes.io/config.source: file",
    ] {
        read_pod(&annotated(note, "", ""));
    }
}

/// Whoever wrote these applied defaults before, and read what they made.
#[test]
fn applied_annotations_stay_as_they_are() {
    let mut pod = (*read_pod(&annotated(&format!("{APP_ARMOR}/c: unconfined"), "", ""))).clone();
    let once = pod.clone();
    defaults::pod(&mut pod);
    assert_eq!(once, pod);
    let text = serde_json::to_string(&once).expect("JSON");
    assert_eq!(once, *read_pod(&text));
}
