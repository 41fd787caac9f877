//! `podling run`: no daemon, everything in the foreground, nothing left.

use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::node::{Node, bin_dir};

fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
        .canonicalize()
        .unwrap()
        .display()
        .to_string()
}

#[test]
fn run_starts_the_examples_with_the_embedded_image_and_ctrl_c_leaves_nothing() {
    let node = Node::new();
    let log = std::fs::File::create(node.path("agent.log")).unwrap();
    let mut run = node.podling_command(&["run", &example("hello.yaml")]);
    run.env_remove("PODLING_RUN_DIR")
        .env("TMPDIR", node.path(""));
    run.stdout(log.try_clone().unwrap()).stderr(log);
    let mut run = run.spawn().unwrap();
    let addresses = node.wait("hello has an address", || {
        let text = std::fs::read_to_string(node.path("agent.log")).unwrap_or_default();
        text.contains("hello")
            .then(|| {
                text.split(|c: char| !(c.is_ascii_digit() || c == '.'))
                    .filter_map(|w| w.parse::<std::net::Ipv4Addr>().ok())
                    .filter(|ip| ip.is_private())
                    .collect::<Vec<_>>()
            })
            .filter(|found| !found.is_empty())
    });
    node.wait("hello answers", || {
        addresses.iter().find_map(|ip| {
            node.http((*ip, 8080).into(), "/healthz")
                .filter(|(code, _)| *code == 200)
        })
    });
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).unwrap();
    assert!(run.wait().unwrap().code().is_some());
    let links = String::from_utf8(
        node.command("ip")
            .args(["-o", "link"])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    assert_eq!(links.lines().count(), 1, "only loopback is left: {links}");
    let tables = node
        .command("nft")
        .args(["list", "tables"])
        .stderr(Stdio::null())
        .output()
        .map(|o| o.stdout);
    assert!(tables.is_err() || tables.unwrap().is_empty());
    assert_eq!(
        node.own_processes()
            .iter()
            .filter(|p| is_podling(**p))
            .count(),
        0
    );
    let mounts = String::from_utf8(
        node.command("cat")
            .arg("/proc/mounts")
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    assert!(!mounts.contains("podling"), "{mounts}");
}

#[test]
fn run_ends_when_all_pods_have_ended_and_says_whether_they_failed() {
    let node = Node::new();
    for (file, code, expected) in [("good.yaml", 0, 0), ("bad.yaml", 3, 1)] {
        let manifest = node.path(file);
        std::fs::write(&manifest, format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: once}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: 'podling.local/demo:latest', args: [exit, '{code}']}}\n")).unwrap();
        let run = node.podling(&["run", manifest.to_str().unwrap()]);
        assert_eq!(run.code, expected, "{}\n{}", run.stdout, run.stderr);
    }
}

fn is_podling(pid: i32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(bin_dir()))
}
