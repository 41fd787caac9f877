//! The container's process: its arguments, environment, user, privileges and limits; the last steps before execve.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;

use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process};
use rustix::fs::{Access, AtFlags, CWD, Mode};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::channel::Channel;
use super::error::{At, Error, Failure, Result, Step};
use crate::seccomp::Filter;
use crate::sys;

type Done = std::result::Result<(), Failure>;

/// Where programs are looked for when the environment has no PATH, as the C library's execvp does.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most that is read of a container's `/etc/passwd`, in bytes.
const PASSWD_MAX_BYTES: u64 = 1 << 20;
/// The first descriptor after standard input, output and error.
pub(super) const FIRST_FREE_FD: u32 = 3;

/// A process, with all parsing done.
#[derive(Debug)]
pub(super) struct ProcessPlan {
    argv: Vec<CString>,
    env: Vec<CString>,
    search: Vec<CString>,
    cwd: CString,
    needs_home: bool,
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    umask: u32,
    capabilities: CapabilityPlan,
    rlimits: Vec<Rlimit>,
    no_new_privileges: bool,
    oom_score_adj: Option<i32>,
    seccomp: Option<Filter>,
    preserve_fds: u32,
}

#[derive(Debug)]
struct CapabilityPlan {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

#[derive(Debug)]
struct Rlimit {
    name: String,
    resource: u32,
    soft: u64,
    hard: u64,
}

impl ProcessPlan {
    pub(super) fn new(
        process: &Process,
        seccomp: Option<Filter>,
        preserve_fds: u32,
    ) -> Result<Self> {
        let args = process.args().as_deref().unwrap_or_default();
        let Some(program) = args.first().filter(|a| !a.is_empty()) else {
            return Err(invalid("process.args", "there is no program"));
        };
        let env = process.env().as_deref().unwrap_or_default();
        let variable = |name: &str| {
            env.iter()
                .rev()
                .find_map(|v| v.strip_prefix(name)?.strip_prefix('='))
        };
        let path = variable("PATH").unwrap_or(DEFAULT_PATH);
        let user = process.user();
        Ok(Self {
            argv: c_strings("process.args", args)?,
            env: c_strings("process.env", env)?,
            search: candidates(program, path)?,
            cwd: c_string("process.cwd", process.cwd().as_os_str().as_bytes())?,
            needs_home: variable("HOME").is_none_or(str::is_empty),
            uid: user.uid(),
            gid: user.gid(),
            groups: user
                .additional_gids()
                .iter()
                .flatten()
                .map(|&gid| Gid::from_raw(gid))
                .collect(),
            umask: user.umask().unwrap_or(0o022),
            capabilities: CapabilityPlan::new(process.capabilities().as_ref())?,
            rlimits: rlimits(process)?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj: process.oom_score_adj(),
            seccomp,
            preserve_fds,
        })
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// Before the host's `/proc` is out of reach.
    pub(super) fn write_oom_score_adj(&self) -> Done {
        let Some(value) = self.oom_score_adj else {
            return Ok(());
        };
        std::fs::write("/proc/self/oom_score_adj", value.to_string())
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => (
                    format!("to {value} (lowering it needs CAP_SYS_RESOURCE)"),
                    error,
                ),
                _ => (format!("to {value}"), error),
            })
            .map_err(|(subject, error)| Failure::new(Step::WriteOomScoreAdj, subject, &error))
    }

    /// Looks for the program, so that a missing one is told when the container is created. It may still fail to
    /// execute.
    pub(super) fn find_program(&self) -> Done {
        let mut denied = false;
        for candidate in &self.search {
            match rustix::fs::accessat(CWD, candidate, Access::EXEC_OK, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::ACCESS) => denied = true,
                Err(_) => {}
            }
        }
        let error = if denied { libc::EACCES } else { libc::ENOENT };
        Err(self.not_found(Step::FindProgram, &io::Error::from_raw_os_error(error)))
    }

    fn not_found(&self, step: Step, error: &io::Error) -> Failure {
        let name = self.argv[0].to_string_lossy();
        let subject = if self.search.len() > 1 {
            format!("{name:?} in $PATH")
        } else {
            format!("{name:?}")
        };
        Failure::new(step, subject, error)
    }

    /// Adds HOME from the container's `/etc/passwd` when the environment has none.
    pub(super) fn add_home(&mut self) {
        if !self.needs_home {
            return;
        }
        let home = home_of(self.uid).unwrap_or_else(|| b"/".to_vec());
        self.env.retain(|v| !v.as_bytes().starts_with(b"HOME="));
        let mut variable = b"HOME=".to_vec();
        variable.extend_from_slice(&home);
        if let Ok(variable) = CString::new(variable) {
            self.env.push(variable);
        }
    }

    /// Closes all descriptors but 0, 1, 2, those to preserve, the channel and `others`, which get new numbers. Nothing
    /// that owned a descriptor may be dropped from here on. Earlier than `execve` would: the working directory and the
    /// program must not be reached through `/proc/self/fd` of a host directory (CVE-2024-21626).
    pub(super) fn close_descriptors(
        &self,
        channel: Channel,
        others: [Option<&OwnedFd>; 2],
    ) -> std::result::Result<(Channel, [Option<OwnedFd>; 2]), Failure> {
        let first = FIRST_FREE_FD + self.preserve_fds;
        let failed = |e: rustix::io::Errno| Failure::new(Step::CloseDescriptors, "", &e.into());
        // Copies far above what is wanted, so that moving one into place cannot overwrite another.
        let above = (first + 3).cast_signed();
        let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, above).map_err(failed);
        let channel_copy = copy(channel.as_fd())?;
        let other_copies = others.map(|fd| fd.map(|fd| copy(fd.as_fd())).transpose());
        std::mem::forget(channel);

        let mut next = first.cast_signed();
        let mut place = |copy: OwnedFd| {
            let placed = sys::process::duplicate_to(copy.as_raw_fd(), next)
                .at(Step::CloseDescriptors, "")?;
            next += 1;
            Ok::<OwnedFd, Failure>(placed)
        };
        let channel = Channel::from_fd(place(channel_copy)?);
        let [a, b] = other_copies;
        let others = [
            a?.map(&mut place).transpose()?,
            b?.map(&mut place).transpose()?,
        ];
        sys::process::close_from(next.cast_unsigned()).at(Step::CloseDescriptors, "")?;
        Ok((channel, others))
    }

    /// What root may do that the container's user may not: limits.
    pub(super) fn set_limits(&self) -> Done {
        for limit in &self.rlimits {
            sys::process::set_rlimit(limit.resource, limit.soft, limit.hard).map_err(|error| {
                let hint = if error.raw_os_error() == Some(libc::EPERM) {
                    " (raising a hard limit needs CAP_SYS_RESOURCE)"
                } else {
                    ""
                };
                let subject = format!("{} to {}:{}{hint}", limit.name, limit.soft, limit.hard);
                Failure::new(Step::SetRlimit, subject, &error)
            })?;
        }
        Ok(())
    }

    /// Gives up privileges and loads the filter; then only `execve` is left. `between` runs with the container's
    /// credentials (for startContainer hooks).
    ///
    /// The order matters: with no_new_privs the filter comes last, so that it need allow nothing but `execve`;
    /// without it loading takes CAP_SYS_ADMIN, which is kept so far and given up by one capset under the filter.
    pub(super) fn give_up_privileges(&self, between: impl FnOnce() -> Done) -> Done {
        let entered = self.change_directory();
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).at(Step::SetNoNewPrivileges, "")?;
        }
        self.capabilities.drop_bounding()?;
        self.set_user()?;
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
            filter.load().at(Step::LoadSeccomp, "")?;
            self.capabilities.set(CapabilitySet::empty())?;
        }
        between()?;
        if let Some(filter) = self.seccomp.as_ref().filter(|_| self.no_new_privileges) {
            filter.load().at(Step::LoadSeccomp, "")?;
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

    fn set_user(&self) -> Done {
        let subject = || format!("{}:{}", self.uid, self.gid);
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::thread::set_keep_capabilities(true).at(Step::SetUser, subject())?;
        rustix::thread::set_thread_groups(&self.groups).at(Step::SetUser, subject())?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).at(Step::SetUser, subject())?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).at(Step::SetUser, subject())?;
        rustix::thread::set_keep_capabilities(false).at(Step::SetUser, subject())?;
        rustix::process::umask(Mode::from_raw_mode(self.umask));
        Ok(())
    }

    /// Becomes the program; returns only the failure.
    pub(super) fn execute(&self) -> Failure {
        let mut last = io::Error::from_raw_os_error(libc::ENOENT);
        for candidate in &self.search {
            let error = sys::process::execve(candidate, &self.argv, &self.env);
            match error.raw_os_error() {
                // As execvp(3): go on, and remember what was there but denied.
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => last = error,
                _ => {
                    last = error;
                    break;
                }
            }
        }
        self.not_found(Step::Execute, &last)
    }
}

impl CapabilityPlan {
    /// No capabilities at all when the spec has none.
    fn new(sets: Option<&LinuxCapabilities>) -> Result<Self> {
        let set = |name, of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
            bits(name, sets.and_then(|sets| of(sets).as_ref()))
        };
        Ok(Self {
            bounding: set("bounding", LinuxCapabilities::bounding)?,
            effective: set("effective", LinuxCapabilities::effective)?,
            permitted: set("permitted", LinuxCapabilities::permitted)?,
            inheritable: set("inheritable", LinuxCapabilities::inheritable)?,
            ambient: set("ambient", LinuxCapabilities::ambient)?,
        })
    }

    fn drop_bounding(&self) -> Done {
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if self.bounding.contains(capability) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // Past the kernel's last capability.
                Err(rustix::io::Errno::INVAL) => break,
                Err(error) => {
                    return Err(Failure::new(
                        Step::DropBounding,
                        number.to_string(),
                        &error.into(),
                    ));
                }
            }
        }
        Ok(())
    }

    fn set(&self, extra: CapabilitySet) -> Done {
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: self.effective | extra,
                permitted: self.permitted | extra,
                inheritable: self.inheritable,
            },
        )
        .at(Step::SetCapabilities, "")
    }

    fn raise_ambient(&self) -> Done {
        rustix::thread::clear_ambient_capability_set().at(Step::SetAmbient, "")?;
        for capability in self.ambient.iter() {
            rustix::thread::configure_capability_in_ambient_set(capability, true)
                .at(Step::SetAmbient, format!("{capability:?}"))?;
        }
        Ok(())
    }
}

fn bits(set: &str, capabilities: Option<&Capabilities>) -> Result<CapabilitySet> {
    let mut bits = CapabilitySet::empty();
    for capability in capabilities.into_iter().flatten() {
        let name = format!("CAP_{capability}");
        let known = caps::Capability::from_str(&name).map_err(|_| {
            invalid(
                &format!("process.capabilities.{set}"),
                &format!("unknown capability {name}"),
            )
        })?;
        bits |= CapabilitySet::from_bits_retain(known.bitmask());
    }
    Ok(bits)
}

/// `RLIMIT_*` by name, from asm-generic/resource.h.
const RLIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

fn rlimits(process: &Process) -> Result<Vec<Rlimit>> {
    let mut seen = 0_u32;
    process
        .rlimits()
        .iter()
        .flatten()
        .map(|limit| {
            let name = limit.typ().to_string();
            let resource = RLIMITS
                .iter()
                .position(|&known| known == name)
                .ok_or_else(|| invalid("process.rlimits", &format!("unknown limit {name}")))?;
            if seen & (1 << resource) != 0 {
                return Err(invalid(
                    "process.rlimits",
                    &format!("{name} is there twice"),
                ));
            }
            seen |= 1 << resource;
            Ok(Rlimit {
                name,
                resource: resource as u32,
                soft: limit.soft(),
                hard: limit.hard(),
            })
        })
        .collect()
}

/// The paths to try for a program: itself when it has a slash, else in each directory of PATH.
fn candidates(program: &str, path: &str) -> Result<Vec<CString>> {
    if program.contains('/') {
        return Ok(vec![c_string("process.args", program.as_bytes())?]);
    }
    path.split(':')
        .map(|directory| {
            let directory = if directory.is_empty() { "." } else { directory };
            c_string("process.env", format!("{directory}/{program}").as_bytes())
        })
        .collect()
}

/// The home directory of a user in the container's `/etc/passwd`. A file that cannot be read has nobody in it.
fn home_of(uid: u32) -> Option<Vec<u8>> {
    let file = File::options()
        .read(true)
        // A FIFO there must not stop us.
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(Path::new("/etc/passwd"))
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(PASSWD_MAX_BYTES).read_to_end(&mut text).ok()?;
    home_in(&text, uid)
}

/// passwd(5): `name:password:UID:GID:GECOS:directory:shell`
fn home_in(passwd: &[u8], uid: u32) -> Option<Vec<u8>> {
    passwd
        .split(|&b| b == b'\n')
        .find_map(|line| {
            let mut fields = line.split(|&b| b == b':').skip(2);
            let id: u32 = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            (id == uid).then(|| fields.nth(2))?
        })
        .filter(|home| !home.is_empty())
        .map(<[u8]>::to_vec)
}

fn c_strings(field: &str, strings: &[String]) -> Result<Vec<CString>> {
    strings
        .iter()
        .map(|s| c_string(field, s.as_bytes()))
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
pub(super) fn validate(process: &Process) -> Result<()> {
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
    unsupported("process.apparmorProfile", given(process.apparmor_profile()))?;
    unsupported("process.selinuxLabel", given(process.selinux_label()))?;
    unsupported("process.user.username", given(process.user().username()))?;
    unsupported("process.ioPriority", process.io_priority().is_some())?;
    unsupported("process.scheduler", process.scheduler().is_some())?;
    unsupported(
        "process.execCPUAffinity",
        process.exec_cpu_affinity().is_some(),
    )?;
    if !process.cwd().is_absolute() {
        return Err(invalid("process.cwd", "must be absolute"));
    }
    ProcessPlan::new(process, None, 0).map(drop)
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
    use oci_spec::runtime::{PosixRlimitBuilder, PosixRlimitType, ProcessBuilder, Spec};

    fn process() -> Process {
        Spec::default().process().clone().expect("a process")
    }

    #[test]
    fn programs_are_looked_for_in_path() {
        let paths = candidates("sh", "/bin::/usr/bin").expect("candidates");
        assert_eq!(
            paths,
            [
                c"/bin/sh".into(),
                c"./sh".into(),
                CString::from(c"/usr/bin/sh")
            ]
        );
        assert_eq!(
            candidates("./sh", "/bin").expect("candidates"),
            [CString::from(c"./sh")]
        );
    }

    #[test]
    fn home_is_the_sixth_field() {
        let passwd =
            b"root:x:0:0:root:/root:/bin/sh\nbad\nweb:x:33:33::/var/www:/bin/false\nx:x:5:5:::\n";
        assert_eq!(home_in(passwd, 33).as_deref(), Some(&b"/var/www"[..]));
        assert_eq!(home_in(passwd, 0).as_deref(), Some(&b"/root"[..]));
        assert_eq!(home_in(passwd, 5), None);
        assert_eq!(home_in(passwd, 7), None);
    }

    #[test]
    fn a_process_without_a_program_is_refused() {
        let mut process = process();
        process.set_args(Some(vec![]));
        assert!(validate(&process).is_err());
        process.set_args(Some(vec!["a\0b".into()]));
        assert!(validate(&process).is_err());
    }

    #[test]
    fn a_relative_working_directory_is_refused() {
        let mut process = process();
        process.set_cwd("tmp".into());
        let error = validate(&process).expect_err("refused");
        assert_eq!(error.to_string(), "process.cwd: must be absolute");
    }

    #[test]
    fn a_profile_that_cannot_be_applied_is_refused() {
        let mut process = process();
        process.set_apparmor_profile(Some("docker-default".into()));
        assert!(matches!(validate(&process), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn a_limit_given_twice_is_refused() {
        let limit = PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .hard(10_u64)
            .soft(10_u64)
            .build()
            .expect("builds");
        let process = ProcessBuilder::default()
            .cwd("/")
            .args(["x".to_owned()])
            .rlimits([limit, limit])
            .build()
            .expect("builds");
        assert!(validate(&process).is_err());
    }

    #[test]
    fn every_capability_of_the_spec_is_known() {
        let all: Capabilities = caps::all()
            .iter()
            .filter_map(|c| c.to_string().strip_prefix("CAP_")?.parse().ok())
            .collect();
        assert_eq!(all.len(), caps::all().len());
        let set = bits("bounding", Some(&all)).expect("known");
        assert_eq!(set.bits(), (1 << 41) - 1);
    }
}
