//! A machine of a test's own: a thread in new network and mount namespaces, with a runtime on it.
//!
//! Threads and processes that it starts are in the same namespaces, so nothing here touches the real machine. When
//! the thread ends, so do the namespaces and all that is in them.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use podling_agent::network::NetworkConfig;

/// How long an answer may take; one that should not come costs a test this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// As the network namespace to call from: the machine itself.
pub(crate) const HOST: Option<&Path> = None;

/// A machine of a test's own.
pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
}

/// What is at the other end of the machine's uplink.
pub(crate) struct Outside {
    /// Its network namespace.
    pub(crate) netns: PathBuf,
    /// Its address.
    pub(crate) address: IpAddr,
    /// The machine's address on the link.
    pub(crate) host_address: IpAddr,
}

/// Runs a test on a machine of its own.
pub(crate) fn inside<F: Future<Output = ()>>(test: impl FnOnce(Sandbox) -> F + Send + 'static) {
    let ended = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        ip("link set lo up");
        let sandbox = Sandbox {
            dir: tempfile::tempdir().unwrap(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(sandbox));
    })
    .join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

impl Sandbox {
    pub(crate) fn config(&self) -> NetworkConfig {
        self.config_of("first")
    }

    /// Of a second node on the same machine.
    pub(crate) fn second_config(&self) -> NetworkConfig {
        self.config_of("second")
    }

    fn config_of(&self, node: &str) -> NetworkConfig {
        let (data_dir, run_dir) = (
            self.dir.path().join(node).join("data"),
            self.dir.path().join(node).join("run"),
        );
        NetworkConfig {
            bridge: None,
            pod_cidr: None,
            data_dir,
            run_dir,
        }
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.config().run_dir
    }

    /// Connects the machine to an outside, and makes that its default route.
    pub(crate) fn outside(&self) -> Outside {
        let (ready, thread_id) = std::sync::mpsc::channel();
        // It keeps the namespace until the test process ends.
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            ready.send(nix::unistd::gettid()).unwrap();
            thread::park();
        });
        let (process, thread) = (std::process::id(), thread_id.recv().unwrap());
        // Not by /proc/self, since `ip` opens it too.
        let netns = PathBuf::from(format!("/proc/{process}/task/{thread}/ns/net"));
        ip(&format!(
            "link add up0 type veth peer name out0 netns {}",
            netns.display()
        ));
        ip("address add 198.18.0.1/24 dev up0");
        ip("link set up0 up");
        in_netns(Some(&netns), || {
            ip("address add 198.18.0.2/24 dev out0");
            ip("link set out0 up");
        });
        ip("route add default via 198.18.0.2");
        let address = |last| IpAddr::V4(Ipv4Addr::new(198, 18, 0, last));
        Outside {
            netns,
            address: address(2),
            host_address: address(1),
        }
    }

    /// The names of all interfaces, sorted.
    pub(crate) fn links(&self) -> Vec<String> {
        let mut names: Vec<String> = output("ip", "-o link")
            .lines()
            .filter_map(|line| {
                line.split(": ")
                    .nth(1)?
                    .split('@')
                    .next()
                    .map(str::to_string)
            })
            // Devices that every new network namespace of some kernels has.
            .filter(|name| {
                !["tunl0", "sit0", "gre0", "erspan0", "gretap0", "ip6tnl0"].contains(&name.as_str())
            })
            .collect();
        names.sort();
        names
    }

    /// The files that network namespaces are pinned to, sorted.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.run_dir().join("netns")) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The mount points.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        table
            .lines()
            .filter_map(|line| line.split(' ').nth(4).map(str::to_string))
            .collect()
    }
}

/// Runs something in a network namespace, on a thread for that; None: where the caller is.
pub(crate) fn in_netns<T: Send + 'static>(
    netns: Option<&Path>,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let netns = netns.map(|path| fs::File::open(path).unwrap());
    let worker = thread::spawn(move || {
        if let Some(netns) = netns {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
        }
        work()
    });
    worker.join().unwrap()
}

/// Something that listens for as long as this lives.
pub(crate) struct Server {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    worker: Option<thread::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            worker.join().unwrap();
        }
    }
}

fn serve(mut step: impl FnMut() -> io::Result<()> + Send + 'static) -> Server {
    let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
    let stopped = stop.clone();
    let worker = thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            match step() {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    thread::sleep(Duration::from_millis(2));
                }
                // A caller that went away is its own business.
                _ => {}
            }
        }
    });
    Server {
        stop,
        worker: Some(worker),
    }
}

/// Answers each caller with the caller's address, on all addresses of a network namespace.
pub(crate) fn serve_tcp(netns: Option<&Path>, port: u16) -> Server {
    serve_tcp_on(netns, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
}

/// The same on one address.
pub(crate) fn serve_tcp_on(netns: Option<&Path>, address: SocketAddr) -> Server {
    let listener = in_netns(netns, move || TcpListener::bind(address).unwrap());
    listener.set_nonblocking(true).unwrap();
    serve(move || {
        let (mut caller, peer) = listener.accept()?;
        caller.write_all(peer.ip().to_string().as_bytes())
    })
}

/// The same for datagrams.
pub(crate) fn serve_udp(netns: Option<&Path>, port: u16) -> Server {
    let socket = in_netns(netns, move || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()
    });
    socket.set_nonblocking(true).unwrap();
    serve(move || {
        let mut question = [0; 16];
        let (_, peer) = socket.recv_from(&mut question)?;
        socket
            .send_to(peer.ip().to_string().as_bytes(), peer)
            .map(drop)
    })
}

/// Calls from a network namespace, and returns the address that the callee sees.
pub(crate) fn ask_tcp<P: AsRef<Path>>(netns: Option<P>, to: SocketAddr) -> io::Result<IpAddr> {
    in_netns(netns.as_ref().map(AsRef::as_ref), move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        answer
            .parse()
            .map_err(|_| io::Error::other(format!("the answer is {answer:?}")))
    })
}

/// The same by a datagram.
pub(crate) fn ask_udp<P: AsRef<Path>>(netns: Option<P>, to: SocketAddr) -> io::Result<IpAddr> {
    UdpSender::bind(netns.as_ref().map(AsRef::as_ref), to).ask()
}

/// One that sends all its datagrams from the same port.
pub(crate) struct UdpSender(UdpSocket);

impl UdpSender {
    pub(crate) fn new(netns: &Path, to: SocketAddr) -> Self {
        Self::bind(Some(netns), to)
    }

    fn bind(netns: Option<&Path>, to: SocketAddr) -> Self {
        let socket = in_netns(netns, move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.connect(to).unwrap();
            socket
        });
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    pub(crate) fn ask(&self) -> io::Result<IpAddr> {
        self.0.send(b"?")?;
        let mut answer = [0; 64];
        let length = self.0.recv(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        answer
            .parse()
            .map_err(|_| io::Error::other(format!("the answer is {answer:?}")))
    }
}

/// Sets whether bridged packets pass the packet filter. False: this kernel cannot do that (and so has only the case 0).
pub(crate) fn set_bridge_filter(value: &str) -> bool {
    fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", value).is_ok() || value == "0"
}

/// Runs `ip` where the calling thread is.
pub(crate) fn ip(arguments: &str) {
    output("ip", arguments);
}

/// Runs `nft` where the calling thread is, with one command.
pub(crate) fn nft(command: &str) {
    let done = Command::new("nft").arg(command).output().unwrap();
    assert!(
        done.status.success(),
        "nft {command}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Runs a command and returns what it prints.
pub(crate) fn output(program: &str, arguments: &str) -> String {
    let done = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).unwrap()
}
