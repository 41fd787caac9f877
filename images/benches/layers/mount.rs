//! What an image adds to the start of a container: one overlay mount, however many layers.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Instant;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::Effort;
use crate::table::{Budget, Samples, Table};

pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: String| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let layers: Vec<PathBuf> = (0..100).map(|i| make(format!("layer{i}"))).collect();
    for count in [1, 10, 100] {
        let mut samples = Samples::default();
        for i in 0..effort.runs * 10 {
            // New ones each time: a volatile overlay leaves a mark that forbids another mount.
            let (upper, work) = (make(format!("u{count}-{i}")), make(format!("w{count}-{i}")));
            let before = Instant::now();
            let mounted = mount(&layers[..count], &upper, &work);
            samples.push(before.elapsed());
            drop(mounted);
        }
        let median = samples.median_ms().unwrap();
        let what = format!("overlay mount of {count} layers");
        table.row(&what, median, "ms", &[], Budget::Absolute(1.0));
    }
}

/// As the runtime does it: the layers by descriptor, in a mount that no namespace has yet.
fn mount(layers: &[PathBuf], upper: &PathBuf, work: &PathBuf) -> rustix::fd::OwnedFd {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let set = |key: &str, path: &PathBuf| {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, path).unwrap();
    };
    for layer in layers {
        set("lowerdir+", layer);
    }
    set("upperdir", upper);
    set("workdir", work);
    rustix::mount::fsconfig_set_flag(context.as_fd(), "volatile").unwrap();
    rustix::mount::fsconfig_create(context.as_fd()).unwrap();
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty()).unwrap()
}
