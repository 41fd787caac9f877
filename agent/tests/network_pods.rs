//! Pods on a real network: each test in network and mount namespaces of its own, with a second network namespace as
//! the outside.
#![cfg(feature = "privileged-tests")]
// A test says what went wrong by failing.
#![allow(clippy::unwrap_used)]

#[path = "network/sandbox.rs"]
mod sandbox;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use podling_agent::network::{AttachSpec, Error, HostPort, Network, Protocol};

use sandbox::{Sandbox, in_netns, inside};

const WEB: u16 = 8080;

fn plain(name: &str) -> AttachSpec {
    AttachSpec {
        pod: format!("default/{name}"),
        host_ports: Vec::new(),
    }
}

fn with_port(name: &str, host_port: u16, protocol: Protocol) -> AttachSpec {
    let port = HostPort {
        host_ip: None,
        host_port,
        container_port: WEB,
        protocol,
    };
    AttachSpec {
        pod: format!("default/{name}"),
        host_ports: vec![port],
    }
}

async fn open(sandbox: &Sandbox) -> Network {
    Network::open(sandbox.config()).await.unwrap()
}

#[test]
fn point_8_pods_reach_each_other_the_host_and_themselves() {
    inside(|sandbox| async move {
        let network = open(&sandbox).await;
        let a = network.attach("a", plain("a")).await.unwrap();
        let b = network.attach("b", plain("b")).await.unwrap();
        assert_ne!(a.addresses, b.addresses);

        let web = sandbox::serve_tcp(Some(&a.netns), WEB);
        let of_a = SocketAddr::new(a.addresses[0], WEB);
        // From the other pod, with its own address as the source; from itself; through its loopback; from the host.
        assert_eq!(
            sandbox::ask_tcp(Some(&b.netns), of_a).unwrap(),
            b.addresses[0]
        );
        assert_eq!(
            sandbox::ask_tcp(Some(&a.netns), of_a).unwrap(),
            a.addresses[0]
        );
        let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), WEB);
        assert_eq!(sandbox::ask_tcp(Some(&a.netns), local).unwrap(), local.ip());
        assert_eq!(sandbox::ask_tcp(sandbox::HOST, of_a).unwrap(), a.gateway);

        let host = sandbox::serve_tcp(None, WEB);
        let of_host = SocketAddr::new(a.gateway, WEB);
        assert_eq!(
            sandbox::ask_tcp(Some(&b.netns), of_host).unwrap(),
            b.addresses[0]
        );
        drop((web, host));
    });
}

#[test]
fn point_8_the_outside_sees_the_hosts_address_only() {
    inside(|sandbox| async move {
        let outside = sandbox.outside();
        let network = open(&sandbox).await;
        let pod = network.attach("a", plain("a")).await.unwrap();
        let server = sandbox::serve_tcp(Some(&outside.netns), 80);
        let seen =
            sandbox::ask_tcp(Some(&pod.netns), SocketAddr::new(outside.address, 80)).unwrap();
        assert_eq!(seen, outside.host_address);
        let udp = sandbox::serve_udp(Some(&outside.netns), 53);
        let seen =
            sandbox::ask_udp(Some(&pod.netns), SocketAddr::new(outside.address, 53)).unwrap();
        assert_eq!(seen, outside.host_address);
        assert_eq!(podling_agent::network::host_address(), outside.host_address);
        drop((server, udp));
    });
}

#[test]
fn point_8_host_ports_lead_to_the_pod_from_everywhere() {
    // Bridged packets pass the packet filter by themselves, as where Docker runs, or they do not.
    for bridged in ["1", "0"] {
        inside(move |sandbox| async move {
            if sandbox::set_bridge_filter(bridged) {
                host_ports_lead_to_the_pod(&sandbox).await;
            }
        });
    }
}

async fn host_ports_lead_to_the_pod(sandbox: &Sandbox) {
    let outside = sandbox.outside();
    let network = open(sandbox).await;
    let tcp = network
        .attach("a", with_port("a", 80, Protocol::Tcp))
        .await
        .unwrap();
    let udp = network
        .attach("b", with_port("b", 5353, Protocol::Udp))
        .await
        .unwrap();
    let servers = (
        sandbox::serve_tcp(Some(&tcp.netns), WEB),
        sandbox::serve_udp(Some(&udp.netns), WEB),
    );

    let host = outside.host_address;
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for (from, netns, to) in [
        ("the outside", Some(&outside.netns), host),
        ("the host's loopback", None, local),
        ("the host's own address", None, host),
        ("the host by the bridge's address", None, tcp.gateway),
        ("another pod", Some(&udp.netns), host),
        (
            "another pod by the bridge's address",
            Some(&udp.netns),
            tcp.gateway,
        ),
        ("the pod itself", Some(&tcp.netns), host),
    ] {
        sandbox::ask_tcp(netns, SocketAddr::new(to, 80))
            .unwrap_or_else(|e| panic!("TCP from {from}: {e}"));
    }
    for (from, netns, to) in [
        ("the outside", Some(&outside.netns), host),
        ("the host's loopback", None, local),
        ("the host's own address", None, host),
        ("another pod", Some(&tcp.netns), host),
        ("the pod itself", Some(&udp.netns), host),
    ] {
        sandbox::ask_udp(netns, SocketAddr::new(to, 5353))
            .unwrap_or_else(|e| panic!("UDP from {from}: {e}"));
    }
    // The caller's address reaches the pod where nothing needs to hide it.
    let seen = sandbox::ask_tcp(Some(&outside.netns), SocketAddr::new(host, 80)).unwrap();
    assert_eq!(seen, outside.address);
    // The protocol counts.
    assert!(sandbox::ask_tcp(Some(&outside.netns), SocketAddr::new(host, 5353)).is_err());
    drop(servers);

    network.detach("a").await.unwrap();
    assert!(sandbox::ask_tcp(Some(&outside.netns), SocketAddr::new(host, 80)).is_err());
}

#[test]
fn point_8_a_host_port_can_be_bound_to_one_address_of_the_host() {
    inside(|sandbox| async move {
        let outside = sandbox.outside();
        let network = open(&sandbox).await;
        let mut spec = with_port("a", 80, Protocol::Tcp);
        spec.host_ports[0].host_ip = Some(Ipv4Addr::LOCALHOST);
        let pod = network.attach("a", spec).await.unwrap();
        let server = sandbox::serve_tcp(Some(&pod.netns), WEB);
        sandbox::ask_tcp(
            sandbox::HOST,
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 80),
        )
        .unwrap();
        assert!(
            sandbox::ask_tcp(sandbox::HOST, SocketAddr::new(outside.host_address, 80)).is_err()
        );
        assert!(
            sandbox::ask_tcp(
                Some(&outside.netns),
                SocketAddr::new(outside.host_address, 80)
            )
            .is_err()
        );
        drop(server);

        let mut spec = with_port("b", 81, Protocol::Tcp);
        spec.host_ports[0].host_ip = Some(Ipv4Addr::new(198, 51, 100, 7));
        let error = network.attach("b", spec).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "hostIP 198.51.100.7 is not an address of this machine"
        );
    });
}

#[test]
fn a_udp_sender_reaches_the_next_pod_on_a_host_port() {
    inside(|sandbox| async move {
        let outside = sandbox.outside();
        let network = open(&sandbox).await;
        let to = SocketAddr::new(outside.host_address, 5353);
        // One that sends from the same port all the time, as name servers and media do: one flow for the kernel.
        let sender = sandbox::UdpSender::new(&outside.netns, to);
        assert!(sender.ask().is_err(), "nobody is there yet");
        for (uid, before) in [("a", None), ("b", Some("a"))] {
            if let Some(before) = before {
                network.detach(before).await.unwrap();
            }
            let pod = network
                .attach(uid, with_port(uid, 5353, Protocol::Udp))
                .await
                .unwrap();
            let server = sandbox::serve_udp(Some(&pod.netns), WEB);
            assert_eq!(sender.ask().unwrap(), outside.address, "pod {uid}");
            drop(server);
        }
    });
}

#[test]
fn a_pod_cannot_reach_what_listens_on_the_hosts_loopback() {
    inside(|sandbox| async move {
        let network = open(&sandbox).await;
        let pod = network.attach("a", plain("a")).await.unwrap();
        let secret = sandbox::serve_tcp_on(None, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9999));
        // What a pod with CAP_NET_ADMIN would try (CVE-2020-8558).
        let gateway = pod.gateway.to_string();
        in_netns(Some(&pod.netns), move || {
            sandbox::ip("address del 127.0.0.1/8 dev lo");
            sandbox::ip(&format!("route add 127.0.0.0/8 via {gateway}"));
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
        });
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9999);
        assert!(sandbox::ask_tcp(Some(&pod.netns), to).is_err());
        // It is the guard that keeps it out: without it the attack works.
        sandbox::nft("flush chain ip podling loopback_guard");
        assert_eq!(
            sandbox::ask_tcp(Some(&pod.netns), to).unwrap(),
            pod.addresses[0]
        );
        drop(secret);
    });
}

#[test]
fn a_host_port_is_given_once_and_not_taken_from_other_programs() {
    inside(|sandbox| async move {
        let network = open(&sandbox).await;
        network
            .attach("a", with_port("a", 80, Protocol::Tcp))
            .await
            .unwrap();
        let error = network
            .attach("b", with_port("b", 80, Protocol::Tcp))
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "host port 80/TCP is taken by pod default/a"
        );
        network
            .attach("b", with_port("b", 80, Protocol::Udp))
            .await
            .unwrap();

        let sshd = std::net::TcpListener::bind("0.0.0.0:22").unwrap();
        let error = network
            .attach("c", with_port("c", 22, Protocol::Tcp))
            .await
            .unwrap_err();
        assert!(
            matches!(error, Error::HostPortInUse { port: 22, .. }),
            "{error}"
        );
        drop(sshd);
        network
            .attach("c", with_port("c", 22, Protocol::Tcp))
            .await
            .unwrap();
        assert!(
            std::net::TcpListener::bind("0.0.0.0:22").is_err(),
            "the port must be kept"
        );

        network.detach("a").await.unwrap();
        network
            .attach("d", with_port("d", 80, Protocol::Tcp))
            .await
            .unwrap();
    });
}

#[test]
fn point_11_pods_keep_their_network_while_no_agent_runs() {
    inside(|sandbox| async move {
        let outside = sandbox.outside();
        let network = open(&sandbox).await;
        let pod = network
            .attach("a", with_port("a", 80, Protocol::Tcp))
            .await
            .unwrap();
        network.attach("gone", plain("gone")).await.unwrap();
        let server = sandbox::serve_tcp(Some(&pod.netns), WEB);
        // As a SIGKILL does: nothing is cleaned up.
        drop(network);
        let to = SocketAddr::new(outside.host_address, 80);
        sandbox::ask_tcp(Some(&outside.netns), to).unwrap();

        let network = open(&sandbox).await;
        sandbox::ask_tcp(Some(&outside.netns), to).unwrap();
        assert_eq!(
            network
                .attach("a", with_port("a", 80, Protocol::Tcp))
                .await
                .unwrap(),
            pod
        );
        network
            .retain(&HashSet::from(["a".to_string()]))
            .await
            .unwrap();
        sandbox::ask_tcp(Some(&outside.netns), to).unwrap();
        assert_eq!(sandbox.namespaces(), ["a"]);
        let links = sandbox.links();
        assert_eq!(
            links.iter().filter(|name| name.starts_with("pod0")).count(),
            1,
            "{links:?}"
        );

        // The address of the pod that went comes again only later.
        let next = network.attach("next", plain("next")).await.unwrap();
        assert_eq!(next.addresses, ["10.214.0.4".parse::<IpAddr>().unwrap()]);
        drop(server);
    });
}

#[test]
fn a_pod_whose_link_was_removed_gets_it_back_in_the_same_namespace() {
    inside(|sandbox| async move {
        let network = open(&sandbox).await;
        let pod = network.attach("a", plain("a")).await.unwrap();
        let server = sandbox::serve_tcp(Some(&pod.netns), WEB);
        let to = SocketAddr::new(pod.addresses[0], WEB);
        sandbox::ask_tcp(sandbox::HOST, to).unwrap();
        sandbox::ip("link del pod0ad60002");
        assert_eq!(network.attach("a", plain("a")).await.unwrap(), pod);
        sandbox::ask_tcp(sandbox::HOST, to).unwrap();

        // The same for a bridge that somebody removed, which the next start of the agent mends.
        drop(network);
        sandbox::ip("link del podling0");
        let network = open(&sandbox).await;
        assert_eq!(network.attach("a", plain("a")).await.unwrap(), pod);
        sandbox::ask_tcp(sandbox::HOST, to).unwrap();
        drop(server);
    });
}

#[test]
fn point_10_close_leaves_nothing_behind() {
    inside(|sandbox| async move {
        let before = (sandbox.links(), sandbox.mounts());
        let network = open(&sandbox).await;
        for n in 0..5 {
            let uid = format!("u{n}");
            network
                .attach(&uid, with_port(&uid, 8000 + n, Protocol::Tcp))
                .await
                .unwrap();
        }
        network.detach("u3").await.unwrap();
        network.detach("u3").await.unwrap();
        network.close().await.unwrap();
        network.close().await.unwrap();
        assert_eq!((sandbox.links(), sandbox.mounts()), before);
        assert_eq!(sandbox::output("nft", "list ruleset"), "");
        assert!(sandbox.namespaces().is_empty());
        assert_eq!(sandbox::output("ip", "route"), "");
    });
}

#[test]
fn a_hundred_pods_at_once_get_a_hundred_addresses() {
    inside(|sandbox| async move {
        let network = open(&sandbox).await;
        let attach = |n: u16| {
            let network = network.clone();
            async move {
                let uid = format!("u{n}");
                network
                    .attach(&uid, with_port(&uid, 10_000 + n, Protocol::Tcp))
                    .await
            }
        };
        let pods = futures_util::future::try_join_all((0..100).map(attach))
            .await
            .unwrap();
        let addresses: HashSet<IpAddr> = pods.iter().map(|pod| pod.addresses[0]).collect();
        assert_eq!(addresses.len(), 100);
        let last = &pods[99];
        let server = sandbox::serve_tcp(Some(&last.netns), WEB);
        sandbox::ask_tcp(
            Some(&pods[0].netns),
            SocketAddr::new(last.addresses[0], WEB),
        )
        .unwrap();
        sandbox::ask_tcp(
            sandbox::HOST,
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10_099),
        )
        .unwrap();
        drop(server);
        network.close().await.unwrap();
    });
}

#[test]
fn a_pod_cidr_that_overlaps_a_route_is_refused_and_the_default_moves_on() {
    inside(|sandbox| async move {
        sandbox.outside();
        sandbox::ip("route add 10.214.7.0/24 dev up0");
        let mut config = sandbox.config();
        config.pod_cidr = Some("10.214.0.0/16".to_string());
        let error = Network::open(config).await.unwrap_err().to_string();
        assert!(
            error.contains("10.214.7.0/24")
                && error.contains("up0")
                && error.contains("--pod-cidr"),
            "{error}"
        );
        let network = open(&sandbox).await;
        assert_eq!(network.pod_cidr(), "10.215.0.0/16");
        network.close().await.unwrap();
    });
}

#[test]
fn two_nodes_on_one_machine_do_not_disturb_each_other() {
    inside(|sandbox| async move {
        let first = open(&sandbox).await;
        let second = Network::open(sandbox.second_config()).await.unwrap();
        assert_eq!(
            (first.bridge(), first.pod_cidr().as_str()),
            ("podling0", "10.214.0.0/16")
        );
        assert_eq!(
            (second.bridge(), second.pod_cidr().as_str()),
            ("podling1", "10.215.0.0/16")
        );
        let a = first
            .attach("a", with_port("a", 80, Protocol::Tcp))
            .await
            .unwrap();
        let b = second
            .attach("b", with_port("b", 81, Protocol::Tcp))
            .await
            .unwrap();
        let servers = (
            sandbox::serve_tcp(Some(&a.netns), WEB),
            sandbox::serve_tcp(Some(&b.netns), WEB),
        );
        let local = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        sandbox::ask_tcp(sandbox::HOST, local(80)).unwrap();
        sandbox::ask_tcp(sandbox::HOST, local(81)).unwrap();

        let mut config = sandbox.second_config();
        config.bridge = Some("podling0".to_string());
        let error = Network::open(config).await.unwrap_err().to_string();
        assert!(
            error.contains("podling0") && error.contains("belongs to the node"),
            "{error}"
        );

        first.close().await.unwrap();
        sandbox::ask_tcp(sandbox::HOST, local(81)).unwrap();
        second.close().await.unwrap();
        assert_eq!(sandbox.links(), ["lo"]);
        drop(servers);
    });
}

#[test]
fn a_firewall_that_drops_forwarded_packets_is_pointed_out() {
    inside(|sandbox| async move {
        sandbox::nft("add table inet wall");
        sandbox::nft(
            "add chain inet wall fence { type filter hook forward priority 0; policy drop; }",
        );
        let network = open(&sandbox).await;
        let warnings = network.warnings().join("\n");
        assert!(
            warnings.contains("wall fence") && warnings.contains("podling0"),
            "{warnings}"
        );
        // And the table of another is never touched.
        network.close().await.unwrap();
        assert!(sandbox::output("nft", "list ruleset").contains("policy drop"));
    });
}

#[test]
fn an_interrupted_attach_leaves_nothing_that_stays() {
    inside(|sandbox| async move {
        let network = open(&sandbox).await;
        // A file that is no namespace yet: the agent died between making the file and the mount.
        std::fs::write(sandbox.run_dir().join("netns/torn"), "").unwrap();
        // A link that no lease explains.
        sandbox::ip("link add pod0ad6ffff type veth peer name stray");
        sandbox::ip("link set pod0ad6ffff master podling0");
        network.retain(&HashSet::new()).await.unwrap();
        assert!(sandbox.namespaces().is_empty());
        assert_eq!(sandbox.links(), ["lo", "podling0"]);

        std::fs::write(sandbox.run_dir().join("netns/torn"), "").unwrap();
        let pod = network.attach("torn", plain("torn")).await.unwrap();
        let server = sandbox::serve_tcp(Some(&pod.netns), WEB);
        sandbox::ask_tcp(sandbox::HOST, SocketAddr::new(pod.addresses[0], WEB)).unwrap();
        drop(server);
    });
}
