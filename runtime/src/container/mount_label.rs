//! `linux.mountLabel`: the SELinux label of all files of the container's new file systems. What the kernel fills it
//! labels itself. An IPC namespace has one mqueue, which the kernel has mounted already: only its root takes the label,
//! and what is made in it follows.

use std::io;
use std::os::fd::BorrowedFd;

use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags, XattrFlags};

/// File systems whose files are the kernel's, or of which a namespace has one.
const KERNELS_OWN: [&str; 5] = ["proc", "sysfs", "cgroup", "cgroup2", "mqueue"];

/// Options whose values are labels. mount(8) has them in quotes, for labels hold commas; fsconfig(2) has not.
const LABELS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// Adds the label to the options of a new file system, unless they have one.
pub(super) fn add(spec: &Spec, filesystem: &str, options: &mut Vec<(String, Option<String>)>) {
    for (name, value) in options.iter_mut() {
        if let Some(text) = value
            && LABELS.contains(&name.as_str())
        {
            let bare = text.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
            if let Some(bare) = bare.map(str::to_owned) {
                *text = bare;
            }
        }
    }
    if let Some(label) = asked(spec)
        && !KERNELS_OWN.contains(&filesystem)
        && options.iter().all(|(name, _)| name != "context")
    {
        options.push(("context".to_owned(), Some(label.to_owned())));
    }
}

/// The label that the root of a file system is to have instead.
pub(super) fn of_root(spec: &Spec, filesystem: &str) -> Option<String> {
    asked(spec)
        .filter(|_| filesystem == "mqueue")
        .map(str::to_owned)
}

/// Labels the root of a mount.
///
/// # Errors
/// What fsetxattr(2) says.
pub(super) fn set_on_root(mount: BorrowedFd<'_>, label: &str) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(mount, c".", flags, Mode::empty())?;
    let name = c"security.selinux";
    Ok(rustix::fs::fsetxattr(
        root,
        name,
        label.as_bytes(),
        XattrFlags::empty(),
    )?)
}

/// The label, if there is one.
pub(super) fn asked(spec: &Spec) -> Option<&str> {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.mount_label().as_deref())
        .filter(|label| !label.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_file_systems_have_the_label() {
        let mut spec = Spec::default();
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        spec.linux_mut()
            .as_mut()
            .expect("linux")
            .set_mount_label(Some(label.to_owned()));
        let with = |filesystem, mut options: Vec<(String, Option<String>)>| {
            add(&spec, filesystem, &mut options);
            options
        };
        let context = |label: &str| vec![("context".to_owned(), Some(label.to_owned()))];
        for filesystem in ["tmpfs", "devpts"] {
            assert_eq!(with(filesystem, vec![]), context(label));
        }
        assert_eq!(with("tmpfs", context("mine")), context("mine"));
        for filesystem in KERNELS_OWN {
            assert_eq!(with(filesystem, vec![]), []);
        }
    }

    #[test]
    fn only_the_root_of_mqueue_has_it() {
        let mut spec = Spec::default();
        assert_eq!(of_root(&spec, "mqueue"), None);
        let linux = spec.linux_mut().as_mut().expect("linux");
        linux.set_mount_label(Some("a:b:c:s0".to_owned()));
        assert_eq!(of_root(&spec, "mqueue").as_deref(), Some("a:b:c:s0"));
        assert_eq!(of_root(&spec, "tmpfs"), None);
    }

    #[test]
    fn quotes_of_mount_options_are_not_the_labels() {
        let quoted = |text: &str| ("fscontext".to_owned(), Some(text.to_owned()));
        let mut options = vec![quoted("\"a:b:c:s0:c1,c2\""), ("size".to_owned(), None)];
        add(&Spec::default(), "tmpfs", &mut options);
        assert_eq!(options[0], quoted("a:b:c:s0:c1,c2"));
        let mut options = vec![quoted("a:b:c:s0")];
        add(&Spec::default(), "tmpfs", &mut options);
        assert_eq!(options, [quoted("a:b:c:s0")]);
    }

    #[test]
    fn without_a_label_nothing_is_added() {
        let mut options = vec![];
        add(&Spec::default(), "tmpfs", &mut options);
        assert!(options.is_empty());
    }
}
