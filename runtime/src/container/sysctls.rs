//! Kernel parameters of the container's namespaces (`linux.sysctl`). A parameter that is the whole machine's is
//! refused.

use std::os::unix::fs::MetadataExt;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::error::{Error, Failure, Result, Step};
use super::namespaces::{Had, how};
use super::procfs;

/// Parameters as paths below `/proc/sys`, with their values.
#[derive(Debug, Default)]
pub(super) struct Sysctls(Vec<(String, String)>);

impl Sysctls {
    pub(super) fn new(spec: &Spec) -> Result<Self> {
        let mut planned = Vec::new();
        for (name, value) in spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.sysctl().as_ref())
            .into_iter()
            .flatten()
        {
            let refused = |reason: String| Error::Invalid {
                field: format!("linux.sysctl ({name})"),
                reason,
            };
            let path = path_of(name);
            if value.contains('\0') {
                return Err(refused("a NUL character is not allowed".to_owned()));
            }
            if path.contains('\0') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
                return Err(refused("is not a name".to_owned()));
            }
            if let Some(field) = contradicted(&path, value, spec) {
                return Err(refused(format!("is what {field} sets: give it there only")));
            }
            let typ = namespace_of(&path)
                .ok_or_else(|| refused("is the whole machine's, not a container's".to_owned()))?;
            if how(spec, typ) == Had::Shared || joins_callers(spec, typ) {
                return Err(refused(format!(
                    "needs a {typ} namespace of the container's own"
                )));
            }
            planned.push((path, value.clone()));
        }
        planned.sort();
        Ok(Self(planned))
    }

    /// In the child, once it is in its namespaces: `/proc/sys` shows those of the process that looks.
    pub(super) fn write(&self) -> std::result::Result<(), Failure> {
        for (path, value) in &self.0 {
            // The files of the names are the host's root's alone, also in a user namespace; the calls are not.
            let name = value.trim_end().as_bytes();
            let written = match path.as_str() {
                "kernel/hostname" => rustix::system::sethostname(name).map_err(Into::into),
                "kernel/domainname" => rustix::system::setdomainname(name).map_err(Into::into),
                _ => procfs::write(&format!("sys/{path}"), value),
            };
            written
                .map_err(|e| Failure::new(Step::WriteSysctl, format!("{path} to {value:?}"), &e))?;
        }
        Ok(())
    }
}

/// `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.100/forwarding` as a path: whichever separator comes first counts, as
/// sysctl(8) has it.
fn path_of(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// The namespace that a parameter belongs to: `net`, `user` (kernel/ucount.c), `ipc/sysctl.c`, `ipc/mq_sysctl.c` and `kernel/utsname_sysctl.c`.
fn namespace_of(path: &str) -> Option<LinuxNamespaceType> {
    const IPC: [&str; 12] = [
        "kernel/auto_msgmni",
        "kernel/msg_next_id",
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/sem_next_id",
        "kernel/shm_next_id",
        "kernel/shm_rmid_forced",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
    ];
    if path.starts_with("user/") {
        Some(LinuxNamespaceType::User)
    } else if path.starts_with("net/") {
        Some(LinuxNamespaceType::Network)
    } else if path.starts_with("fs/mqueue/") || IPC.contains(&path) {
        Some(LinuxNamespaceType::Ipc)
    } else if matches!(path, "kernel/hostname" | "kernel/domainname") {
        Some(LinuxNamespaceType::Uts)
    } else {
        None
    }
}

/// The spec's own field for what a parameter sets, where the parameter does not say the same. A host name is given in
/// one place only, as runc and crun have it.
fn contradicted(path: &str, value: &str, spec: &Spec) -> Option<&'static str> {
    match (path, spec.domainname().as_deref()) {
        ("kernel/hostname", _) => Some("hostname"),
        ("kernel/domainname", Some(name)) if name != value => Some("domainname"),
        _ => None,
    }
}

/// True when the spec joins by path the namespace that the caller is in.
fn joins_callers(spec: &Spec, typ: LinuxNamespaceType) -> bool {
    let own = match typ {
        LinuxNamespaceType::Network => "/proc/self/ns/net",
        LinuxNamespaceType::Ipc => "/proc/self/ns/ipc",
        LinuxNamespaceType::User => "/proc/self/ns/user",
        _ => "/proc/self/ns/uts",
    };
    let joined = spec
        .linux()
        .iter()
        .flat_map(|linux| linux.namespaces().iter().flatten())
        .find(|n| n.typ() == typ)
        .and_then(|n| n.path().as_ref());
    let Some(joined) = joined else { return false };
    match (std::fs::metadata(joined), std::fs::metadata(own)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        // It will not open either, which is an error of its own.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Linux;

    fn sysctls(name: &str) -> Result<Sysctls> {
        let mut linux = Linux::default();
        linux.set_sysctl(Some([(name.to_owned(), "1".to_owned())].into()));
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        Sysctls::new(&spec)
    }

    #[test]
    fn names_become_paths() {
        assert_eq!(path_of("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(
            path_of("net.ipv4.conf.eth0/100.mtu"),
            "net/ipv4/conf/eth0.100/mtu"
        );
        assert_eq!(
            path_of("net/ipv4/conf/eth0.100/mtu"),
            "net/ipv4/conf/eth0.100/mtu"
        );
    }

    #[test]
    fn a_parameter_of_the_machine_is_refused() {
        for name in [
            "vm.swappiness",
            "kernel.panic",
            "net/../kernel/panic",
            "fs.file-max",
            "user.max_user_namespaces",
            "net.a\0b",
        ] {
            assert!(sysctls(name).is_err(), "{name}");
        }
        for name in ["net.core.somaxconn", "kernel.shmmax", "fs.mqueue.msg_max"] {
            assert!(sysctls(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_parameter_that_has_a_field_of_its_own_is_refused() {
        assert!(sysctls("kernel.hostname").is_err());
        assert!(sysctls("kernel.domainname").is_ok());
        let mut linux = Linux::default();
        linux.set_sysctl(Some(
            [("kernel.domainname".to_owned(), "a".to_owned())].into(),
        ));
        let mut spec = Spec::default();
        spec.set_linux(Some(linux))
            .set_domainname(Some("b".to_owned()));
        assert!(Sysctls::new(&spec).is_err());
    }

    #[test]
    fn a_parameter_without_its_namespace_is_refused() {
        let mut linux = Linux::default();
        linux.set_namespaces(Some(vec![]));
        linux.set_sysctl(Some(
            [("net.core.somaxconn".to_owned(), "1".to_owned())].into(),
        ));
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        assert!(Sysctls::new(&spec).is_err());
    }
}
