//! What probes cost, and how soon their outcome shows.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::Effort;
use crate::node::{Node, is_ready};
use crate::node_bench::{pods, supervisors, used_per_minute, wait};
use crate::table::{Budget, Samples, Table};

/// Each takes a probe's period of a second.
const CHANGES_MAX: usize = 10;

pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let shown = readiness(effort);
    if let Some(figure) = shown.quantile_ms(0.5) {
        let what = "readiness change -> visible in status, p50";
        table.row(what, figure, "ms", &[], Budget::Absolute(5.0));
    }
    let count = effort.pods;
    let mut node = Node::like_a_machine();
    node.start_agent();
    node.load_busybox();
    node.apply("many.yaml", &probed(count));
    let socket = node.path("run/agent.sock");
    assert!(wait(|| ready(&socket) == Some(count)), "{}", node.report());
    let mut pids = supervisors(&node);
    pids.push(node.agent_pid() as i32);
    let (cpu, _) = used_per_minute(&pids, effort);
    table.row(
        &format!("CPU per minute, {count} pods with an HTTP probe every 10 s"),
        cpu,
        "s",
        &[],
        Budget::Absolute(0.6 * (count as f64 / 100.0).max(0.1)),
    );
}

/// The time from a probe's answer, which says something else than the last, to the condition that clients see.
fn readiness(effort: Effort) -> Samples {
    let mut node = Node::like_a_machine();
    node.start_agent();
    node.load_busybox();
    let listener = node.in_network(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    node.apply("probed.yaml", &asked(port));
    let socket = node.path("run/agent.sock");
    let mut samples = Samples::default();
    for change in 0..effort.runs.min(CHANGES_MAX) {
        let becomes_ready = change % 2 == 0;
        let (connection, _) = listener.accept().unwrap();
        answer(connection, if becomes_ready { 200 } else { 503 });
        let answered = Instant::now();
        let wanted = Some(usize::from(becomes_ready));
        assert!(wait(|| ready(&socket) == wanted), "{}", node.report());
        samples.push(answered.elapsed());
    }
    samples
}

fn answer(mut connection: TcpStream, code: u16) {
    let mut request = [0; 1024];
    assert!(connection.read(&mut request).unwrap() > 0);
    write!(
        connection,
        "HTTP/1.1 {code} Probed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
}

/// How many pods are ready.
fn ready(socket: &Path) -> Option<usize> {
    let list: Value = serde_json::from_str(&pods(socket)?).ok()?;
    let items = list["items"].as_array()?;
    Some(items.iter().filter(|pod| is_ready(pod)).count())
}

/// A pod whose readiness this program decides.
fn asked(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: asked}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - name: main\n    image: localhost/busybox:latest\n    imagePullPolicy: Never\n    \
         command: [sleep, '864000']\n    readinessProbe:\n      httpGet: {{host: 127.0.0.1, port: {port}}}\n      \
         periodSeconds: 1\n      failureThreshold: 1\n"
    )
}

/// Pods with a server that is asked every ten seconds.
fn probed(count: usize) -> String {
    let one = |n| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: probed-{n}}}\nspec:\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    \
             image: localhost/busybox:latest\n    imagePullPolicy: Never\n    \
             command: [httpd, -f, -p, '8080', -h, /etc]\n    readinessProbe:\n      \
             httpGet: {{path: /passwd, port: 8080}}\n      periodSeconds: 10\n"
        )
    };
    (0..count).map(one).collect()
}
