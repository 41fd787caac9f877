//! `linux.mountLabel`: the SELinux label of all files of the container's new file systems. What the kernel fills it
//! labels itself.

use oci_spec::runtime::Spec;

/// File systems whose files are the kernel's, or of which a namespace has one.
const KERNELS_OWN: [&str; 5] = ["proc", "sysfs", "cgroup", "cgroup2", "mqueue"];

/// Adds the label to the options of a new file system, unless they have one.
pub(super) fn add(spec: &Spec, filesystem: &str, options: &mut Vec<(String, Option<String>)>) {
    let label = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.mount_label().as_ref())
        .filter(|label| !label.is_empty());
    if let Some(label) = label
        && !KERNELS_OWN.contains(&filesystem)
        && options.iter().all(|(name, _)| name != "context")
    {
        options.push(("context".to_owned(), Some(label.clone())));
    }
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
    fn without_a_label_nothing_is_added() {
        let mut options = vec![];
        add(&Spec::default(), "tmpfs", &mut options);
        assert!(options.is_empty());
    }
}
