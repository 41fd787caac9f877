//! A whole pull from a registry on loopback into an empty store, against skopeo with umoci, podman and containerd.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podling_images::{ImageStore, PullOptions, RegistriesConfig};

use crate::disk::Disk;
use crate::measure::{Look, Measured, Turns, part, run};
use crate::support::{self, Registry};
use crate::table::{Budget, Table};
use crate::{Effort, generate};

pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let registry = Registry::start(false);
    let generated = format!("pull {} MiB, 50,000 files", effort.mib);
    let mut images = vec![(generated, generate::layout(effort.mib), "generated")];
    let nginx = generate::images().join("nginx-light");
    if nginx.exists() {
        images.push(("pull nginx".to_owned(), nginx, "nginx"));
    }
    for (what, layout, name) in images {
        let name = format!("{}/bench/{name}:1", registry.address);
        let from = format!("oci:{}:latest", layout.display());
        let to = format!("docker://{name}");
        let words = [
            "--insecure-policy",
            "copy",
            "--dest-tls-verify=false",
            &from,
            &to,
        ];
        support::run("skopeo", &words).expect("skopeo is needed: apt-get install skopeo");
        one(effort, table, &what, &name);
    }
    table.note(
        "podling's pulls end when all is on the disk (syncfs); the others leave that to the kernel",
    );
}

type Tool = (&'static str, fn(Look, &str, &Path) -> Measured);

fn one(effort: Effort, table: &mut Table, what: &str, name: &str) {
    let tools: [Tool; 4] = [
        ("podling", podling),
        ("skopeo+umoci", skopeo_and_umoci),
        ("podman", podman),
        ("ctr", ctr),
    ];
    let mut turns: Vec<Turns> = tools.iter().map(|_| Turns::default()).collect();
    for look in effort.looks() {
        for ((_, tool), turns) in tools.iter().zip(&mut turns) {
            let disk = Disk::new();
            turns.push(&tool(look, name, Path::new(&disk.directory("tool"))));
        }
    }
    let mut peers: Vec<_> = tools.iter().zip(&turns).skip(1).collect();
    peers.sort_by(|(_, a), (_, b)| a.secs().total_cmp(&b.secs()));
    let times: Vec<_> = peers
        .iter()
        .map(|((name, _), turns)| (*name, turns.secs()))
        .collect();
    table.row(what, turns[0].secs(), "s", &times, Budget::Ratio(0.6));
    peers.sort_by(|(_, a), (_, b)| a.peak_mib.total_cmp(&b.peak_mib));
    let memory: Vec<_> = peers
        .iter()
        .map(|((name, _), turns)| (*name, turns.peak_mib))
        .collect();
    let what = format!("{what}, peak memory");
    table.row(&what, turns[0].peak_mib, "MiB", &memory, Budget::Ratio(1.0));
}

fn podling(look: Look, name: &str, dir: &Path) -> Measured {
    run(
        look,
        &mut [part("pull", &[name, dir.to_str().unwrap()])],
        &[],
    )
}

/// `pull NAME DIRECTORY`
pub(crate) fn pull(words: &[String]) {
    // The client wants a provider of cryptography although no TLS is spoken here.
    drop(rustls::crypto::ring::default_provider().install_default());
    let store = ImageStore::open(&Path::new(&words[1]).join("images")).unwrap();
    let (address, _) = words[0].split_once('/').unwrap();
    let options = PullOptions {
        docker_config: Some(Path::new(&words[1]).join("config.json")),
        registries: RegistriesConfig {
            plain_http: [address.to_owned()].into(),
            ..RegistriesConfig::default()
        },
        ..PullOptions::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reference = words[0].parse().unwrap();
    runtime.block_on(store.pull(&reference, &options)).unwrap();
}

fn skopeo_and_umoci(look: Look, name: &str, dir: &Path) -> Measured {
    let layout = format!("{}:latest", dir.join("layout").display());
    let mut skopeo = quiet("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--src-tls-verify=false"]);
    skopeo.args([format!("docker://{name}"), format!("oci:{layout}")]);
    let mut umoci = quiet("umoci");
    umoci
        .args(["unpack", "--image", &layout])
        .arg(dir.join("bundle"));
    run(look, &mut [skopeo, umoci], &[])
}

/// With overlayfs, as usual; in a mount namespace, which also ends what it mounts.
fn podman(look: Look, name: &str, dir: &Path) -> Measured {
    let mut podman = quiet("unshare");
    podman.args([
        "--mount",
        "--propagation",
        "private",
        "podman",
        "--storage-driver=overlay",
    ]);
    for option in ["--root", "--runroot", "--tmpdir"] {
        podman.arg(option).arg(dir.join(&option[2..]));
    }
    podman.args([
        "--cgroup-manager=cgroupfs",
        "pull",
        "--quiet",
        "--tls-verify=false",
        name,
    ]);
    run(look, &mut [podman], &[])
}

/// A containerd of its own, started before the time counts.
fn ctr(look: Look, name: &str, dir: &Path) -> Measured {
    let daemon = Containerd::start(dir);
    let mut ctr = quiet("ctr");
    ctr.arg("--address").arg(&daemon.socket);
    ctr.args(["image", "pull", "--plain-http", name]);
    run(look, &mut [ctr], &[daemon.child.id()])
}

struct Containerd {
    child: Child,
    socket: PathBuf,
}

impl Containerd {
    fn start(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
            path("root"),
            path("state"),
            path("socket"),
            path("opt")
        );
        std::fs::write(path("config.toml"), config).unwrap();
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "containerd",
            "--config",
        ]);
        command.arg(path("config.toml"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let daemon = Self {
            child: command.spawn().unwrap(),
            socket: path("socket"),
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::os::unix::net::UnixStream::connect(&daemon.socket).is_err() {
            assert!(Instant::now() < deadline, "containerd does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stderr(Stdio::null());
    command
}
