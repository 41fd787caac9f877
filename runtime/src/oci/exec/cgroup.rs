//! Where `exec`'s process lives: the container's cgroup, or one below it that `--cgroup` names.

use std::path::{Component, Path, PathBuf};

use super::super::container_cgroup::{attempt, find};
use super::super::error::{Error, Result};
use super::super::store::Record;
use super::Options;
use crate::cgroup::Cgroup;

/// The cgroup; none when the container has none.
///
/// # Errors
/// When `--cgroup` names none of the container's.
pub(super) fn choose(record: &Record, options: &Options) -> Result<Option<Cgroup>> {
    let Some(own) = find(record)? else {
        if options.cgroup.is_empty() {
            return Ok(None);
        }
        return Err(Error::NoCgroup {
            id: record.id.clone(),
        });
    };
    if options.cgroup.is_empty() {
        // A container whose init has split its cgroup (v2) has no processes in it, and can have none.
        let home = own
            .home_of(record.pid)
            .map_err(attempt("look into", record))?;
        return Ok(Some(home.unwrap_or(own)));
    }
    let mut chosen = own;
    for choice in &options.cgroup {
        chosen = below(&chosen, choice, record)?;
    }
    Ok(Some(chosen))
}

/// `[CONTROLLER,…:]PATH`
fn below(own: &Cgroup, choice: &str, record: &Record) -> Result<Cgroup> {
    let (controllers, path) = match choice.split_once(':') {
        Some((controllers, path)) => (controllers, path),
        None => ("", choice),
    };
    let path = inside(path)?;
    let controllers: Vec<&str> = controllers.split(',').filter(|it| !it.is_empty()).collect();
    let chosen = own
        .below(&path, &controllers)
        .map_err(attempt("look into", record))?;
    if chosen.exists_everywhere() {
        Ok(chosen)
    } else {
        Err(argument(&format!(
            "{} is not there below the container's cgroup",
            path.display()
        )))
    }
}

/// A path that does not lead out.
fn inside(path: &str) -> Result<PathBuf> {
    let mut plain = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(argument("must not hold .."));
            }
        }
    }
    Ok(plain)
}

fn argument(reason: &str) -> Error {
    Error::Argument {
        argument: "--cgroup",
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_of_exec_is_below_the_containers() {
        assert_eq!(inside("/").expect("fine"), Path::new(""));
        assert_eq!(inside("/a/./b").expect("fine"), Path::new("a/b"));
        assert!(inside("../a").is_err());
        assert!(inside("a/../../b").is_err());
    }
}
