//! Directories: making them, walking them, removing them.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::control;
use super::error::{Error, Result};

/// How long a removal waits for processes that are ending. A killed process leaves within milliseconds; one that
/// writes a core dump or frees a lot of memory takes seconds.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);

/// The first and the longest pause between two tries to remove: v1 tells nobody when a cgroup becomes empty.
const REMOVE_PAUSE: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));

/// The v2 controllers that Podling uses.
const V2_CONTROLLERS: [&str; 8] = [
    "cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc",
];

/// `path` with only its plain components, absolute: no `..` leads out of a hierarchy.
pub(super) fn normalise(path: &Path) -> PathBuf {
    let plain = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => {
            None
        }
    });
    std::iter::once(std::ffi::OsStr::new("/"))
        .chain(plain)
        .collect()
}

/// `root` and each directory below it on the way to `path`, which is normalised.
fn steps(root: &Path, path: &Path) -> Vec<PathBuf> {
    let mut dir = root.to_owned();
    let mut dirs = vec![dir.clone()];
    for component in path.components().skip(1) {
        dir.push(component);
        dirs.push(dir.clone());
    }
    dirs
}

/// Makes `path` in a v2 hierarchy, and gives the controllers that are to be had to each cgroup on the way.
///
/// A cgroup with processes of its own cannot give controllers to its children, and a delegated one may lack some. That is no error here: a limit that needs a missing one is refused when it is applied.
pub(super) fn create_v2(root: &Path, path: &Path) -> Result<()> {
    let dirs = steps(root, path);
    // The usual case in one system call: everything above is there already.
    if let [.., parent, dir] = dirs.as_slice() {
        match fs::create_dir(dir) {
            Ok(()) => return enable_controllers(parent),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return enable_controllers(parent);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::Create {
                    path: dir.clone(),
                    source,
                });
            }
        }
    }
    for pair in dirs.windows(2) {
        make_directory(&pair[1])?;
        enable_controllers(&pair[0])?;
    }
    Ok(())
}

/// Gives the children of `dir` all controllers that Podling uses and `dir` has.
fn enable_controllers(dir: &Path) -> Result<()> {
    let available = control::read(dir, "cgroup.controllers")?.unwrap_or_default();
    let enabled = control::read(dir, "cgroup.subtree_control")?.unwrap_or_default();
    let missing: Vec<String> = available
        .split_whitespace()
        .filter(|name| V2_CONTROLLERS.contains(name))
        .filter(|name| !enabled.split_whitespace().any(|other| other == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() || holds_processes(dir)? {
        return Ok(());
    }
    // One write waits for the kernel once; only where one controller is refused are they tried one by one.
    if control::try_write(dir, "cgroup.subtree_control", &missing.join(" ")).is_ok() {
        return Ok(());
    }
    for name in &missing {
        if let Err(error) = control::try_write(dir, "cgroup.subtree_control", name) {
            tracing::debug!(cgroup = %dir.display(), controller = %name, %error, "controller not enabled");
        }
    }
    Ok(())
}

/// True for a cgroup that has processes and is not the root. The kernel would refuse it most controllers, but take
/// those that work by thread (cpu, cpuset, pids): then it becomes a threaded domain, and no process can join its
/// children (EOPNOTSUPP).
fn holds_processes(dir: &Path) -> Result<bool> {
    // Only the root has no type.
    if control::read(dir, "cgroup.type")?.is_none() {
        return Ok(false);
    }
    let processes = control::read(dir, "cgroup.procs")?.unwrap_or_default();
    Ok(!processes.is_empty())
}

/// Makes `path` in a v1 hierarchy. In the cpuset hierarchy each new cgroup takes its parent's processors and memory
/// nodes: it starts with none, and no process can join it then.
pub(super) fn create_v1(root: &Path, path: &Path, is_cpuset: bool) -> Result<()> {
    let dirs = steps(root, path);
    if is_cpuset {
        return create_cpuset(&dirs);
    }
    // The usual case in one system call: everything above is there already.
    if let Some(dir) = dirs.last()
        && fs::create_dir(dir).is_ok()
    {
        return Ok(());
    }
    dirs.iter()
        .skip(1)
        .try_for_each(|dir| make_directory(dir).map(drop))
}

fn create_cpuset(dirs: &[PathBuf]) -> Result<()> {
    const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
    // The usual case: everything above is there, and has processors and memory nodes.
    if let [.., parent, dir] = dirs
        && fs::create_dir(dir).is_ok()
    {
        let known = FILES.map(|file| control::read(parent, file).unwrap_or_default());
        if let [Some(cpus), Some(mems)] = &known
            && !cpus.trim().is_empty()
            && !mems.trim().is_empty()
        {
            control::write(dir, FILES[0], cpus.trim())?;
            return control::write(dir, FILES[1], mems.trim());
        }
    }
    // What the directory above has, where it is known.
    let mut above: [Option<String>; 2] = [None, None];
    for pair in dirs.windows(2) {
        let (parent, dir) = (&pair[0], &pair[1]);
        let is_new = make_directory(dir)?;
        for (file, above) in FILES.iter().zip(&mut above) {
            let own = if is_new {
                String::new()
            } else {
                control::read(dir, file)?.unwrap_or_default()
            };
            if !own.trim().is_empty() {
                *above = Some(own);
                continue;
            }
            let inherited = match above.take() {
                Some(known) => known,
                None => control::read(parent, file)?.unwrap_or_default(),
            };
            control::write(dir, file, inherited.trim())?;
            *above = Some(inherited);
        }
    }
    Ok(())
}

/// Makes a directory, or leaves the one that is there: true when it is new.
fn make_directory(dir: &Path) -> Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(Error::Create {
            path: dir.to_owned(),
            source,
        }),
    }
}

/// The cgroup itself and all below it, parents first. Empty when it is gone.
pub(super) fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(next) = waiting.pop() {
        let Some(children) = child_directories(&next)? else {
            continue;
        };
        waiting.extend(children);
        found.push(next);
    }
    Ok(found)
}

/// The directories in `dir`; `None` when it is gone.
fn child_directories(dir: &Path) -> Result<Option<Vec<PathBuf>>> {
    let error = |source: io::Error| Error::Read {
        path: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) if control::is_gone(&source) => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(source) if control::is_gone(&source) => return Ok(None),
            Err(source) => return Err(error(source)),
        };
        if entry.file_type().map_err(error)?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(Some(children))
}

/// The processes of `dir` and of all cgroups below it.
pub(super) fn processes(dir: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for cgroup in walk(dir)? {
        let Some(text) = control::read(&cgroup, "cgroup.procs")? else {
            continue;
        };
        for line in text.lines() {
            let pid: i32 = line
                .parse()
                .map_err(|_| control::parse_error(cgroup.join("cgroup.procs"), line))?;
            // 0 stands for a process that this process's pid namespace does not show.
            if pid != 0 {
                pids.push(pid);
            }
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// Removes `dir` if nothing is in it, neither processes nor cgroups: true when it is gone.
pub(super) fn remove_if_empty(dir: &Path) -> Result<bool> {
    Ok(remove_directory(dir)?.is_none())
}

/// Removes `dir` and all below it, and waits a bounded time for processes that are ending.
pub(super) fn remove(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + REMOVE_DEADLINE;
    let (mut pause, longest_pause) = REMOVE_PAUSE;
    loop {
        let source = match remove_once(dir)? {
            None => return Ok(()),
            Some(source) => source,
        };
        if Instant::now() >= deadline {
            return Err(Error::Delete {
                path: dir.to_owned(),
                source,
            });
        }
        sleep(pause);
        pause = (pause * 2).min(longest_pause);
    }
}

/// One try. The busy error comes back when processes or children are left.
fn remove_once(dir: &Path) -> Result<Option<io::Error>> {
    let Some(mut busy) = remove_directory(dir)? else {
        return Ok(None);
    };
    for cgroup in walk(dir)?.iter().rev() {
        if let Some(error) = remove_directory(cgroup)? {
            busy = error;
        } else if cgroup == dir {
            return Ok(None);
        }
    }
    Ok(Some(busy))
}

/// `rmdir`; the error comes back when it says that the cgroup is in use.
fn remove_directory(dir: &Path) -> Result<Option<io::Error>> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(None),
        Err(error) if control::is_gone(&error) => Ok(None),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ResourceBusy | ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(Some(error))
        }
        Err(source) => Err(Error::Delete {
            path: dir.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_its_hierarchy() {
        assert_eq!(normalise(Path::new("../../etc")), Path::new("/etc"));
        assert_eq!(normalise(Path::new("/a/./b/../c")), Path::new("/a/b/c"));
        assert_eq!(normalise(Path::new("")), Path::new("/"));
    }

    #[test]
    fn steps_lead_from_the_root() {
        let dirs = steps(Path::new("/sys/fs/cgroup"), Path::new("/a/b"));
        assert_eq!(
            dirs,
            ["/sys/fs/cgroup", "/sys/fs/cgroup/a", "/sys/fs/cgroup/a/b"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_tree_is_removed_from_its_leaves_and_again_without_error() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a");
        fs::create_dir_all(dir.join("b/c")).unwrap();
        fs::create_dir_all(dir.join("d")).unwrap();
        assert_eq!(walk(&dir).unwrap().len(), 4);
        remove(&dir).unwrap();
        assert!(!dir.exists());
        remove(&dir).unwrap();
        assert!(walk(&dir).unwrap().is_empty());
    }
}
