//! A pod's supervisor as the agent sees it: a process to start, and a socket to talk to.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use oci_spec::runtime::{LinuxCpu, LinuxResources};
use podling_runtime::cgroup::{self, Cgroup, Layout};
use podling_runtime::container::protect;
use podling_runtime::pod::client::{Client, ClientError};
use podling_runtime::pod::protocol::{Reply, Request};
use podling_systemd::{Property, PropertyValue, Scope, Systemd};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

/// Where a new supervisor writes what went wrong.
pub(super) const LOG_FILE: &str = "supervisor.log";
/// A supervisor that has not opened its socket by then is taken for dead; it needs some milliseconds.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// Ends all pods at the machine's shutdown; systemd must not stop their scopes before it has.
const PODS_UNIT: &str = "podling-pods.service";
/// The slice of all pods' scopes.
const SLICE: &str = "podling.slice";

/// Why a supervisor cannot be started or talked to.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The program cannot be kept from containers.
    #[error("open the pod supervisor {program}")]
    Program {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: Box<podling_runtime::container::Error>,
    },
    /// The program cannot be run.
    #[error("start the pod supervisor {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread that was to run it is gone.
    #[error("start the pod supervisor")]
    Thread(#[source] tokio::task::JoinError),
    /// Its files cannot be made.
    #[error("prepare {path} for the pod supervisor")]
    Prepare {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended before it opened its socket.
    #[error("the pod supervisor did not start: {last_words}")]
    Died {
        /// The end of its log.
        last_words: String,
    },
    /// It has no scope.
    #[error("ask systemd for the pod's scope")]
    Scope(#[source] podling_systemd::Error),
    /// It has no cgroup.
    #[error("put the pod supervisor into its cgroup")]
    Cgroup(#[source] cgroup::Error),
    /// The socket.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The event loop does not take the socket.
    #[error("watch the pod supervisor's socket")]
    Watch(#[source] io::Error),
}

/// A connection to a running supervisor that has been subscribed to.
#[derive(Debug)]
pub struct Link {
    client: AsyncFd<Client>,
}

impl Link {
    /// Connects to the supervisor of a pod directory and subscribes to its snapshots.
    ///
    /// # Errors
    /// When no supervisor answers there.
    pub fn connect(dir: &Path) -> Result<Self, SupervisorError> {
        let client = Client::connect(dir)?;
        client.send(&Request::Subscribe)?;
        // The successor of this function is unsafe, for types that change their descriptor: a client never does.
        #[expect(deprecated, reason = "the client owns one socket for life")]
        let client =
            AsyncFd::with_interest(client, Interest::READABLE).map_err(SupervisorError::Watch)?;
        Ok(Self { client })
    }

    /// Sends a request; its reply comes with the snapshots.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub fn send(&self, request: &Request) -> Result<(), SupervisorError> {
        Ok(self.client.get_ref().send(request)?)
    }

    /// Waits for the next reply or snapshot. Cancel-safe: a packet is taken whole or not at all.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn next(&self) -> Result<Reply, SupervisorError> {
        loop {
            let mut ready = self
                .client
                .readable()
                .await
                .map_err(SupervisorError::Watch)?;
            match ready.get_inner().try_recv()? {
                Some((reply, _)) => return Ok(reply),
                None => ready.clear_ready(),
            }
        }
    }
}

/// The supervisor's program, opened once: all pods of an agent have the version that the agent knows.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    /// Started from a read-only clone, it need not execute itself again to keep containers from its file.
    clone: OwnedFd,
}

impl Program {
    /// Opens the program.
    ///
    /// # Errors
    /// When it is not there, or the kernel cannot clone its mount.
    pub fn open(path: PathBuf) -> Result<Self, SupervisorError> {
        match protect::read_only_clone(&path) {
            Ok(clone) => Ok(Self { path, clone }),
            Err(source) => Err(SupervisorError::Program {
                program: path,
                source: Box::new(source),
            }),
        }
    }
}

/// A supervisor that has been started and waits for the word to begin. Dropped before, it ends.
#[derive(Debug)]
pub struct Waiting {
    child: tokio::process::Child,
    dir: PathBuf,
}

/// Starts a supervisor. It does nothing before [`Waiting::begin`], so that its cgroup and plan can be made meanwhile.
/// Blocks until the program is executed.
///
/// # Errors
/// When the program or its log cannot be opened.
pub fn start(program: &Program, dir: &Path) -> Result<Waiting, SupervisorError> {
    let log_path = dir.join(LOG_FILE);
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|source| SupervisorError::Prepare {
            path: log_path,
            source,
        })?;
    // Nothing here that would make the standard library fork: this process has much memory to copy.
    let child =
        tokio::process::Command::new(format!("/proc/self/fd/{}", program.clone.as_raw_fd()))
            .arg0(&program.path)
            .arg(dir)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|source| SupervisorError::Start {
                program: program.path.clone(),
                source,
            })?;
    Ok(Waiting {
        child,
        dir: dir.to_owned(),
    })
}

impl Waiting {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Lets it begin, and waits until it can be talked to.
    ///
    /// # Errors
    /// When it ends instead.
    pub async fn begin(mut self) -> Result<Link, SupervisorError> {
        if let Some(mut stdin) = self.child.stdin.take()
            && let Err(error) = stdin.write_all(b"go\n").await
        {
            tracing::debug!(dir = %self.dir.display(), %error, "a supervisor ended at once");
        }
        if tokio::time::timeout(START_DEADLINE, self.listens_or_ended())
            .await
            .is_err()
        {
            // Left alone it could come to life after another was started for the pod.
            self.child.start_kill().unwrap_or_default();
        }
        match Link::connect(&self.dir) {
            Ok(link) => {
                // Reaped when it ends; it outlives the agent otherwise.
                tokio::spawn(async move { self.child.wait().await.map(drop) });
                Ok(link)
            }
            Err(SupervisorError::Client(error)) if error.is_gone() => Err(SupervisorError::Died {
                last_words: last_words(&self.dir),
            }),
            Err(error) => Err(error),
        }
    }

    /// It closes its standard output when it listens at its socket, and at its end.
    async fn listens_or_ended(&mut self) {
        if let Some(mut stdout) = self.child.stdout.take() {
            let mut nothing = [0; 64];
            while matches!(stdout.read(&mut nothing).await, Ok(1..)) {}
        }
    }
}

/// The last line of a supervisor's log.
fn last_words(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join(LOG_FILE)).unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing").to_owned()
}

/// Where a supervisor belongs: the cgroup path for the plan, and whether that is a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Below the root of each hierarchy.
    pub path: PathBuf,
    /// A delegated scope.
    pub scope: bool,
}

/// The name of a pod's scope.
#[must_use]
pub fn scope_name(uid: &str) -> String {
    format!("podling-pod{uid}.scope")
}

/// Where a pod's scope is in each hierarchy.
#[must_use]
pub fn scope_cgroup(uid: &str) -> PathBuf {
    Path::new("/").join(SLICE).join(scope_name(uid))
}

/// What systemd is told of a pod's scope.
#[derive(Debug, Clone)]
pub struct ScopeNeeds {
    /// For `systemctl status`.
    pub description: String,
    /// The pod's grace period.
    pub grace: Duration,
    /// The pod's share of the CPU beside other scopes, 1 to 10000. Below the scope only its own cgroups compete, so
    /// the pod's weight there would have no effect on other pods.
    pub cpu_weight: u64,
}

/// The weight of a pod's scope.
#[must_use]
pub fn cpu_weight(pod: &LinuxResources) -> u64 {
    let shares = pod.cpu().as_ref().and_then(LinuxCpu::shares);
    cgroup::cpu_weight(shares.unwrap_or(0))
}

/// How much of the processors a scope gets beside others of its slice (systemd.resource-control(5), CPUWeight=).
pub fn cpu_weight_property(weight: u64) -> Property {
    Property::new("CPUWeight", PropertyValue::U64(weight))
}

/// Puts a waiting supervisor into a scope of its pod: a new one, or the one whose containers a dead supervisor left.
///
/// # Errors
/// When systemd refuses.
pub async fn place_in_scope(
    systemd: &Systemd,
    layout: &Layout,
    uid: &str,
    needs: &ScopeNeeds,
    pid: u32,
) -> Result<Place, SupervisorError> {
    let name = scope_name(uid);
    if let Some(path) = systemd
        .scope_path(&name)
        .await
        .map_err(SupervisorError::Scope)?
    {
        let own =
            Cgroup::create(layout, &path.0.join("supervisor")).map_err(SupervisorError::Cgroup)?;
        let pid = i32::try_from(pid).unwrap_or(i32::MAX);
        own.add(pid).map_err(SupervisorError::Cgroup)?;
        return Ok(Place {
            path: path.0,
            scope: true,
        });
    }
    let path = systemd
        .start_scope(&Scope {
            name: &name,
            slice: SLICE,
            description: &needs.description,
            pids: &[pid],
            stop_timeout: needs.grace + Duration::from_secs(10),
            before: &[PODS_UNIT],
            properties: &[cpu_weight_property(needs.cpu_weight)],
        })
        .await
        .map_err(SupervisorError::Scope)?;
    Ok(Place {
        path: path.0,
        scope: true,
    })
}
