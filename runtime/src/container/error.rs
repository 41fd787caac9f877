//! What can go wrong with a container, and how a failure in the child travels to the parent.
//!
//! The child sends one packet: the step's number, errno, and what the step worked on. The parent makes an
//! [`Error::Setup`] of it.

use std::io;
use std::path::PathBuf;

/// Why a container could not be created, started or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec asks for something that Podling does not do. Nothing was created.
    #[error("{field}: {reason}")]
    Unsupported {
        /// The spec's field, as `linux.intelRdt`.
        field: String,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The spec is wrong. Nothing was created.
    #[error("{field}: {reason}")]
    Invalid {
        /// The spec's field, as `process.cwd`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A namespace to join could not be opened.
    #[error("cannot open the {kind} namespace {}", path.display())]
    OpenNamespace {
        /// As in the spec: `network`, `pid`, …
        kind: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused an id map.
    #[error("cannot write {text:?} to the new user namespace's {name}")]
    WriteIdMap {
        /// `uid_map`, `gid_map` or `setgroups`.
        name: &'static str,
        /// What was to be written.
        text: String,
        /// Why.
        source: io::Error,
    },
    /// A setuid helper refused an id map.
    #[error("{program} cannot map the ids of the new user namespace: {reason}")]
    IdMapHelper {
        /// `newuidmap` or `newgidmap`.
        program: &'static str,
        /// What it says.
        reason: String,
    },
    /// A network device could not be moved into the container. Those that were are back.
    #[error("cannot move the network device {device} into the container (linux.netDevices)")]
    NetDevice {
        /// Its name on the host.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// Pipes could not be given to the container's user.
    #[error("cannot give the standard streams to the container's user")]
    GivePipes(#[source] io::Error),
    /// The pid namespace could not be entered.
    #[error("cannot enter the pid namespace")]
    EnterPidNamespace(#[source] io::Error),
    /// The way back from another pid namespace failed: this process must end.
    #[error("cannot return to this process's own pid namespace")]
    LeavePidNamespace(#[source] io::Error),
    /// The calling process has more than one thread; a child made by clone3 could find a lock held for ever.
    #[error("containers can only be created by a process with one thread; this one has {threads}")]
    Threads {
        /// How many.
        threads: u64,
    },
    /// A container could reach this program's file through `/proc/self/exe` and change it.
    #[error(
        "this program runs from a file that containers could overwrite; call container::protect::seal first"
    )]
    Unprotected,
    /// The cgroup could not be prepared for the child.
    #[error("cannot prepare the cgroup for the container's process")]
    Cgroup(#[source] crate::cgroup::Error),
    /// This process's own capabilities, which limit what it can give.
    #[error("cannot look at this process's capabilities")]
    Capabilities(#[source] io::Error),
    /// `process.execCPUAffinity.initial`.
    #[error("cannot run on the processors of process.execCPUAffinity.initial")]
    Affinity(#[source] io::Error),
    /// The container's class of caches and memory bandwidth (`linux.intelRdt`).
    #[error("cannot {attempt} {} for linux.intelRdt", path.display())]
    Resctrl {
        /// `make`, …
        attempt: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent of a filter with `SCMP_ACT_NOTIFY`.
    #[error("cannot {attempt} the seccomp agent at {}", path.display())]
    Agent {
        /// `connect to`, …
        attempt: &'static str,
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process went on, but its listener did not come.
    #[error("the process did not hand over the listener of its seccomp filter")]
    NoListener,
    /// The child could not be made.
    #[error("cannot clone the container's process")]
    Clone(#[source] io::Error),
    /// The socket to the child failed.
    #[error("cannot speak with the container's process")]
    Channel(#[source] io::Error),
    /// The child ended without a word: it was killed, perhaps by a memory limit.
    #[error(
        "the container's process ended before it was ready (killed, perhaps by its memory limit)"
    )]
    ChildEnded,
    /// The child did not finish in time.
    #[error("the container's process was not ready after {secs} s")]
    Timeout {
        /// How long was waited.
        secs: u64,
    },
    /// A step in the child failed.
    #[error("cannot {step}{}", subject_suffix(subject))]
    Setup {
        /// Which.
        step: Step,
        /// What it worked on: a path, a name, a number.
        subject: String,
        /// Why.
        source: io::Error,
    },
    /// A hook failed.
    #[error("{}: the {kind} hook failed{reason}", path.display())]
    Hook {
        /// `createRuntime`, …
        kind: &'static str,
        /// Its program.
        path: PathBuf,
        /// Exit code, signal or timeout, and the last of what it wrote to standard error.
        reason: String,
    },
    /// A hook in the container's namespaces failed.
    #[error("{said}")]
    HookInside {
        /// As [`Error::Hook`] says it.
        said: String,
    },
    /// A process could not be waited for or signalled.
    #[error("cannot wait for or signal process {pid}")]
    Process {
        /// Which.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// This program's own file could not be protected.
    #[error("cannot protect this program's file from containers ({attempt})")]
    Protect {
        /// What was tried.
        attempt: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// This module's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The exit code that stands for this failure, by the shells' custom: 127 for a program that is not there, 126
    /// for one that cannot be executed, 128 for all else.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Setup {
                step: Step::FindProgram | Step::Execute,
                source,
                ..
            } => match source.raw_os_error() {
                Some(libc::ENOENT) => 127,
                _ => 126,
            },
            _ => 128,
        }
    }
}

fn subject_suffix(subject: &str) -> String {
    if subject.is_empty() {
        String::new()
    } else {
        format!(" {subject}")
    }
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// One privileged step of the child. Their order is that of [`super`]'s list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step { $($(#[$doc])* $name,)* }

        impl Step {
            const ALL: &'static [Step] = &[$(Step::$name,)*];
        }

        impl std::fmt::Display for Step {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Step::$name => $text,)* })
            }
        }
    };
}

steps! {
    /// Default signal handling, nothing blocked.
    ResetSignals = "reset signal handling",
    /// The cgroup (v1; on v2 the child is born in it).
    JoinCgroup = "join the cgroup",
    /// A network namespace.
    NewNetworkNamespace = "make a network namespace",
    /// A namespace given by path, or those of the container to exec in.
    JoinNamespace = "join the namespace",
    /// A user namespace, made by the forerunner.
    NewUserNamespace = "make a user namespace",
    /// The user namespace's id maps, written by the parent.
    MapIds = "have the user namespace's ids mapped",
    /// A time namespace, made by the forerunner.
    NewTimeNamespace = "make a time namespace",
    /// `linux.timeOffsets`.
    WriteTimeOffsets = "set the time offsets",
    /// The user namespace's root.
    BecomeRoot = "become the root of the user namespace",
    /// The container's process, made by the forerunner.
    CloneProcess = "clone the container's process",
    /// The cgroup namespace, whose root is the cgroup just joined.
    NewCgroupNamespace = "make a cgroup namespace",
    /// A session of its own.
    NewSession = "make a session",
    /// A session keyring of its own.
    NewKeyring = "make a session keyring",
    /// Waiting for the parent.
    AwaitParent = "hear from the runtime",
    /// `linux.netDevices`, by the parent.
    MoveDevices = "have network devices moved in",
    /// `hostname`.
    SetHostname = "set the host name to",
    /// `domainname`.
    SetDomainname = "set the domain name to",
    /// A new network namespace has its loopback interface up.
    RaiseLoopback = "bring up the loopback interface",
    /// `linux.sysctl`.
    WriteSysctl = "set the kernel parameter",
    /// `process.oomScoreAdj`.
    WriteOomScoreAdj = "set the OOM score adjustment",
    /// Sources of bind mounts.
    OpenSource = "open the mount source",
    /// The ids of an id-mapped mount, by the parent.
    MapMountIds = "map the ids of the mount at",
    /// `tmpcopyup`.
    CopyUp = "copy into the new file system what is at",
    /// No mount event leaves the container.
    MakePrivate = "make all mounts private",
    /// The root file system.
    MakeRootfs = "make the root file system",
    /// The place where the root file system is attached.
    AttachRootfs = "attach the root file system at",
    /// A mount's target in the root file system.
    OpenTarget = "open or make the mount target",
    /// A new file system.
    MakeFilesystem = "make a file system for",
    /// A mount's attributes.
    SetMountAttributes = "set mount attributes of",
    /// A mount's move to its target.
    AttachMount = "attach the mount at",
    /// `/dev`.
    MakeDevice = "make the device",
    /// A device in a `/dev` that is a bind mount, where none is made.
    FindDevice = "find the device in the bind mount at /dev:",
    /// `/dev/fd` and its like.
    MakeLink = "make the link",
    /// The terminal.
    OpenTerminal = "open a terminal",
    /// `createContainer` hooks.
    RunHook = "run the hook",
    /// `linux.maskedPaths`.
    MaskPath = "mask",
    /// `linux.readonlyPaths`.
    MakeReadonly = "make read-only",
    /// `process.cwd`, made when it is missing.
    MakeCwd = "make the working directory",
    /// The root file system becomes `/`.
    PivotRoot = "change the root directory",
    /// The rest of the host goes away.
    DetachHost = "detach the host's mounts",
    /// Standard input, output and error.
    SetStdio = "set up standard input and output",
    /// `process.args[0]`.
    FindProgram = "find the program",
    /// `linux.personality`.
    SetPersonality = "set the personality",
    /// `linux.memoryPolicy`.
    SetMemoryPolicy = "set the memory policy",
    /// `process.ioPriority`.
    SetIoPriority = "set the I/O priority",
    /// `process.scheduler`.
    SetScheduler = "set the scheduling policy",
    /// `process.execCPUAffinity`.
    SetAffinity = "set the processors to run on",
    /// `process.apparmorProfile`, `process.selinuxLabel`.
    SetLabel = "set the security label",
    /// `process.rlimits`.
    SetRlimit = "set the resource limit",
    /// All other descriptors.
    CloseDescriptors = "close the runtime's descriptors",
    /// `process.cwd`.
    ChangeDirectory = "change to the working directory",
    /// `process.noNewPrivileges`.
    SetNoNewPrivileges = "set no_new_privs",
    /// The bounding set.
    DropBounding = "drop the capability from the bounding set",
    /// Groups and users.
    SetUser = "change user and groups to",
    /// The other capability sets.
    SetCapabilities = "set capabilities",
    /// The ambient set.
    SetAmbient = "set ambient capabilities",
    /// `linux.seccomp`.
    LoadSeccomp = "load the seccomp filter",
    /// The program.
    Execute = "execute",
}

/// A failed step in the child, before it is sent.
#[derive(Debug)]
pub(super) struct Failure {
    step: Step,
    subject: String,
    errno: i32,
}

/// The longest subject that is sent, in bytes: a path of the kernel's limit and some words.
const SUBJECT_MAX_BYTES: usize = 4400;

impl Failure {
    /// Instead of an errno: what is to be said of a hook stands in the subject.
    pub(super) const SAID: i32 = libc::ECANCELED;

    pub(super) fn new(step: Step, subject: impl Into<String>, error: &io::Error) -> Self {
        Self {
            step,
            subject: subject.into(),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        }
    }

    /// The exit code of a child that fails so.
    pub(super) fn exit_code(&self) -> i32 {
        128
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut end = self.subject.len().min(SUBJECT_MAX_BYTES);
        while !self.subject.is_char_boundary(end) {
            end -= 1;
        }
        let mut packet = vec![b'E', self.step as u8];
        packet.extend_from_slice(&self.errno.to_le_bytes());
        packet.extend_from_slice(&self.subject.as_bytes()[..end]);
        packet
    }

    /// The error of a step that the parent took itself.
    pub(super) fn into_error(self) -> Error {
        Error::Setup {
            step: self.step,
            subject: self.subject,
            source: io::Error::from_raw_os_error(self.errno),
        }
    }

    /// The error of a packet that starts with `E`; none if it is no such packet.
    pub(super) fn decode(packet: &[u8]) -> Option<Error> {
        let [b'E', step, e0, e1, e2, e3, subject @ ..] = packet else {
            return None;
        };
        let step = *Step::ALL.get(usize::from(*step))?;
        let errno = i32::from_le_bytes([*e0, *e1, *e2, *e3]);
        let subject = String::from_utf8_lossy(subject).into_owned();
        if (step, errno) == (Step::RunHook, Self::SAID) {
            return Some(Error::HookInside { said: subject });
        }
        Some(Error::Setup {
            step,
            subject,
            source: io::Error::from_raw_os_error(errno),
        })
    }
}

/// Names the step and what it worked on.
pub(super) trait At<T> {
    fn at(self, step: Step, subject: impl AsRef<str>) -> std::result::Result<T, Failure>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, step: Step, subject: impl AsRef<str>) -> std::result::Result<T, Failure> {
        self.map_err(|error| Failure::new(step, subject.as_ref(), &error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way_to_the_parent() {
        let sent = Failure::new(
            Step::AttachMount,
            "/proc",
            &io::Error::from_raw_os_error(libc::EBUSY),
        );
        let error = Failure::decode(&sent.encode()).expect("decodes");
        assert_eq!(error.to_string(), "cannot attach the mount at /proc");
        let Error::Setup { source, .. } = error else {
            panic!("another error")
        };
        assert_eq!(source.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn an_overlong_subject_is_cut_at_a_character() {
        let sent = Failure::new(
            Step::Execute,
            "ä".repeat(4000),
            &io::Error::from_raw_os_error(libc::ENOENT),
        );
        assert!(sent.encode().len() <= SUBJECT_MAX_BYTES + 6);
        assert_eq!(
            Failure::decode(&sent.encode())
                .expect("decodes")
                .exit_code(),
            127
        );
    }

    #[test]
    fn rubbish_is_no_failure() {
        assert!(Failure::decode(b"").is_none());
        assert!(Failure::decode(b"E").is_none());
        assert!(Failure::decode(&[b'E', 255, 0, 0, 0, 0]).is_none());
        assert!(Failure::decode(b"R").is_none());
    }
}
