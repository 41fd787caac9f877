//! Tests of reading manifests: each rule by an example.

mod annotations;
mod documentation;
mod hostile;
mod properties;

use super::*;

const HELLO: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: hello
  labels: {app.kubernetes.io/name: hello}
spec:
  containers:
  - name: web
    image: podling.local/demo
    ports:
    - {name: http, containerPort: 8080}
    resources:
      requests: {cpu: 200m, memory: 100Mi}
      limits: {cpu: 0.3, memory: 200Mi}
    livenessProbe:
      httpGet: {path: /healthz, port: http}
";

fn origin() -> Origin {
    Origin::file("/m/test.yaml")
}

fn read(text: &str) -> Result<Vec<Desired>, Vec<Problem>> {
    parse(text, &origin(), "node")
}

/// A pod with these lines below `spec:`, one container included.
fn pod_with(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n{spec}\n  containers:\n  - {{name: c, image: i:1}}\n"
    )
}

/// A pod whose container has these lines.
fn container_with(lines: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  volumes: [{{name: v, emptyDir: {{}}}}]\n  \
         containers:\n  - name: c\n    image: i:1\n{lines}\n"
    )
}

/// The problems, as `line field: message (remedy)`.
fn problems(text: &str) -> Vec<String> {
    let found = read(text).expect_err("this manifest has problems");
    let found = found.iter().map(|problem| {
        let line = problem.origin.line().unwrap_or(0);
        let field = problem.field.as_deref().unwrap_or("-");
        let remedy = problem.remedy.as_deref().unwrap_or("-");
        format!("{line} {field}: {} ({remedy})", problem.message)
    });
    found.collect()
}

fn only_problem(text: &str) -> String {
    let found = problems(text);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap_or_default()
}

fn read_pod(text: &str) -> Arc<Pod> {
    let objects = read(text).expect("a good manifest");
    match &objects[0].body {
        Body::Pod(pod) => pod.clone(),
        other => panic!("a pod, not {other:?}"),
    }
}

#[test]
fn defaults_are_those_of_the_api_server() {
    let pod = read_pod(HELLO);
    insta::assert_yaml_snapshot!(&*pod);
}

#[test]
fn image_pull_policy_depends_on_the_tag() {
    for (image, expected) in [
        ("web", "Always"),
        ("web:latest", "Always"),
        ("web:1", "IfNotPresent"),
        ("host:5000/web", "Always"),
        ("host:5000/web:2", "IfNotPresent"),
        (
            "web@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "IfNotPresent",
        ),
    ] {
        let pod = read_pod(&HELLO.replace("podling.local/demo", image));
        let spec = pod.spec.as_ref().expect("a spec");
        let found = spec.containers[0].image_pull_policy.as_deref();
        assert_eq!(found, Some(expected), "{image}");
    }
}

#[test]
fn many_documents_and_lists_are_one_manifest() {
    let text = "---\n# nothing\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  \
                metadata: {name: a}\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: b, namespace: a}\n  \
                data: {k: v}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: c}\nstringData: {k: v}\n";
    let objects = read(text).expect("a good manifest");
    let keys: Vec<String> = objects
        .iter()
        .map(|object| object.key.to_string())
        .collect();
    assert_eq!(keys, ["Namespace a", "ConfigMap a/b", "Secret default/c"]);
    assert_eq!(objects[1].origin.line(), Some(10));
    let Body::Secret(secret) = &objects[2].body else {
        panic!("a secret");
    };
    assert!(secret.string_data.is_none());
    let data = secret.data.as_ref().and_then(|data| data.get("k"));
    assert_eq!(data.map(|value| value.0.as_slice()), Some(b"v".as_slice()));
}

#[test]
fn json_is_a_manifest_too_and_has_lines() {
    let text = "{\n  \"apiVersion\": \"v1\",\n  \"kind\": \"ConfigMap\",\n  \"metadata\": {\"name\": \"m\"},\n  \
                \"data\": {\"a\": \"\\ud83d\\ude00\\/\",\n \"b\": 7}\n}\n";
    assert_eq!(
        only_problem(text),
        "6 data.b: expected a text, found the number 7 (put it in quotes)"
    );
    let objects = read(&text.replace('7', "\"7\"")).expect("a good manifest");
    let Body::ConfigMap(map) = &objects[0].body else {
        panic!("a ConfigMap");
    };
    let data = map.data.as_ref().and_then(|data| data.get("a"));
    assert_eq!(data.map(String::as_str), Some("\u{1f600}/"));
}

#[test]
fn an_unknown_field_is_refused_with_line_path_and_remedy() {
    let text = HELLO.replace("limits:", "limit:");
    assert_eq!(
        problems(&text),
        [
            "14 spec.containers[0].resources.limit: Kubernetes has no such field (did you mean `limits`?)"
        ]
    );
    let text = HELLO.replace("    image:", "    imgae: x\n    image:");
    assert!(only_problem(&text).starts_with("9 spec.containers[0].imgae: "));
}

#[test]
fn a_wrong_type_is_refused_with_line_path_and_remedy() {
    let text = HELLO.replace("containerPort: 8080", "containerPort: \"8080\"");
    assert_eq!(
        only_problem(&text),
        "11 spec.containers[0].ports[0].containerPort: expected a number, found the text `8080` (write it without \
         quotes)"
    );
    let text = pod_with("  hostAliases: {ip: 1.2.3.4}");
    assert!(only_problem(&text).starts_with("5 spec.hostAliases: expected a list, found a map"));
}

#[test]
fn bad_quantities_are_refused_with_what_was_meant() {
    let text = HELLO.replace("100Mi", "100MB");
    assert_eq!(
        only_problem(&text),
        "13 spec.containers[0].resources.requests.memory: `100MB` has an unknown suffix `MB` (did you mean the \
         suffix `Mi`?)"
    );
    assert!(only_problem(&HELLO.replace("100Mi", "100m")).contains("for mebibytes write `Mi`"));
    assert!(only_problem(&HELLO.replace("cpu: 200m", "cpu: -1")).contains("negative"));
    let text = HELLO.replace("cpu: 200m", "cpu: 400m");
    assert!(only_problem(&text).contains("larger than its limit"));
    for (host, good) in [
        ("127.0.0.1", true),
        ("'::1'", true),
        ("localhost", true),
        ("'http://web'", false),
        ("'web:80'", false),
    ] {
        let text = HELLO.replace(
            "{path: /healthz",
            &format!("{{host: {host}, path: /healthz"),
        );
        assert_ne!(text, HELLO);
        assert_eq!(read(&text).is_ok(), good, "{host}");
    }
    let text = HELLO.replace("cpu: 200m", "ephemeral-storage: 1Gi");
    assert!(only_problem(&text).contains("this node limits cpu and memory"));
}

#[test]
fn what_is_not_supported_is_refused() {
    for spec in [
        "  nodeSelector: {a: b}",
        "  runtimeClassName: kata",
        "  hostUsers: false",
        "  volumes: [{name: v, nfs: {server: s, path: /}}]",
        "  volumes: [{name: v, persistentVolumeClaim: {claimName: s}}]",
        "  schedulerName: mine",
        "  automountServiceAccountToken: true",
    ] {
        let found = only_problem(&pod_with(spec));
        assert!(found.starts_with("5 spec."), "{found}");
        assert!(found.contains("support"), "{found}");
    }
    let found = only_problem(&container_with(
        "    securityContext: {procMount: Unmasked}",
    ));
    assert!(found.starts_with("9 spec.containers[0]."), "{found}");
}

#[test]
fn what_means_nothing_here_is_accepted() {
    read_pod(&pod_with(
        "  tolerations: [{operator: Exists}]\n  hostUsers: true\n  os: {name: linux}\n  nodeName: node\n  \
         automountServiceAccountToken: false\n  nodeSelector: {}\n  schedulerName: default-scheduler",
    ));
}

#[test]
fn volumes_of_many_things() {
    read_pod(&pod_with(
        "  volumes:\n  - name: v\n    projected: {sources: [{configMap: {name: m}}, {secret: {name: s}}, {downwardAPI: \
         {items: [{path: l, fieldRef: {fieldPath: metadata.labels}}]}}]}",
    ));
    read_pod(&container_with(
        "    securityContext: {privileged: true, procMount: Default}\n    volumeMounts: [{name: v, mountPath: /v, \
         mountPropagation: Bidirectional}, {name: v, mountPath: /w, readOnly: true, recursiveReadOnly: Enabled}]",
    ));
    read_pod(&container_with(
        "    lifecycle: {stopSignal: SIGUSR1}\n    volumeMounts: [{name: v, mountPath: /v, subPathExpr: $(A)/b}]",
    ));
}

#[test]
fn rules_of_pod_specs() {
    for (lines, expected) in [
        (
            "    volumeMounts: [{name: w, mountPath: /v}]",
            "did you mean `v`",
        ),
        (
            "    volumeMounts: [{name: v, mountPath: /v, subPath: /}]",
            "`/` is absolute",
        ),
        (
            "    volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]",
            "only for privileged containers",
        ),
        (
            "    volumeMounts: [{name: v, mountPath: /v, mountPropagation: Both}]",
            "mountPropagation",
        ),
        (
            "    volumeMounts: [{name: v, mountPath: /v, recursiveReadOnly: Enabled}]",
            "add `readOnly: true`",
        ),
        (
            "    volumeMounts: [{name: v, mountPath: /v, readOnly: true, recursiveReadOnly: IfPossible, mountPropagation: HostToContainer}]",
            "only without mountPropagation",
        ),
        (
            "    volumeMounts: [{name: v, mountPath: /v, subPath: a/../..}]",
            "leaves the volume",
        ),
        (
            "    volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /v/}]",
            "another volume",
        ),
        ("    ports: [{containerPort: 0}]", "not between 1 and 65535"),
        (
            "    ports: [{containerPort: 1, protocol: tcp}]",
            "did you mean `TCP`",
        ),
        (
            "    ports: [{containerPort: 1, hostPort: 1, hostIP: '::1'}]",
            "not supported: the IPv6 address `::1`",
        ),
        (
            "    livenessProbe: {periodSeconds: 1}",
            "the probe does nothing",
        ),
        (
            "    livenessProbe: {exec: {command: [a]}, tcpSocket: {port: 1}}",
            "one thing only",
        ),
        (
            "    livenessProbe: {httpGet: {port: web}}",
            "the container has no port `web`",
        ),
        (
            "    livenessProbe: {grpc: {service: s, port: 0}}",
            "not between 1 and 65535",
        ),
        (
            "    livenessProbe: {tcpSocket: {port: 1}, successThreshold: 2}",
            "must be 1",
        ),
        (
            "    livenessProbe: {tcpSocket: {port: 1}, periodSeconds: -1}",
            "too small",
        ),
        (
            "    env: [{name: 'A=B', value: x}]",
            "not the name of a variable",
        ),
        (
            "    env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]",
            "not both",
        ),
        (
            "    env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.nam}}}]",
            "metadata.name",
        ),
        ("    imagePullPolicy: always", "did you mean `Always`"),
        ("    restartPolicy: Always", "not an init container"),
        (
            "    securityContext: {capabilities: {add: [SYS_FOO]}}",
            "no capability",
        ),
        (
            "    securityContext: {privileged: true, allowPrivilegeEscalation: false}",
            "privileged",
        ),
        (
            "    securityContext: {seccompProfile: {type: Localhost}}",
            "required",
        ),
        (
            "    securityContext: {appArmorProfile: {type: Localhost}}",
            "required",
        ),
        (
            "    securityContext: {appArmorProfile: {type: Unconfined, localhostProfile: a}}",
            "only for the type Localhost",
        ),
        (
            "    ports: [{containerPort: 1, hostPort: 80}, {containerPort: 2, hostPort: 80}]",
            "the pod has the host's port 80 already",
        ),
        (
            "    resizePolicy: [{resourceName: disk, restartPolicy: NotRequired}]",
            "not a value of this field",
        ),
        (
            "    resizePolicy: [{resourceName: cpu, restartPolicy: Restart}]",
            "not a value of this field",
        ),
        (
            "    env: [{name: A, valueFrom: {fieldRef: {apiVersion: v2, fieldPath: metadata.name}}}]",
            "not a value of this field",
        ),
    ] {
        let found = only_problem(&container_with(lines));
        assert!(found.contains(expected), "{lines}: {found}");
    }
    for (spec, expected) in [
        ("  restartPolicy: always", "did you mean `Always`"),
        ("  nodeName: other", "the pod is for node `other`"),
        (
            "  volumes: [{name: v, hostPath: {path: etc}}]",
            "not absolute",
        ),
        (
            "  volumes: [{name: v, hostPath: {path: /etc, type: Dir}}]",
            "not a value",
        ),
        ("  volumes: [{name: v}]", "where it comes from"),
        (
            "  volumes: [{name: v, emptyDir: {}, hostPath: {path: /x}}]",
            "one place only",
        ),
        (
            "  volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]",
            "another volume is named",
        ),
        (
            "  volumes: [{name: v, secret: {secretName: s, items: [{key: a, path: ../x}]}}]",
            "leaves",
        ),
        (
            "  volumes: [{name: v, configMap: {name: s, defaultMode: 644}}]",
            "leading zero",
        ),
        (
            "  volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]",
            "configMap, secret and downwardAPI",
        ),
        (
            "  volumes: [{name: v, projected: {sources: [{}]}}]",
            "exactly one thing",
        ),
        (
            "  volumes: [{name: v, downwardAPI: {items: [{path: a, fieldRef: {fieldPath: status.podIP}}]}}]",
            "a file cannot take",
        ),
        ("  dnsPolicy: None", "needs at least one name server"),
        ("  hostname: A_b", "not a DNS label"),
        ("  terminationGracePeriodSeconds: -1", "too small"),
        (
            "  securityContext: {sysctls: [{name: kernel.hostname, value: x}]}",
            "whole machine",
        ),
        (
            "  securityContext: {sysctls: [{name: net.a, value: '0'}, {name: net/a, value: '1'}]}",
            "`net.a` is there twice",
        ),
        (
            "  securityContext: {fsGroup: 4294967295}",
            "too large: at most 2147483647",
        ),
        (
            "  initContainers: [{name: c, image: i}]",
            "another container is named `c`",
        ),
        (
            "  initContainers: [{name: i, image: i, livenessProbe: {exec: {command: [a]}}}]",
            "to its end",
        ),
        (
            "  initContainers: [{name: i, image: 'i I'}]",
            "not an image",
        ),
    ] {
        let found = only_problem(&pod_with(spec));
        assert!(found.contains(expected), "{spec}: {found}");
    }
}

#[test]
fn octal_modes_are_read_as_people_write_them() {
    let pod = read_pod(&pod_with(
        "  volumes: [{name: v, configMap: {name: s, defaultMode: 0640}}]",
    ));
    let volumes = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.volumes.as_ref())
        .expect("volumes");
    let mode = volumes[0]
        .config_map
        .as_ref()
        .and_then(|map| map.default_mode);
    assert_eq!(mode, Some(0o640));
}

#[test]
fn names_and_labels_are_checked() {
    for (from, to) in [
        ("name: hello\n", "name: Hello\n"),
        ("name: hello\n", "name: ''\n"),
        ("name: hello\n", "name: hello\n  namespace: a.b\n"),
        ("name: hello}", "name: '-x'}"),
        ("app.kubernetes.io/name", "-/name"),
    ] {
        assert!(
            problems(&HELLO.replace(from, to))[0].contains("metadata."),
            "{to}"
        );
    }
}

#[test]
fn an_object_defined_twice_in_a_manifest_is_refused_with_both_places() {
    let found = only_problem(&format!("{HELLO}---\n{HELLO}"));
    assert!(
        found.contains("Pod default/hello is already defined at /m/test.yaml:1"),
        "{found}"
    );
}

#[test]
fn kinds_and_versions() {
    assert!(only_problem("kind: Pd\napiVersion: v1").contains("did you mean `Pod`"));
    assert!(only_problem("kind: Pod\napiVersion: v2").contains("write `apiVersion: v1`"));
    assert!(only_problem("apiVersion: v1").contains("kind: required"));
    assert!(only_problem("- a").contains("expected an object"));
    assert!(only_problem("apiVersion: v1\nkind: Deployment").contains("the kinds of this node"));
    assert_eq!(read("").expect("nothing is fine"), []);
    assert_eq!(read("# nothing\n---\n").expect("nothing is fine"), []);
}

#[test]
fn a_namespace_that_wants_its_pods_checked_is_refused() {
    let namespace = |level: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: web\n  labels:\n    \
             pod-security.kubernetes.io/enforce: {level}\n"
        )
    };
    let found = only_problem(&namespace("restricted"));
    let expected = "6 metadata.labels[pod-security.kubernetes.io/enforce]: not supported";
    assert!(found.starts_with(expected), "{found}");
    read(&namespace("privileged")).expect("every pod may come");
}

#[test]
fn defaults_are_idempotent() {
    let once = read_pod(HELLO);
    let mut twice = (*once).clone();
    defaults::pod(&mut twice);
    assert_eq!(*once, twice);
    // And a manifest with its defaults written out is as good.
    let text = serde_json::to_string(&*once).expect("JSON");
    assert_eq!(once, read_pod(&text));
}
