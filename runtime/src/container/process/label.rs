//! The security label that the program runs under: `process.apparmorProfile` and `process.selinuxLabel`.
//!
//! Both are written to a file of the process in the host's `/proc`, opened while that is in reach, and take effect at
//! `execve`. They are written last of all, so that no hook runs under them. What the kernel cannot give is refused
//! before anything is created: without the module, without the profile, with a label that the policy does not know.
//! The kernel has the last word where only it can tell, as in a namespace of policies.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::error::{At, Error, Failure, Result, Step};
use super::super::procfs;
use super::{Done, invalid};

/// AppArmor's word for no profile.
const UNCONFINED: &str = "unconfined";
/// What the kernel says of AppArmor: `Y` when it is on.
const APPARMOR_ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// The loaded profiles, each in a line as `name (mode)`; root's to read.
const APPARMOR_PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where SELinux' file system is mounted when it is on.
const SELINUX_FS: &str = "/sys/fs/selinux";
/// Takes a label, or says that the policy does not know it.
const SELINUX_CONTEXT: &str = "/sys/fs/selinux/context";
/// This process's label.
const CURRENT: &str = "/proc/self/attr/current";
/// That of all processes before a policy is loaded. Any label is taken then, and means this one.
const SELINUX_WITHOUT_POLICY: &str = "kernel";
/// `SELINUX_MAGIC` of linux/magic.h.
const SELINUX_MAGIC: i64 = 0xf97c_ff8c;

/// What to write, and where.
#[derive(Debug, Default)]
pub(super) struct Labels {
    apparmor: Option<String>,
    selinux: Option<String>,
}

/// The files, open. They are closed by `execve`.
pub(in super::super) type LabelFiles = [Option<OwnedFd>; 2];

impl Labels {
    /// Refuses a label that this kernel cannot give.
    pub(super) fn new(process: &Process) -> Result<Self> {
        let text = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        let labels = Self {
            apparmor: text(process.apparmor_profile())
                .map(|profile| apparmor(profile, apparmor_is_on()))
                .transpose()?
                .flatten(),
            selinux: text(process.selinux_label())
                .map(|label| selinux(SELINUX_FIELD, label, selinux_is_on()))
                .transpose()?,
        };
        if let Some(profile) = &labels.apparmor
            && let Ok(loaded) = std::fs::read_to_string(APPARMOR_PROFILES)
        {
            check_loaded(profile, &loaded)?;
        }
        if let Some(label) = &labels.selinux {
            check_known(SELINUX_FIELD, label)?;
        }
        Ok(labels)
    }

    /// While the host's `/proc` is in reach.
    pub(super) fn open(&self) -> std::result::Result<LabelFiles, Failure> {
        self.open_by(procfs::open)
    }

    /// With the host's `/proc`.
    pub(super) fn open_in(&self, proc: &OwnedFd) -> std::result::Result<LabelFiles, Failure> {
        self.open_by(|path| procfs::open_in(proc, path))
    }

    fn open_by(
        &self,
        open: impl Fn(&str) -> io::Result<OwnedFd>,
    ) -> std::result::Result<LabelFiles, Failure> {
        let apparmor = self.apparmor.as_ref().map(|profile| {
            // A kernel with several modules has a directory for each (Linux 5.8).
            open("self/attr/apparmor/exec")
                .or_else(|_| open("self/attr/exec"))
                .at(Step::SetLabel, profile)
        });
        let selinux = self
            .selinux
            .as_ref()
            .map(|label| open("self/attr/exec").at(Step::SetLabel, label));
        Ok([apparmor.transpose()?, selinux.transpose()?])
    }

    /// From here on the next `execve` is under the label.
    pub(super) fn write(&self, files: &LabelFiles) -> Done {
        let [apparmor, selinux] = files;
        if let (Some(profile), Some(file)) = (&self.apparmor, apparmor) {
            let command = format!("exec {profile}");
            rustix::io::write(file.as_fd(), command.as_bytes()).map_err(|errno| {
                let subject = format!("{APPARMOR_FIELD} {profile:?}{}", hint_of(errno));
                Failure::new(Step::SetLabel, subject, &errno.into())
            })?;
        }
        if let (Some(label), Some(file)) = (&self.selinux, selinux) {
            rustix::io::write(file.as_fd(), label.as_bytes())
                .at(Step::SetLabel, format!("{SELINUX_FIELD} {label:?}"))?;
        }
        Ok(())
    }

    /// The next keyring that this process makes has the program's label, or the program could not use it. `execve` ends
    /// it.
    pub(super) fn label_keyring(&self, open: impl Fn(&str) -> io::Result<OwnedFd>) -> Done {
        let Some(label) = &self.selinux else {
            return Ok(());
        };
        open("self/attr/keycreate")
            .and_then(|file| Ok(rustix::io::write(file, label.as_bytes())?))
            .map(drop)
            .at(
                Step::SetLabel,
                format!("{SELINUX_FIELD} {label:?} (for a keyring)"),
            )
    }
}

const APPARMOR_FIELD: &str = "process.apparmorProfile";
const SELINUX_FIELD: &str = "process.selinuxLabel";

fn hint_of(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT => " (it is not loaded: apparmor_parser --replace FILE loads it)",
        _ => "",
    }
}

/// The profile to change to. None: there is nothing to leave.
fn apparmor(profile: String, is_on: bool) -> Result<Option<String>> {
    let field = APPARMOR_FIELD;
    if profile.contains(['\0', '\n']) {
        return Err(invalid(field, "is not a profile's name"));
    }
    match (is_on, profile.as_str()) {
        (true, _) => Ok(Some(profile)),
        (false, UNCONFINED) => Ok(None),
        (false, _) => Err(Error::Unsupported {
            field: field.to_owned(),
            reason: format!(
                "{profile:?} cannot be applied: this kernel runs without AppArmor (leave the field out, or boot with \
                 apparmor=1)"
            ),
        }),
    }
}

/// Refuses a profile that is not among the loaded ones. Those of other namespaces of policies and stacks of several are
/// the kernel's to judge.
fn check_loaded(profile: &str, loaded: &str) -> Result<()> {
    let is_loaded = || {
        let mut names = loaded.lines().filter_map(|line| line.rsplit_once(" ("));
        names.any(|(name, _)| name == profile)
    };
    if profile == UNCONFINED || profile.starts_with(':') || profile.contains("//&") || is_loaded() {
        return Ok(());
    }
    Err(invalid(
        APPARMOR_FIELD,
        &format!("{profile:?} is not loaded (apparmor_parser --replace FILE loads it)"),
    ))
}

/// Refuses a label that the loaded policy does not know.
fn check_known(field: &str, label: &str) -> Result<()> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let answer = rustix::fs::open(SELINUX_CONTEXT, flags, Mode::empty())
        .and_then(|file| rustix::io::write(file, label.as_bytes()));
    match answer {
        Err(Errno::INVAL) => Err(invalid(
            field,
            &format!("{label:?} is no label of the SELinux policy that is loaded"),
        )),
        // The policy may keep this process from asking.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn selinux(field: &str, label: String, is_on: bool) -> Result<String> {
    if label.contains(['\0', '\n']) {
        return Err(invalid(field, "is not a label"));
    }
    if is_on {
        return Ok(label);
    }
    Err(Error::Unsupported {
        field: field.to_owned(),
        reason: format!(
            "{label:?} cannot be applied: this kernel runs without SELinux or without a policy of it (leave the field \
             out, or boot with selinux=1 and a policy)"
        ),
    })
}

/// Refuses `linux.mountLabel` where there is no SELinux.
pub(in super::super) fn check_mount_label(label: Option<&str>) -> Result<()> {
    const FIELD: &str = "linux.mountLabel";
    match label.filter(|l| !l.is_empty()) {
        Some(label) => {
            let label = selinux(FIELD, label.to_owned(), selinux_is_on())?;
            check_known(FIELD, &label)
        }
        None => Ok(()),
    }
}

fn apparmor_is_on() -> bool {
    std::fs::read(APPARMOR_ENABLED).is_ok_and(|said| said.starts_with(b"Y"))
}

fn selinux_is_on() -> bool {
    rustix::fs::open(
        Path::new(SELINUX_FS),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .and_then(|fs| rustix::fs::fstatfs(&fs))
    .is_ok_and(|fs| fs.f_type == SELINUX_MAGIC)
        && std::fs::read_to_string(CURRENT).is_ok_and(|label| has_policy(&label))
}

/// What this process's label tells.
fn has_policy(label: &str) -> bool {
    label.trim_end_matches(['\0', '\n']) != SELINUX_WITHOUT_POLICY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_cannot_be_applied_is_refused() {
        let error = apparmor("docker-default".to_owned(), false).expect_err("refused");
        assert!(
            error
                .to_string()
                .starts_with("process.apparmorProfile: \"docker-default\" cannot be applied"),
            "{error}"
        );
        let error = selinux("process.selinuxLabel", "a:b:c:s0".to_owned(), false);
        assert!(error.is_err());
        assert!(apparmor("docker-default".to_owned(), true).is_ok_and(|p| p.is_some()));
        assert!(selinux("process.selinuxLabel", "a:b:c:s0".to_owned(), true).is_ok());
    }

    #[test]
    fn no_profile_is_what_a_kernel_without_apparmor_gives() {
        assert_eq!(
            apparmor("unconfined".to_owned(), false).expect("fine"),
            None
        );
        assert_eq!(
            apparmor("unconfined".to_owned(), true)
                .expect("fine")
                .as_deref(),
            Some("unconfined")
        );
    }

    #[test]
    fn a_profile_that_is_not_loaded_is_refused() {
        let loaded = "a profile (enforce)\n/usr/bin/man (complain)\nman//filter (enforce)\n";
        for fine in [
            "a profile",
            "/usr/bin/man",
            "man//filter",
            "unconfined",
            ":other://profile",
            "a profile//&man",
        ] {
            check_loaded(fine, loaded).expect(fine);
        }
        for wrong in ["a", "profile", "a profile (enforce)", "man"] {
            let error = check_loaded(wrong, loaded).expect_err(wrong).to_string();
            assert!(error.starts_with("process.apparmorProfile"), "{error}");
            assert!(error.contains("apparmor_parser"), "{error}");
        }
    }

    #[test]
    fn before_a_policy_is_loaded_no_label_means_anything() {
        assert!(!has_policy("kernel\0"));
        assert!(has_policy("system_u:system_r:kernel_t:s0\0"));
    }

    #[test]
    fn a_line_is_not_smuggled_in() {
        assert!(apparmor("a\nexec unconfined".to_owned(), true).is_err());
        assert!(selinux("x", "a\0b".to_owned(), true).is_err());
    }
}
