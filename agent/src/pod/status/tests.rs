//! Tables of facts and the statuses they give.

use super::*;
use podling_runtime::pod::snapshot::{ContainerSnapshot, Termination};

const T0: &str = "2026-01-01T00:00:00Z";

fn time() -> Timestamp {
    T0.parse().unwrap()
}

fn pod(policy: &str, init: &[(&str, bool)], main: &[&str]) -> Pod {
    let init: Vec<_> = init
        .iter()
        .map(|(name, sidecar)| {
            let policy = if *sidecar {
                serde_json::json!("Always")
            } else {
                serde_json::Value::Null
            };
            serde_json::json!({ "name": name, "image": "i", "restartPolicy": policy })
        })
        .collect();
    let main: Vec<_> = main
        .iter()
        .map(|name| serde_json::json!({ "name": name, "image": "i" }))
        .collect();
    serde_json::from_value(serde_json::json!({
        "metadata": { "name": "p" },
        "spec": { "restartPolicy": policy, "initContainers": init, "containers": main },
    }))
    .unwrap()
}

fn end(exit_code: i32) -> Termination {
    Termination {
        id: "dead".into(),
        exit_code,
        signal: None,
        reason: if exit_code == 0 {
            "Completed".into()
        } else {
            "Error".into()
        },
        message: None,
        started_at: time(),
        finished_at: time(),
    }
}

/// `w` waits, `b` waits after a run, `r` runs, `R` runs and is ready, `0` and `1` have ended.
fn container(name: &str, code: char) -> ContainerSnapshot {
    let waiting = || ContainerState::Waiting {
        reason: "CrashLoopBackOff".into(),
        message: String::new(),
        until: None,
    };
    let running = || ContainerState::Running {
        id: "live".into(),
        pid: 7,
        started_at: time(),
    };
    let (state, last) = match code {
        'w' => (waiting(), None),
        'b' => (waiting(), Some(end(1))),
        'r' | 'R' => (running(), None),
        '0' => (ContainerState::Terminated(end(0)), None),
        '1' => (ContainerState::Terminated(end(1)), None),
        other => panic!("no such code: {other}"),
    };
    ContainerSnapshot {
        name: name.into(),
        state,
        last_termination: last,
        restart_count: 0,
        started: matches!(code, 'r' | 'R'),
        ready: code == 'R',
        probe_failures: Vec::new(),
        annotations: BTreeMap::new(),
        cgroup: None,
    }
}

fn snapshot(stage: Stage, containers: &[(&str, char)]) -> Snapshot {
    Snapshot {
        sequence: 1,
        plan_generation: 1,
        started_at: time(),
        stage,
        containers: containers
            .iter()
            .map(|(name, code)| container(name, *code))
            .collect(),
    }
}

fn of(pod: &Pod, snapshot: &Snapshot, before: Option<&PodStatus>) -> PodStatus {
    let facts = Facts {
        snapshot: Some(snapshot),
        sandbox_ready: true,
        ..Facts::default()
    };
    status(pod, &facts, before, time())
}

fn truth<'a>(status: &'a PodStatus, kind: &str) -> &'a str {
    &status
        .conditions
        .as_ref()
        .unwrap()
        .iter()
        .find(|c| c.type_ == kind)
        .unwrap()
        .status
}

#[test]
fn phases_of_main_containers() {
    let ended = || Stage::Ended {
        reason: None,
        message: None,
        terminated: false,
    };
    for (policy, codes, stage, expected) in [
        ("Always", "wR", Stage::Active, "Pending"),
        ("Always", "RR", Stage::Active, "Running"),
        ("Always", "bR", Stage::Active, "Running"),
        ("Always", "bb", Stage::Active, "Running"),
        ("Always", "00", Stage::Active, "Running"),
        ("OnFailure", "00", ended(), "Succeeded"),
        ("OnFailure", "0b", Stage::Active, "Running"),
        ("Never", "00", ended(), "Succeeded"),
        ("Never", "01", ended(), "Failed"),
        ("Never", "1R", Stage::Active, "Running"),
        ("Always", "01", ended(), "Failed"),
    ] {
        let pod = pod(policy, &[], &["a", "b"]);
        let codes: Vec<char> = codes.chars().collect();
        let snapshot = snapshot(stage, &[("a", codes[0]), ("b", codes[1])]);
        let status = of(&pod, &snapshot, None);
        assert_eq!(
            status.phase.as_deref(),
            Some(expected),
            "{policy} {codes:?}"
        );
    }
}

#[test]
fn phases_and_conditions_while_initialising() {
    for (policy, init, main, expected, initialized) in [
        ("Always", 'r', 'w', "Pending", "False"),
        ("Always", '0', 'w', "Pending", "True"),
        ("Always", '0', 'R', "Running", "True"),
        ("Always", 'b', 'w', "Pending", "False"),
        ("Never", '1', 'w', "Failed", "False"),
    ] {
        let pod = pod(policy, &[("i", false)], &["a"]);
        let status = of(
            &pod,
            &snapshot(Stage::Initializing, &[("i", init), ("a", main)]),
            None,
        );
        assert_eq!(
            status.phase.as_deref(),
            Some(expected),
            "{policy} {init}{main}"
        );
        assert_eq!(
            truth(&status, "Initialized"),
            initialized,
            "{policy} {init}{main}"
        );
    }
}

#[test]
fn a_restarting_sidecar_does_not_send_the_pod_back_and_makes_it_unready() {
    let pod = pod("Always", &[("s", true)], &["a"]);
    let status = of(
        &pod,
        &snapshot(Stage::Active, &[("s", 'b'), ("a", 'R')]),
        None,
    );
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(
        (truth(&status, "Initialized"), truth(&status, "Ready")),
        ("True", "False")
    );
    // An exited sidecar does not count when the pod has completed.
    let never = super::tests::pod("Never", &[("s", true)], &["a"]);
    let ended = Stage::Ended {
        reason: None,
        message: None,
        terminated: false,
    };
    let status = of(&never, &snapshot(ended, &[("s", '1'), ("a", '0')]), None);
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    assert_eq!(truth(&status, "Ready"), "False");
}

#[test]
fn ready_follows_containers_and_readiness_gates() {
    let mut pod = pod("Always", &[], &["a"]);
    let ready = snapshot(Stage::Active, &[("a", 'R')]);
    assert_eq!(truth(&of(&pod, &ready, None), "Ready"), "True");
    assert_eq!(
        truth(
            &of(&pod, &snapshot(Stage::Active, &[("a", 'r')]), None),
            "Ready"
        ),
        "False"
    );
    pod.spec.as_mut().unwrap().readiness_gates =
        Some(vec![k8s_openapi::api::core::v1::PodReadinessGate {
            condition_type: "example.com/gate".into(),
        }]);
    let status = of(&pod, &ready, None);
    assert_eq!(
        (truth(&status, "ContainersReady"), truth(&status, "Ready")),
        ("True", "False")
    );
}

#[test]
fn a_terminal_phase_never_changes_and_transition_times_stay() {
    let pod = pod("Never", &[], &["a"]);
    let ended = Stage::Ended {
        reason: None,
        message: None,
        terminated: false,
    };
    let first = of(&pod, &snapshot(ended, &[("a", '1')]), None);
    let facts = Facts {
        snapshot: None,
        sandbox_ready: false,
        ..Facts::default()
    };
    let later = "2026-01-02T00:00:00Z".parse().unwrap();
    let second = status(&pod, &facts, Some(&first), later);
    assert_eq!(second.phase.as_deref(), Some("Failed"));
    let since = |s: &PodStatus, kind: &str| {
        s.conditions
            .as_ref()
            .unwrap()
            .iter()
            .find(|c| c.type_ == kind)
            .unwrap()
            .last_transition_time
            .clone()
    };
    assert_eq!(since(&second, "Ready"), since(&first, "Ready"));
    assert_ne!(
        since(&second, "PodReadyToStartContainers"),
        since(&first, "PodReadyToStartContainers")
    );
    let state = second.container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(
        state.terminated.unwrap().exit_code,
        1,
        "the supervisor's last words stand"
    );
}

#[test]
fn what_the_worker_waits_for_is_the_containers_reason() {
    let pod = pod("Always", &[], &["a"]);
    let waiting = Waiting {
        reason: "ImagePullBackOff".into(),
        message: "no route".into(),
    };
    let facts = Facts {
        waiting: [("a".to_owned(), waiting)].into(),
        ..Facts::default()
    };
    let status = status(&pod, &facts, None, time());
    let state = status.container_statuses.unwrap()[0]
        .state
        .clone()
        .unwrap()
        .waiting
        .unwrap();
    assert_eq!(
        (state.reason.as_deref(), state.message.as_deref()),
        (Some("ImagePullBackOff"), Some("no route"))
    );
}

#[test]
fn a_pod_that_was_given_up_has_failed_with_the_reason() {
    let pod = pod("Always", &[], &["a"]);
    let facts = Facts {
        failure: Some(Waiting {
            reason: "Evicted".into(),
            message: "too large".into(),
        }),
        ..Facts::default()
    };
    let status = status(&pod, &facts, None, time());
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("Evicted"))
    );
}

/// The name came to mean another image, while the container runs on, waits for its next start or has ended.
#[test]
fn the_image_shown_is_the_one_that_the_container_was_started_with() {
    let image = |digit: &str| ImageFacts {
        image: "localhost/i:latest".to_owned(),
        image_id: format!("localhost/i@sha256:{}", digit.repeat(64)),
    };
    let pod = pod("Always", &[], &["a"]);
    let shown = |code, started_with: Option<ImageFacts>| {
        let mut snapshot = snapshot(Stage::Active, &[("a", code)]);
        let annotations = started_with.map(ImageFacts::annotations);
        snapshot.containers[0].annotations = annotations.into_iter().flatten().collect();
        let facts = Facts {
            snapshot: Some(&snapshot),
            images: [("a".to_owned(), image("2"))].into(),
            ..Facts::default()
        };
        let status = status(&pod, &facts, None, time());
        let container = status.container_statuses.unwrap().remove(0);
        ImageFacts {
            image: container.image,
            image_id: container.image_id,
        }
    };
    for code in ['R', 'r', 'b', '0'] {
        assert_eq!(shown(code, Some(image("1"))), image("1"), "{code}");
    }
    // One that has not run, and one that an earlier version started.
    assert_eq!(shown('w', None), image("2"));
    assert_eq!(shown('r', None), image("2"));
}
