//! Probes and hooks that need a socket, in real pods. That each kind of server is judged rightly is tried without pods.
#![cfg(feature = "privileged-tests")]

use serde_json::json;

mod pod_support;
use pod_support::{Pod, probe};

#[test]
fn an_http_hook_is_done_whatever_status_it_is_answered_with() {
    let http = json!({ "kind": "http", "tls": false, "host": null, "port": 8080, "path": "/nothing",
                       "headers": [] });
    let mut pod = Pod::new(vec![
        json!({ "name": "server", "kind": "sidecar", "run": "exec httpd -f -p 8080 -h /tmp",
                "startup_probe": probe(&json!({ "kind": "tcp", "host": null, "port": 8080 })) }),
        json!({ "name": "main", "post_start": http, "readiness_probe": probe(&http) }),
    ]);
    pod.start();
    let main = pod.until_container("main", "has started, and its probe fails", |c| {
        c.started && !c.probe_failures.is_empty()
    });
    assert_eq!(main.restart_count, 0);
    let message = &main.probe_failures[0].message;
    assert!(message.contains("404"), "{message}");
    pod.terminate(0);
}

/// A gRPC server of few words: whatever it is asked, it gives one status. `$1`: its port; `$2`: the status.
const GRPC_SERVER: &str = r"
cat > /tmp/answer <<'END'
head -c 100 > /dev/null
# SETTINGS, HEADERS, DATA and trailers, after Health/Check has been asked for.
printf '\000\000\000\004\000\000\000\000\000'
printf '\000\000\001\001\004\000\000\000\001\210'
printf '\000\000\007\000\000\000\000\000\001\000\000\000\000\002\010\00'$STATUS
printf '\000\000\017\001\005\000\000\000\001\000\013grpc-status\0010'
cat > /dev/null
END
export STATUS=$2
while :; do nc -l -p $1 -e sh /tmp/answer; done
";

#[test]
fn a_grpc_probe_asks_for_health() {
    let server = |name: &str, port: u16, status: &str| {
        json!({ "name": name, "run": format!("set -- {port} {status}\n{GRPC_SERVER}"),
                "readiness_probe": probe(&json!({ "kind": "grpc", "port": port, "service": "" })) })
    };
    let mut pod = Pod::new(vec![server("good", 5001, "1"), server("bad", 5002, "2")]);
    pod.start();
    pod.until_container("good", "is ready", |c| c.ready);
    let bad = pod.until_container("bad", "says no", |c| {
        c.probe_failures
            .iter()
            .any(|failure| failure.message.contains("NOT_SERVING"))
    });
    assert!(!bad.ready);
    pod.terminate(0);
}
