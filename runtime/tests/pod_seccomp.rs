//! Filters that notify, in pods: the agent gets the listener of each process, those of probes and clients too.
#![cfg(feature = "privileged-tests")]

mod pod_support;
mod seccomp_agent;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixListener;

use pod_support::Pod;
use podling_runtime::pod::protocol::{Reply, Request};
use seccomp_agent::{ANSWER, serve};
use serde_json::json;

#[test]
fn an_agent_decides_about_a_pods_containers_and_the_commands_in_them() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "mkdir /tmp/x 2>/tmp/said; exec sleep 1000" })]);
    let socket = pod.path("agent.sock");
    let profile = pod.path("profile.json");
    let text = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": socket,
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
    });
    std::fs::write(&profile, text.to_string()).expect("a profile");
    let source = &mut pod.plan["containers"][0]["source"];
    source["seccomp"] = json!({ "kind": "localhost", "path": profile });
    source["spec"]["annotations"] = json!({ "a": "b" });
    let agent = serve(UnixListener::bind(&socket).expect("binds"), 3);
    pod.start();
    pod.until_running("main");
    assert!(mkdir(&pod).contains(ANSWER));
    // A supervisor that finds its container running knows what to tell, too.
    pod.kill_supervisor();
    pod.start_supervisor();
    pod.until_running("main");
    assert!(mkdir(&pod).contains(ANSWER));
    pod.terminate(0);
    let told = agent.join().expect("serves");
    let first = *told[0].pid();
    for state in &told {
        assert_eq!(state.state().id(), told[0].state().id());
        assert_eq!(*state.state().pid(), Some(first));
        let annotations = state.state().annotations().as_ref().expect("annotations");
        assert_eq!(annotations["a"], "b");
    }
    assert_ne!(*told[1].pid(), first);
}

/// What a command in the container says of an attempt to make a directory.
fn mkdir(pod: &Pod) -> String {
    let request = Request::Exec {
        container: "main".to_owned(),
        command: ["sh", "-c", "mkdir /tmp/y 2>&1"]
            .map(str::to_owned)
            .to_vec(),
        tty: false,
        stdin: false,
        size: None,
    };
    // The command would end with it.
    let client = pod.client();
    let (reply, descriptors) = client.request(&request).expect("a reply");
    assert_eq!(reply, Reply::ExecStarted);
    let mut said = String::new();
    File::from(descriptors.into_iter().next().expect("its output"))
        .read_to_string(&mut said)
        .expect("text");
    said
}
