//! The container's process: its arguments, environment, user, privileges and limits; the last steps before execve.
//!
//! ```text
//! program       arguments, PATH                 capabilities  the five sets
//! home          HOME from /etc/passwd           limits        rlimits
//! user          user, groups, umask             scheduling    policy, I/O class, processors, memory nodes
//! label         AppArmor, SELinux               descriptors   what stays open
//! ```
//!
//! Everything is parsed before the child is made: in the child only system calls are left.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::{Linux, Process};
use rustix::thread::CapabilitySet;

use super::channel::Channel;
use super::error::{At, Error, Failure, Result, Step};
use super::{ListenFds, procfs};
use crate::seccomp::Filter;

mod capabilities;
mod descriptors;
mod home;
mod label;
mod limits;
mod number_list;
mod program;
mod scheduling;
mod user;

use capabilities::CapabilityPlan;
use label::{LabelFiles, Labels};
use limits::Limits;
use program::Program;
use scheduling::Scheduling;
use user::Identity;

pub(super) use label::check_mount_label;
pub(super) use scheduling::{Affinity, forget_affinity};

type Done = std::result::Result<(), Failure>;

/// The first descriptor after standard input, output and error.
pub(super) const FIRST_FREE_FD: u32 = 3;

/// A process, with all parsing done.
#[derive(Debug)]
pub(super) struct ProcessPlan {
    program: Program,
    env: Vec<CString>,
    needs_home: bool,
    cwd: CString,
    user: Identity,
    capabilities: CapabilityPlan,
    limits: Limits,
    scheduling: Scheduling,
    labels: Labels,
    /// Open from [`ProcessPlan::open_label_files`] on.
    label_files: LabelFiles,
    no_new_privileges: bool,
    oom_score_adj: Option<i32>,
    seccomp: Option<Filter>,
    preserve_fds: u32,
    listen_fds: Option<ListenFds>,
}

impl ProcessPlan {
    /// `linux` is the container's, for what holds for all of its processes.
    pub(super) fn new(
        process: &Process,
        linux: Option<&Linux>,
        seccomp: Option<Filter>,
        preserve_fds: u32,
    ) -> Result<Self> {
        let env = process.env().as_deref().unwrap_or_default();
        let args = process.args().as_deref().unwrap_or_default();
        Ok(Self {
            program: Program::new(args, variable(env, "PATH"))?,
            env: c_strings("process.env", &last_of_each(env))?,
            needs_home: variable(env, "HOME").is_none_or(str::is_empty),
            cwd: c_string("process.cwd", process.cwd().as_os_str().as_bytes())?,
            user: Identity::new(process.user())?,
            capabilities: CapabilityPlan::new(process.capabilities().as_ref())?,
            limits: Limits::new(process)?,
            scheduling: Scheduling::new(process, linux)?,
            labels: Labels::new(process)?,
            label_files: LabelFiles::default(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj: process.oom_score_adj(),
            seccomp,
            preserve_fds: count_of_fds("preserve-fds", preserve_fds)?,
            listen_fds: None,
        })
    }

    /// With descriptors of socket activation before those to preserve.
    pub(super) fn with_listen_fds(mut self, listen_fds: Option<ListenFds>) -> Result<Self> {
        if let Some(passed) = &listen_fds {
            self.preserve_fds += count_of_fds("LISTEN_FDS", passed.count)?;
            c_string(
                "LISTEN_FDNAMES",
                passed.names.as_deref().unwrap_or_default().as_bytes(),
            )?;
        }
        self.listen_fds = listen_fds;
        Ok(self)
    }

    /// Tells the program of the descriptors of socket activation, once its pid is known.
    pub(super) fn add_listen_fds(&mut self) {
        let Some(ListenFds { count, names }) = &self.listen_fds else {
            return;
        };
        self.env.retain(|v| !v.as_bytes().starts_with(b"LISTEN_"));
        let pid = std::process::id();
        let variables = [format!("LISTEN_FDS={count}"), format!("LISTEN_PID={pid}")];
        let names = names.iter().map(|names| format!("LISTEN_FDNAMES={names}"));
        // Without NUL characters, as checked above.
        self.env
            .extend(variables.into_iter().chain(names).flat_map(CString::new));
    }

    pub(super) fn uid(&self) -> u32 {
        self.user.uid()
    }

    /// User and group.
    pub(super) fn owner(&self) -> (u32, u32) {
        (self.user.uid(), self.user.gid())
    }

    /// The user namespace denies setgroups(2).
    pub(super) fn keep_groups(&mut self) {
        self.user.keep_groups();
    }

    /// Before the host's `/proc` is out of reach.
    pub(super) fn write_oom_score_adj(&self) -> Done {
        let Some(value) = self.oom_score_adj else {
            return Ok(());
        };
        procfs::write("self/oom_score_adj", &value.to_string())
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => (
                    format!("to {value} (lowering it needs CAP_SYS_RESOURCE)"),
                    error,
                ),
                _ => (format!("to {value}"), error),
            })
            .map_err(|(subject, error)| Failure::new(Step::WriteOomScoreAdj, subject, &error))
    }

    /// Opens what the security labels are written to, before the host's `/proc` is out of reach.
    pub(super) fn open_label_files(&mut self) -> Done {
        self.label_files = self.labels.open()?;
        Ok(())
    }

    /// The same with the host's `/proc` opened before.
    pub(super) fn open_label_files_in(&mut self, proc: &OwnedFd) -> Done {
        self.label_files = self.labels.open_in(proc)?;
        Ok(())
    }

    /// Before a session keyring is made, and while the host's `/proc` is in reach.
    pub(super) fn label_keyring(&self) -> Done {
        self.labels.label_keyring(procfs::open)
    }

    /// The same with the host's `/proc` opened before.
    pub(super) fn label_keyring_in(&self, proc: &OwnedFd) -> Done {
        self.labels
            .label_keyring(|path| procfs::open_in(proc, path))
    }

    /// Leaves out the capabilities that this process cannot give, and says so. In a user namespace of its own the
    /// child has all.
    pub(super) fn limit_capabilities(&mut self, own_user_namespace: bool) -> Result<()> {
        let own = if own_user_namespace {
            CapabilitySet::from_bits_retain(u64::MAX)
        } else {
            rustix::thread::capabilities(None)
                .map_err(|e| Error::Capabilities(e.into()))?
                .permitted
        };
        self.capabilities.limit(own);
        Ok(())
    }

    /// Looks for the program, so that a missing one is told when the container is created. It may still fail to
    /// execute.
    pub(super) fn find_program(&self) -> Done {
        self.program.find()
    }

    /// Adds HOME from the container's `/etc/passwd` when the environment has none.
    pub(super) fn add_home(&mut self) {
        if !self.needs_home {
            return;
        }
        let home = home::home_of(self.uid()).unwrap_or_else(|| b"/".to_vec());
        self.env.retain(|v| !v.as_bytes().starts_with(b"HOME="));
        let mut variable = b"HOME=".to_vec();
        variable.extend_from_slice(&home);
        if let Ok(variable) = CString::new(variable) {
            self.env.push(variable);
        }
    }

    /// The environment as it is now, `NAME=VALUE`.
    pub(super) fn environment(&self) -> Vec<String> {
        let lossy = |variable: &CString| variable.to_string_lossy().into_owned();
        self.env.iter().map(lossy).collect()
    }

    /// Closes all descriptors but 0, 1, 2, those to preserve, the channel and `others`, which get new numbers.
    pub(super) fn close_descriptors(
        &mut self,
        channel: Channel,
        others: [Option<&OwnedFd>; 2],
    ) -> std::result::Result<(Channel, [Option<OwnedFd>; 2]), Failure> {
        let files = std::mem::take(&mut self.label_files);
        let [a, b] = others;
        let [apparmor, selinux] = &files;
        let kept = [a, b, apparmor.as_ref(), selinux.as_ref()];
        let closed = descriptors::close(self.preserve_fds, channel, kept);
        std::mem::forget(files);
        let (channel, [a, b, apparmor, selinux]) = closed?;
        self.label_files = [apparmor, selinux];
        Ok((channel, [a, b]))
    }

    /// What root may do that the container's user may not: scheduling, and limits under which a start is still heard.
    pub(super) fn set_limits(&self) -> Done {
        self.scheduling.set()?;
        self.limits.set()
    }

    /// True when the filter has an agent and lets the process wait for its start, and no limit is left for then that
    /// may take privileges: the agent is told before.
    pub(super) fn tells_agent_early(&self) -> bool {
        let is_told = |filter: &Filter| filter.agent().is_some() && filter.lets_wait();
        self.seccomp.as_ref().is_some_and(is_told) && !self.limits.any_tight()
    }

    /// The limits that are left, after the start.
    pub(super) fn set_tight_limits(&self) -> Done {
        self.limits.set_tight()
    }

    /// Gives up privileges and loads the filter; then only `execve` is left. `run_hooks` is for the startContainer hooks,
    /// which have the container's credentials.
    ///
    /// The order matters: with no_new_privs the filter comes last, so that it need allow nothing but `execve`;
    /// without it loading takes CAP_SYS_ADMIN, which is kept so far and given up by one capset under the filter.
    ///
    /// A filter's listener goes to whoever is at the other end of `starter`.
    pub(super) fn give_up_privileges(
        &self,
        starter: &Channel,
        run_hooks: impl FnOnce() -> Done,
    ) -> Done {
        let entered = self.change_directory();
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).at(Step::SetNoNewPrivileges, "")?;
        }
        self.capabilities.drop_bounding()?;
        self.user.assume()?;
        // A directory that only the user may enter, as on a network file system.
        entered.or_else(|_| self.change_directory())?;

        let early_filter = self.seccomp.as_ref().filter(|_| !self.no_new_privileges);
        let extra = match early_filter {
            Some(_) => CapabilitySet::SYS_ADMIN,
            None => CapabilitySet::empty(),
        };
        self.capabilities.set(extra)?;
        self.capabilities.raise_ambient()?;
        if let Some(filter) = early_filter {
            load(filter, starter)?;
            self.capabilities.set(CapabilitySet::empty())?;
        }
        run_hooks()?;
        self.labels.write(&self.label_files)?;
        if let Some(filter) = self.seccomp.as_ref().filter(|_| self.no_new_privileges) {
            load(filter, starter)?;
        }
        Ok(())
    }

    fn change_directory(&self) -> Done {
        let name = self.cwd.to_string_lossy();
        rustix::process::chdir(&self.cwd).at(Step::ChangeDirectory, &name)?;
        // The kernel's getcwd says "(unreachable)" for a directory outside the root.
        let current = rustix::process::getcwd(Vec::new()).at(Step::ChangeDirectory, &name)?;
        if current.as_bytes().first() == Some(&b'/') {
            Ok(())
        } else {
            let error = io::Error::from_raw_os_error(libc::EXDEV);
            Err(Failure::new(Step::ChangeDirectory, name, &error))
        }
    }

    /// Becomes the program; returns only the failure.
    pub(super) fn execute(&self) -> Failure {
        self.program.execute(&self.env)
    }
}

/// Loads the filter. From then on each system call is the filter's to judge: its listener leaves by one sendmsg, and
/// is closed by `execve`.
fn load(filter: &Filter, starter: &Channel) -> Done {
    if let Some(listener) = filter.load().at(Step::LoadSeccomp, "")? {
        starter
            .send(b"L", Some(listener.as_fd()))
            .at(Step::LoadSeccomp, "(to hand its listener over)")?;
        std::mem::forget(listener);
    }
    Ok(())
}

/// More than a process can have open (`fs.nr_open` is 2^20 as a rule).
const FDS_MAX: u32 = 1 << 20;

fn count_of_fds(field: &str, count: u32) -> Result<u32> {
    if count <= FDS_MAX {
        Ok(count)
    } else {
        Err(invalid(field, "is more than a process can have open"))
    }
}

/// A variable's value, the last one given.
fn variable<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter()
        .rev()
        .find_map(|v| v.strip_prefix(name)?.strip_prefix('='))
}

/// The variables without those that a later one of the same name replaces: programs see the first of a name, and the
/// last is meant.
fn last_of_each(env: &[String]) -> Vec<&str> {
    let name = |variable: &str| variable.find('=').unwrap_or(variable.len());
    let mut seen = HashSet::new();
    let mut kept: Vec<&str> = env
        .iter()
        .rev()
        .map(String::as_str)
        .filter(|variable| seen.insert(&variable[..name(variable)]))
        .collect();
    kept.reverse();
    kept
}

fn c_strings(field: &str, strings: &[impl AsRef<str>]) -> Result<Vec<CString>> {
    strings
        .iter()
        .map(|s| c_string(field, s.as_ref().as_bytes()))
        .collect()
}

fn c_string(field: &str, bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| invalid(field, "a NUL character is not allowed"))
}

fn invalid(field: &str, reason: &str) -> Error {
    Error::Invalid {
        field: field.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Refuses what is not supported.
pub(super) fn validate(process: &Process, linux: Option<&Linux>) -> Result<()> {
    let unsupported = |field: &str, present: bool| {
        if present {
            Err(Error::Unsupported {
                field: field.to_owned(),
                reason: "is not supported".to_owned(),
            })
        } else {
            Ok(())
        }
    };
    let given = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    unsupported("process.commandLine", given(process.command_line()))?;
    unsupported("process.user.username", given(process.user().username()))?;
    if !process.cwd().is_absolute() {
        return Err(invalid("process.cwd", "must be absolute"));
    }
    let cells = |cells: u64| u16::try_from(cells).is_ok();
    if process.terminal().unwrap_or(false)
        && let Some(size) = process.console_size()
        && !(cells(size.width()) && cells(size.height()))
    {
        return Err(invalid(
            "process.consoleSize",
            "must be at most 65535 x 65535",
        ));
    }
    Affinity::new(process)?;
    ProcessPlan::new(process, linux, None, 0).map(drop)
}

/// A path as a C string, for system calls in the child.
pub(super) fn path_c_string(field: &str, path: &Path) -> Result<CString> {
    c_string(field, path.as_os_str().as_bytes())
}

/// How a C string reads in an error.
pub(super) fn shown(path: &CStr) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Spec;

    fn process() -> Process {
        Spec::default().process().clone().expect("a process")
    }

    #[test]
    fn a_process_without_a_program_is_refused() {
        let mut process = process();
        process.set_args(Some(vec![]));
        assert!(validate(&process, None).is_err());
        process.set_args(Some(vec!["a\0b".into()]));
        assert!(validate(&process, None).is_err());
    }

    #[test]
    fn the_last_variable_of_a_name_counts() {
        let env = ["A=1", "B=2", "A=3", "C", "AB=4", "C"].map(str::to_owned);
        assert_eq!(last_of_each(&env), ["B=2", "A=3", "AB=4", "C"]);
    }

    #[test]
    fn a_relative_working_directory_is_refused() {
        let mut process = process();
        process.set_cwd("tmp".into());
        let error = validate(&process, None).expect_err("refused");
        assert_eq!(error.to_string(), "process.cwd: must be absolute");
    }
}
