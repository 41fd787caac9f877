//! `linux.intelRdt`: the container's share of the processors' caches and memory bandwidth.
//!
//! ```text
//! /sys/fs/resctrl/                   the default class ("/")
//!     <closID, else container's name>/   schemata   one line for each resource
//!                                        tasks      who is in it
//!         mon_groups/<container's name>/ tasks      enableMonitoring
//! ```
//!
//! A class named after the container, and its monitoring group, are made for it and go with it; a class that the spec
//! names is somebody's and stays. Source: runtime-spec config-linux.md#intelrdt, Documentation/filesystems/resctrl.rst.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIntelRdt, Spec};
use rustix::fs::{Mode, OFlags};

use super::error::{Error, Result};

/// Where the file system is mounted.
const ROOT: &str = "/sys/fs/resctrl";
/// `RDTGROUP_SUPER_MAGIC` of linux/magic.h.
const MAGIC: i64 = 0x0765_5821;
/// Names that are the kernel's in each directory.
const RESERVED: [&str; 5] = [".", "..", "info", "mon_groups", "mon_data"];

/// The class of a container.
#[derive(Debug, PartialEq, Eq)]
struct Class {
    directory: PathBuf,
    /// It was named after the container: made for it, and removed with it.
    own: bool,
    /// What is written to `schemata`, in this order.
    schemata: Vec<String>,
    monitoring: Option<PathBuf>,
}

/// Refuses what cannot be given, before anything is created.
///
/// # Errors
/// When there is no resctrl file system, or a name or a line is none.
pub fn validate(spec: &Spec) -> Result<()> {
    let Some(asked) = asked(spec) else {
        return Ok(());
    };
    // The name of a container is checked elsewhere.
    Class::new(asked, "container", Path::new(ROOT))?;
    let is_there = rustix::fs::open(ROOT, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .and_then(|root| rustix::fs::fstatfs(&root))
        .is_ok_and(|root| root.f_type == MAGIC);
    if is_there {
        Ok(())
    } else {
        Err(Error::Unsupported {
            field: "linux.intelRdt".to_owned(),
            reason: format!(
                "no resctrl file system is mounted at {ROOT} (mount -t resctrl resctrl {ROOT}, on a machine that has it)"
            ),
        })
    }
}

/// True when the spec asks for a class.
pub fn is_asked(spec: &Spec) -> bool {
    asked(spec).is_some()
}

/// Puts a process into the container's class. Nothing is left when that fails.
pub(super) fn assign(spec: &Spec, id: &str, pid: i32) -> Result<()> {
    let Some(asked) = asked(spec) else {
        return Ok(());
    };
    Class::new(asked, id, Path::new(ROOT))?.assign(pid)
}

/// Writes lines of schemata to the class that a container has. One that the spec names is changed for all in it.
///
/// # Errors
/// When the kernel refuses a line; then it has taken none.
pub fn change(spec: &Spec, id: &str, lines: &[&str]) -> Result<()> {
    match asked(spec) {
        Some(asked) => Class::new(asked, id, Path::new(ROOT))?.change(lines),
        None => Ok(()),
    }
}

/// As at a container's creation, for one that runs: makes its class and puts its threads into it. `threads` is asked
/// until it names none that was not moved: those made meanwhile are in their maker's class.
///
/// # Errors
/// As at creation; nothing is left then.
pub fn assign_running(
    spec: &Spec,
    id: &str,
    pid: i32,
    threads: impl Fn() -> io::Result<Vec<i32>>,
) -> Result<()> {
    let Some(asked) = asked(spec) else {
        return Ok(());
    };
    let class = Class::new(asked, id, Path::new(ROOT))?;
    class.assign(pid)?;
    class.gather(pid, threads).or_else(|error| {
        class.release()?;
        Err(error)
    })
}

/// Removes what was made for a container whose processes are gone.
///
/// # Errors
/// When a directory cannot be removed; one that is not there is fine.
pub fn release(spec: &Spec, id: &str) -> Result<()> {
    match asked(spec) {
        Some(asked) => Class::new(asked, id, Path::new(ROOT))?.release(),
        None => Ok(()),
    }
}

fn asked(spec: &Spec) -> Option<&LinuxIntelRdt> {
    spec.linux().as_ref()?.intel_rdt().as_ref()
}

impl Class {
    fn new(asked: &LinuxIntelRdt, id: &str, root: &Path) -> Result<Self> {
        let name = asked.clos_id().as_deref().filter(|name| !name.is_empty());
        let directory = match name {
            Some("/") => root.to_owned(),
            Some(name) if RESERVED.contains(&name) || name.contains(['/', '\0', '\n']) => {
                return Err(invalid("closID", "is no name of a class"));
            }
            Some(name) => root.join(name),
            None => root.join(id),
        };
        let mut schemata = Vec::new();
        for (field, prefix, line) in [
            ("l3CacheSchema", "L3", asked.l3_cache_schema()),
            ("memBwSchema", "MB:", asked.mem_bw_schema()),
        ] {
            if let Some(line) = line {
                if !line.starts_with(prefix) {
                    return Err(invalid(field, &format!("must start with {prefix}")));
                }
                schemata.push(checked(field, line)?);
            }
        }
        for line in asked.schemata().iter().flatten() {
            schemata.push(checked("schemata", line)?);
        }
        Ok(Self {
            monitoring: asked
                .enable_monitoring()
                .unwrap_or(false)
                .then(|| directory.join("mon_groups").join(id)),
            directory,
            own: name.is_none(),
            schemata,
        })
    }

    fn assign(&self, pid: i32) -> Result<()> {
        let mut made = Vec::new();
        self.fill(pid, &mut made).inspect_err(|_| {
            for directory in made.iter().rev() {
                if let Err(error) = fs::remove_dir(directory) {
                    tracing::warn!(%error, path = %directory.display(), "a resctrl group stays");
                }
            }
        })
    }

    /// `made` are the directories that were not there before.
    fn fill<'a>(&'a self, pid: i32, made: &mut Vec<&'a Path>) -> Result<()> {
        match fs::create_dir(&self.directory) {
            Ok(()) => {
                made.push(&self.directory);
                if !self.own && self.schemata.is_empty() {
                    return Err(invalid("closID", "there is no class of that name"));
                }
                self.write_schemata()?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !self.own => {
                self.compare_schemata()?;
            }
            Err(error) => return Err(failed("make", &self.directory)(error)),
        }
        if let Some(group) = &self.monitoring {
            fs::create_dir(group).map_err(failed("make", group))?;
            made.push(group);
            write(&group.join("tasks"), &pid.to_string())?;
        }
        write(&self.directory.join("tasks"), &pid.to_string())
    }

    /// `first` is there already.
    fn gather(&self, first: i32, threads: impl Fn() -> io::Result<Vec<i32>>) -> Result<()> {
        let file = self.directory.join("tasks");
        let mut moved = HashSet::from([first]);
        loop {
            let found = threads().map_err(failed("find the threads for", &file))?;
            let new: Vec<i32> = found.into_iter().filter(|it| moved.insert(*it)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for thread in new {
                match fs::write(&file, thread.to_string()) {
                    // It has ended.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    result => result.map_err(failed("write", &file))?,
                }
            }
        }
    }

    /// The kernel takes one write as one change.
    fn change(&self, lines: &[&str]) -> Result<()> {
        let mut text = String::new();
        for line in lines {
            text.push_str(&checked("schemata", line)?);
            text.push('\n');
        }
        write(&self.directory.join("schemata"), &text)
    }

    fn write_schemata(&self) -> Result<()> {
        let file = self.directory.join("schemata");
        self.schemata
            .iter()
            .try_for_each(|line| write(&file, &format!("{line}\n")))
    }

    /// A class that is there must be what the spec says it is; it is never changed.
    fn compare_schemata(&self) -> Result<()> {
        let file = self.directory.join("schemata");
        let there = fs::read_to_string(&file).map_err(failed("read", &file))?;
        let there: Vec<String> = there.lines().map(normal).collect();
        match self
            .schemata
            .iter()
            .find(|line| !there.contains(&normal(line)))
        {
            None => Ok(()),
            Some(line) => Err(invalid(
                "closID",
                &format!("the class is there, and its schemata are not {line:?}"),
            )),
        }
    }

    fn release(&self) -> Result<()> {
        let own = self.own.then_some(&self.directory);
        for directory in self.monitoring.iter().chain(own) {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", directory)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A line of `schemata` without what the kernel pads it with: blanks, and zeros before a mask.
fn normal(line: &str) -> String {
    let line: String = line.chars().filter(|c| !c.is_whitespace()).collect();
    let value = |part: &str| match part.split_once('=') {
        Some((cache, mask)) => format!("{cache}={}", mask.trim_start_matches('0')),
        None => part.to_owned(),
    };
    match line.split_once(':') {
        Some((resource, values)) => {
            let values: Vec<String> = values.split(';').map(value).collect();
            format!("{resource}:{}", values.join(";"))
        }
        None => line,
    }
}

fn checked(field: &str, line: &str) -> Result<String> {
    if line.contains(['\n', '\0']) {
        Err(invalid(field, "must be one line"))
    } else {
        Ok(line.to_owned())
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(failed("write", path))
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Resctrl {
        attempt,
        path: path.to_owned(),
        source,
    }
}

fn invalid(field: &str, reason: &str) -> Error {
    Error::Invalid {
        field: format!("linux.intelRdt.{field}"),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A directory that looks like the file system, but makes no files by itself.
    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("directory");
        fs::write(root.path().join("tasks"), "").expect("file");
        fs::write(
            root.path().join("schemata"),
            "    L3:0=00ff;1=ff\nMB:0=100\n",
        )
        .expect("file");
        root
    }

    fn class(asked: Value, root: &Path) -> Result<Class> {
        let asked = serde_json::from_value(asked).expect("intelRdt");
        Class::new(&asked, "name", root)
    }

    fn tasks(directory: &Path) -> String {
        fs::read_to_string(directory.join("tasks")).expect("reads")
    }

    #[test]
    fn the_default_class_is_the_root() {
        let root = root();
        let class = class(json!({"closID": "/"}), root.path()).expect("plans");
        class.assign(7).expect("assigns");
        assert_eq!(tasks(root.path()), "7");
        class.release().expect("releases");
        assert!(root.path().exists());
    }

    #[test]
    fn a_class_is_changed_where_it_is() {
        let root = root();
        // Joined as a path, this name would lead out of the file system.
        let class = class(json!({"closID": "/"}), root.path()).expect("plans");
        class.change(&["L3:0=f", "MB:0=50"]).expect("changes");
        let schemata = fs::read_to_string(root.path().join("schemata"));
        assert!(schemata.expect("reads").starts_with("L3:0=f\nMB:0=50\n"));
        assert!(class.change(&["L3:0=f\nMB:0=1"]).is_err());
    }

    #[test]
    fn threads_are_gathered_until_no_new_one_is_found() {
        let root = root();
        let class = class(json!({"closID": "/"}), root.path()).expect("plans");
        let passes = std::cell::Cell::new(0);
        let threads = || {
            passes.set(passes.get() + 1);
            Ok((7..8 + passes.get().min(3)).collect())
        };
        class.gather(7, threads).expect("gathers");
        assert_eq!((tasks(root.path()).as_str(), passes.get()), ("10", 4));
    }

    #[test]
    fn a_class_that_is_there_is_compared_and_stays() {
        let root = root();
        let fits =
            json!({"closID": "/", "l3CacheSchema": "L3:0=ff;1=ff", "schemata": ["MB:0=100"]});
        class(fits, root.path())
            .expect("plans")
            .assign(7)
            .expect("assigns");
        let other = json!({"closID": "/", "memBwSchema": "MB:0=50"});
        let error = class(other, root.path())
            .expect("plans")
            .assign(7)
            .expect_err("differs");
        assert!(
            error.to_string().starts_with("linux.intelRdt.closID"),
            "{error}"
        );
    }

    #[test]
    fn a_named_class_without_schemata_must_be_there() {
        let root = root();
        let error = class(json!({"closID": "gold"}), root.path())
            .expect("plans")
            .assign(7);
        assert!(error.is_err());
        assert!(!root.path().join("gold").exists());
    }

    #[test]
    fn another_ones_class_is_not_taken_nor_removed() {
        let root = root();
        fs::create_dir(root.path().join("name")).expect("directory");
        let class = class(json!({}), root.path()).expect("plans");
        class.assign(7).expect_err("there already");
        assert!(root.path().join("name").exists());
    }

    #[test]
    fn what_was_made_for_the_container_goes_with_it() {
        let root = root();
        let class = class(json!({"enableMonitoring": true}), root.path()).expect("plans");
        assert_eq!(class.directory, root.path().join("name"));
        let group = root.path().join("name/mon_groups/name");
        assert_eq!(class.monitoring.as_deref(), Some(group.as_path()));
        fs::create_dir_all(&group).expect("directory");
        fs::remove_dir(&group).expect("removes");
        fs::remove_dir(root.path().join("name/mon_groups")).expect("removes");
        class.release().expect("releases");
        assert!(!root.path().join("name").exists());
        class.release().expect("nothing is left to release");
    }

    #[test]
    fn names_and_lines_are_checked() {
        for wrong in [
            json!({"closID": "../x"}),
            json!({"closID": "info"}),
            json!({"closID": ".."}),
            json!({"l3CacheSchema": "MB:0=1"}),
            json!({"memBwSchema": "L3:0=1"}),
            json!({"schemata": ["L3:0=1\nMB:0=1"]}),
        ] {
            assert!(class(wrong.clone(), Path::new("/r")).is_err(), "{wrong}");
        }
        let planned = class(
            json!({"l3CacheSchema": "L3:0=1", "memBwSchema": "MB:0=2", "schemata": ["L2:0=3"]}),
            Path::new("/r"),
        );
        assert_eq!(
            planned.expect("plans").schemata,
            ["L3:0=1", "MB:0=2", "L2:0=3"]
        );
    }
}
