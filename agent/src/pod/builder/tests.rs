//! Whole plans from whole manifests.

use std::collections::HashMap;
use std::net::IpAddr;

use podling_images::Reference;
use podling_runtime::pod::plan::Handler;

use super::*;
use crate::pod::env::NoObjects;
use crate::pod::resources::Capacity;

fn image(layers: &std::path::Path) -> Image {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] },
        "config": { "Entrypoint": ["/entry"], "Cmd": ["cmd"], "Env": ["A=image", "B=image"], "StopSignal": "SIGQUIT",
            "User": "1000:1000", "WorkingDir": "/work" },
    });
    Image {
        references: vec!["localhost/i:latest".parse::<Reference>().unwrap()],
        digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
        index: None,
        config_digest: format!("sha256:{}", "b".repeat(64)).parse().unwrap(),
        config: serde_json::from_value(config).unwrap(),
        layers: vec![layers.to_owned()],
        parts: Vec::new(),
        size_bytes: 0,
        created: None,
        trust: None,
    }
}

/// The plan of a pod `p` whose spec is given, with an image for every container.
fn plan(spec: &str) -> Plan {
    let dir = tempfile::tempdir().unwrap();
    let pod: Pod = serde_saphyr::from_str(&format!(
        "metadata: {{name: p, namespace: default, uid: u}}\nspec:\n{spec}"
    ))
    .unwrap();
    let ip: IpAddr = "10.0.0.2".parse().unwrap();
    let ips = [ip];
    let facts = PodFacts {
        metadata: &pod.metadata,
        spec: pod.spec.as_ref(),
        service_account: "default",
        node_name: "node",
        host_ip: "10.0.0.1".parse().unwrap(),
        pod_ips: &ips,
        capacity: Capacity {
            cpu_millis: 4000,
            memory_bytes: 4 << 30,
            swap: false,
        },
    };
    let spec = pod.spec.as_ref().unwrap();
    let names = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c| c.name.clone());
    let images = names
        .map(|name| (name, ImageState::Ready(Box::new(image(dir.path())))))
        .collect();
    let etc = EtcFiles {
        hosts: "/e/hosts".into(),
        hostname: "/e/hostname".into(),
        resolv_conf: "/e/resolv".into(),
    };
    build(&Input {
        pod: &pod,
        generation: 1,
        facts: &facts,
        objects: &NoObjects,
        hostname: "p".into(),
        network: NetworkPlan::Namespace {
            path: "/n".into(),
            addresses: ips.to_vec(),
        },
        cgroup: "/podling/podu".into(),
        scope: false,
        volumes: &Volumes::new(dir.path()),
        prepared: &BTreeMap::new(),
        shm: "/shm".into(),
        images: &images,
        etc: &etc,
        data_dir: "/data".into(),
        log_dir: "/logs".into(),
        log_max_bytes: 1 << 20,
        log_max_files: 5,
        back_off: BackOff::default(),
        pids_limit: 100,
        min_oom_score_adj: 0,
    })
    .unwrap()
}

fn oci(container: &ContainerPlan) -> &Spec {
    match &container.source {
        ContainerSource::Ready { spec, .. } => spec,
        ContainerSource::Waiting { reason, message } => panic!("{reason}: {message}"),
    }
}

#[test]
fn an_image_gives_what_the_manifest_does_not() {
    let plan = plan("  containers: [{name: a, image: i, env: [{name: B, value: pod}]}]");
    let container = &plan.containers[0];
    let process = oci(container).process().clone().unwrap();
    assert_eq!(process.args().clone().unwrap(), ["/entry", "cmd"]);
    assert_eq!(process.cwd(), std::path::Path::new("/work"));
    assert_eq!((process.user().uid(), process.user().gid()), (1000, 1000));
    let env: HashMap<String, String> = process
        .env()
        .iter()
        .flatten()
        .map(|e| {
            e.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .unwrap()
        })
        .collect();
    assert_eq!(
        (
            env["A"].as_str(),
            env["B"].as_str(),
            env["HOSTNAME"].as_str()
        ),
        ("image", "pod", "p")
    );
    assert_eq!(container.stop_signal, nix::libc::SIGQUIT);
    assert_eq!(process.oom_score_adj(), Some(1000), "best effort");
}

#[test]
fn a_wrong_container_waits_alone() {
    let plan = plan(
        "  containers:\n  - {name: good, image: i}\n  - {name: bad, image: i, env: [{name: X, valueFrom: {configMapKeyRef: {name: absent, key: k}}}]}\n  - {name: root, image: i, securityContext: {runAsNonRoot: true, runAsUser: 0}}",
    );
    assert!(matches!(
        plan.containers[0].source,
        ContainerSource::Ready { .. }
    ));
    for (index, word) in [(1, "absent"), (2, "runAsNonRoot")] {
        match &plan.containers[index].source {
            ContainerSource::Waiting { reason, message } => {
                assert_eq!(reason, "CreateContainerConfigError");
                assert!(message.contains(word), "{message}");
            }
            ContainerSource::Ready { .. } => panic!("container {index} is ready"),
        }
    }
}

#[test]
fn kinds_policies_and_probes_are_carried_over() {
    let plan = plan(
        "  restartPolicy: OnFailure\n  terminationGracePeriodSeconds: 7\n  initContainers:\n  - {name: i, image: i}\n  - {name: s, image: i, restartPolicy: Always}\n  containers:\n  - name: a\n    image: i\n    ports: [{name: web, containerPort: 8080}]\n    livenessProbe: {httpGet: {port: web, path: healthz}, periodSeconds: 3}\n    readinessProbe: {grpc: {port: 5000}}",
    );
    let kinds: Vec<ContainerKind> = plan.containers.iter().map(|c| c.kind).collect();
    assert_eq!(
        kinds,
        [
            ContainerKind::Init,
            ContainerKind::Sidecar,
            ContainerKind::Main
        ]
    );
    assert_eq!(
        (plan.restart_policy, plan.termination_grace_secs),
        (RestartPolicy::OnFailure, 7)
    );
    let probe = plan.containers[2].liveness_probe.clone().unwrap();
    assert_eq!(
        (probe.period_ms, probe.timeout_ms, probe.failure_threshold),
        (3000, 1000, 3)
    );
    assert!(
        matches!(probe.handler, Handler::Http { port: 8080, ref path, .. } if path == "/healthz")
    );
    let ready = plan.containers[2].readiness_probe.clone().unwrap();
    assert!(
        matches!(ready.handler, Handler::Grpc { port: 5000, ref service } if service.is_empty())
    );
}

#[test]
fn protections_are_on_unless_privileged() {
    let plan = plan(
        "  containers:\n  - {name: a, image: i}\n  - {name: b, image: i, securityContext: {privileged: true}}",
    );
    let (plain, privileged) = (oci(&plan.containers[0]), oci(&plan.containers[1]));
    let masked = |spec: &Spec| {
        spec.linux()
            .as_ref()
            .unwrap()
            .masked_paths()
            .clone()
            .unwrap_or_default()
            .len()
    };
    assert_eq!(
        (masked(plain), masked(privileged)),
        (mounts::MASKED_PATHS.len(), 0)
    );
    let devices = |spec: &Spec| {
        spec.linux()
            .as_ref()
            .unwrap()
            .resources()
            .as_ref()
            .unwrap()
            .devices()
            .clone()
            .unwrap()
    };
    assert!(!devices(plain)[0].allow() && devices(privileged)[0].allow());
}

#[test]
fn every_plan_survives_its_own_json() {
    let plan = plan(
        "  initContainers: [{name: i, image: i}]\n  containers: [{name: a, image: i, resources: {limits: {cpu: 300m, memory: 64Mi}}}]",
    );
    let text = serde_json::to_string(&plan).unwrap();
    let back: Plan = serde_json::from_str(&text).unwrap();
    assert_eq!(back, plan);
}

/// Of a container that has to be restarted for other memory, and for nothing else.
#[test]
fn resize_policies_decide_whether_new_limits_restart_a_container() {
    let hash = |cpu: &str, memory: &str| {
        let container = serde_json::json!({
            "name": "a", "image": "i",
            "resizePolicy": [
                { "resourceName": "cpu", "restartPolicy": "NotRequired" },
                { "resourceName": "memory", "restartPolicy": "RestartContainer" },
            ],
            "resources": { "limits": { "cpu": cpu, "memory": memory } },
        });
        spec_hash(&serde_json::from_value(container).unwrap())
    };
    assert_eq!(hash("1", "1Gi"), hash("2", "1024Mi"));
    assert_ne!(hash("1", "1Gi"), hash("1", "2Gi"));
}
