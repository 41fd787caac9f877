//! Addresses, names and ports of pods.

use crate::node::Node;

fn server(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{rest}  containers:\n  - name: main\n    image: localhost/busybox\n    command: [sh, -c, 'mkdir /w; hostname > /w/name; httpd -f -p 8080 -h /w']\n    ports: [{{containerPort: 8080, hostPort: {}}}]\n    readinessProbe: {{httpGet: {{port: 8080, path: /name}}, periodSeconds: 1}}\n",
        if name == "a" { 18080 } else { 18081 }
    )
}

#[test]
fn p08_pods_reach_each_other_and_the_host_reaches_them() {
    let node = Node::start();
    node.load_busybox();
    node.apply("a.yaml", &server("a", "  hostAliases: [{ip: 192.0.2.7, hostnames: [far.example]}]\n  dnsPolicy: None\n  dnsConfig: {nameservers: [192.0.2.53], searches: [one.example], options: [{name: ndots, value: '3'}]}\n"));
    node.apply("b.yaml", &server("b", ""));
    let a = node.wait_ready("a");
    let b = node.wait_ready("b");
    assert_ne!(a["status"]["podIP"], b["status"]["podIP"]);
    assert_eq!(
        node.http(node.pod_address(&a, 8080), "/name")
            .unwrap()
            .1
            .trim(),
        "a"
    );
    let from_b = node.podling(&[
        "exec",
        "b",
        "--",
        "wget",
        "-q",
        "-O",
        "-",
        &format!("http://{}/name", node.pod_address(&a, 8080)),
    ]);
    assert_eq!(from_b.ok().trim(), "a");
    assert_eq!(
        node.http("127.0.0.1:18080".parse().unwrap(), "/name")
            .unwrap()
            .1
            .trim(),
        "a"
    );
    assert_eq!(
        node.http("127.0.0.1:18081".parse().unwrap(), "/name")
            .unwrap()
            .1
            .trim(),
        "b"
    );

    let cat = |file: &str| node.podling(&["exec", "a", "--", "cat", file]).ok();
    let hosts = cat("/etc/hosts");
    assert!(
        hosts.contains("far.example") && hosts.contains(a["status"]["podIP"].as_str().unwrap()),
        "{hosts}"
    );
    let resolv = cat("/etc/resolv.conf");
    assert!(
        resolv.contains("nameserver 192.0.2.53")
            && resolv.contains("search one.example")
            && resolv.contains("ndots:3"),
        "{resolv}"
    );
    assert_eq!(cat("/etc/hostname").trim(), "a");
}

#[test]
fn p08_a_host_network_pod_shares_the_hosts_addresses() {
    let node = Node::start();
    node.load_busybox();
    node.apply("h.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: h}\nspec:\n  hostNetwork: true\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: localhost/busybox, command: [httpd, -f, -p, '18090', -h, /etc]}\n");
    let pod = node.wait_ready("h");
    assert_eq!(pod["status"]["podIP"], pod["status"]["hostIP"]);
    node.wait("it answers on the host", || {
        node.http("127.0.0.1:18090".parse().unwrap(), "/passwd")
    });
}

#[test]
fn p08_an_address_is_kept_over_agent_restarts_and_two_pods_on_one_host_port_are_told() {
    let mut node = Node::start();
    node.load_busybox();
    node.apply("a.yaml", &server("a", ""));
    let before = node.wait_ready("a");
    node.kill_agent();
    node.start_agent();
    let after = node.wait_ready("a");
    assert_eq!(before["status"]["podIP"], after["status"]["podIP"]);
    node.apply("c.yaml", &server("a", "").replace("name: a}", "name: c}"));
    node.wait("the host port's owner is named", || {
        let why = node.podling(&["why", "c"]).stdout;
        (why.contains("18080") && why.contains("default/a")).then_some(())
    });
}
