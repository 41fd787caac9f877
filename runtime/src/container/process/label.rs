//! The security label that the program runs under: `process.apparmorProfile` and `process.selinuxLabel`.
//!
//! Both are written to a file of the process in the host's `/proc`, opened while that is in reach, and take effect at
//! `execve`. They are written last of all, so that no hook runs under them. A kernel without the module refuses the
//! container before anything is created.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::Mode;

use super::super::error::{At, Error, Failure, Result, Step};
use super::super::procfs;
use super::{Done, invalid};

/// AppArmor's word for no profile.
const UNCONFINED: &str = "unconfined";
/// What the kernel says of AppArmor: `Y` when it is on.
const APPARMOR_ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Where SELinux' file system is mounted when it is on.
const SELINUX_FS: &str = "/sys/fs/selinux";
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
        Ok(Self {
            apparmor: text(process.apparmor_profile())
                .map(|profile| apparmor(profile, apparmor_is_on()))
                .transpose()?
                .flatten(),
            selinux: text(process.selinux_label())
                .map(|label| selinux("process.selinuxLabel", label, selinux_is_on()))
                .transpose()?,
        })
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
            rustix::io::write(file.as_fd(), command.as_bytes()).at(Step::SetLabel, profile)?;
        }
        if let (Some(label), Some(file)) = (&self.selinux, selinux) {
            rustix::io::write(file.as_fd(), label.as_bytes()).at(Step::SetLabel, label)?;
        }
        Ok(())
    }
}

/// The profile to change to. None: there is nothing to leave.
fn apparmor(profile: String, is_on: bool) -> Result<Option<String>> {
    let field = "process.apparmorProfile";
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
            "{label:?} cannot be applied: this kernel runs without SELinux (leave the field out, or boot with selinux=1)"
        ),
    })
}

/// Refuses `linux.mountLabel` where there is no SELinux.
pub(in super::super) fn check_mount_label(label: Option<&str>) -> Result<()> {
    match label.filter(|l| !l.is_empty()) {
        Some(label) => {
            if label.contains([',', '"']) && !label.contains(':') {
                return Err(invalid("linux.mountLabel", "is not a label"));
            }
            selinux("linux.mountLabel", label.to_owned(), selinux_is_on()).map(drop)
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
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    )
    .and_then(|fs| rustix::fs::fstatfs(&fs))
    .is_ok_and(|fs| fs.f_type == SELINUX_MAGIC)
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
    fn a_line_is_not_smuggled_in() {
        assert!(apparmor("a\nexec unconfined".to_owned(), true).is_err());
        assert!(selinux("x", "a\0b".to_owned(), true).is_err());
    }
}
