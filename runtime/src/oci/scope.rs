//! Containers in scopes of systemd's (`--systemd-cgroup`).
//!
//! ```text
//! placeholder ── StartTransientUnit(its pid, limits as properties) ──► scope, with a cgroup
//! container ── born in that cgroup, as everywhere ──► placeholder is killed; the container keeps the scope
//! ```
//!
//! A scope begins with a process that runs already, while a container's first process is born in its cgroup. So a
//! process that does nothing stands in until then.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxResources, Spec};
use podling_systemd::{Bus, Property, PropertyValue, blocking};

use super::error::{Error, Result};
use super::store::Unit;
use crate::cgroup::{Cgroup, Layout, systemd};
use crate::sys::{clone, pidfd};

/// systemd's own default (systemd-system.conf(5), `DefaultTimeoutStopSec=`).
const STOP_TIMEOUT: Duration = Duration::from_secs(90);

/// Annotations that are properties of the unit, as crun, runc and their callers have them.
const ANNOTATION: &str = "org.systemd.property.";

/// How long the threads of a closed connection have to be gone: they have ended, but the kernel may still list them.
const THREADS_END: Duration = Duration::from_secs(5);

/// A scope without its container yet.
#[derive(Debug)]
pub(super) struct Scope {
    /// The unit, for the record.
    pub(super) unit: Unit,
    /// Its cgroup.
    pub(super) cgroup: Cgroup,
    /// Keeps the scope until the container is in it.
    placeholder: Placeholder,
}

impl Scope {
    /// Makes the scope, its limits as properties.
    ///
    /// # Errors
    /// When `linux.cgroupsPath` is no `slice:prefix:name`, or systemd refuses. Nothing is left then.
    pub(super) fn start(
        id: &str,
        spec: &Spec,
        resources: &LinuxResources,
        user: bool,
    ) -> Result<Self> {
        let failed = |source| Error::Cgroup {
            attempt: "prepare",
            id: id.to_owned(),
            source,
        };
        let path = ScopePath::of(id, spec, user)?;
        let layout = Layout::detect().map_err(failed)?;
        let mut properties = systemd::accounting(layout.is_v2());
        // Or shutting down would stop containers before those who look after them.
        properties.push(Property::new(
            "DefaultDependencies",
            PropertyValue::Bool(false),
        ));
        properties.extend(systemd::properties(resources, layout.is_v2()).map_err(failed)?);
        properties.extend(annotated(spec)?);

        let unit = Unit {
            name: path.unit,
            user,
        };
        let placeholder = Placeholder::start()?;
        let started = blocking::start_scope(
            bus(user),
            &podling_systemd::Scope {
                name: &unit.name,
                slice: &path.slice,
                description: &format!("podling-runtime container {id}"),
                pids: &[placeholder.pid()],
                stop_timeout: STOP_TIMEOUT,
                before: &[],
                properties: &properties,
            },
        );
        await_one_thread()?;
        let directory = started.map_err(|source| refused(&unit, source))?;
        let cgroup = in_every_hierarchy(&layout, &directory);
        match cgroup {
            Ok(cgroup) => Ok(Self {
                unit,
                cgroup,
                placeholder,
            }),
            Err(error) => {
                drop(placeholder);
                stop(&unit)?;
                Err(failed(error))
            }
        }
    }

    /// The container is in it: from now on it ends with the container.
    pub(super) fn release(&mut self) {
        self.placeholder.end();
    }

    /// Takes it back.
    pub(super) fn undo(&mut self) {
        self.placeholder.end();
        if let Err(error) = stop(&self.unit) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a scope stays");
        }
    }
}

/// systemd makes a scope's cgroup in its own v1 hierarchy and in those of controllers that the unit uses; what is
/// missing is made here.
fn in_every_hierarchy(layout: &Layout, path: &std::path::Path) -> crate::cgroup::Result<Cgroup> {
    if layout.is_v2() {
        Ok(Cgroup::open(layout, path))
    } else {
        Cgroup::create(layout, path)
    }
}

/// Stops a scope. One that has ended is fine.
///
/// # Errors
/// When systemd refuses.
pub(super) fn stop(unit: &Unit) -> Result<()> {
    blocking::stop_scope(bus(unit.user), &unit.name).map_err(|source| refused(unit, source))
}

/// Tells systemd of other limits.
///
/// # Errors
/// When systemd refuses them; none is changed then.
pub(super) fn update(unit: &Unit, id: &str, resources: &LinuxResources, is_v2: bool) -> Result<()> {
    let properties = systemd::properties(resources, is_v2).map_err(|source| Error::Cgroup {
        attempt: "limit",
        id: id.to_owned(),
        source,
    })?;
    if properties.is_empty() {
        return Ok(());
    }
    blocking::set_properties(bus(unit.user), &unit.name, &properties)
        .map_err(|source| refused(unit, source))
}

fn bus(user: bool) -> Bus {
    if user { Bus::User } else { Bus::System }
}

fn refused(unit: &Unit, source: podling_systemd::Error) -> Error {
    Error::Systemd {
        unit: unit.name.clone(),
        source: Box::new(source),
    }
}

/// `linux.cgroupsPath` as slice and unit.
#[derive(Debug, PartialEq, Eq)]
struct ScopePath {
    slice: String,
    unit: String,
}

impl ScopePath {
    fn of(id: &str, spec: &Spec, user: bool) -> Result<Self> {
        let path = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.cgroups_path().clone())
            .unwrap_or_else(|| PathBuf::from(format!(":podling-runtime:{id}")));
        let text = path.to_string_lossy();
        if text.is_empty() {
            return Self::parse(&format!(":podling-runtime:{id}"), user);
        }
        Self::parse(&text, user)
    }

    /// `slice:prefix:name`, as in runc: the slice may be empty, the prefix too.
    fn parse(text: &str, user: bool) -> Result<Self> {
        let invalid = |reason: String| Error::Argument {
            argument: "linux.cgroupsPath",
            reason,
        };
        let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(invalid(format!(
                "{text:?} must be slice:prefix:name with --systemd-cgroup"
            )));
        };
        let slice = match slice {
            "" if user => "user.slice",
            "" => "system.slice",
            slice => slice,
        };
        let stem = slice.strip_suffix(".slice").unwrap_or_default();
        let well_formed = slice == "-.slice"
            || !(stem.is_empty()
                || stem.contains('/')
                || stem.starts_with('-')
                || stem.ends_with('-')
                || stem.contains("--"));
        if !well_formed {
            return Err(invalid(format!("{slice:?} is no name of a slice")));
        }
        if name.is_empty() || name.contains('/') || prefix.contains('/') {
            return Err(invalid(format!("{name:?} is no name of a scope")));
        }
        if name.ends_with(".slice") {
            return Err(invalid(
                "a slice holds no processes; name a scope".to_owned(),
            ));
        }
        let unit = if prefix.is_empty() {
            format!("{name}.scope")
        } else {
            format!("{prefix}-{name}.scope")
        };
        Ok(Self {
            slice: slice.to_owned(),
            unit,
        })
    }
}

/// The properties that annotations ask for.
fn annotated(spec: &Spec) -> Result<Vec<Property>> {
    let mut list = Vec::new();
    for (key, text) in spec.annotations().iter().flatten() {
        let Some(name) = key.strip_prefix(ANNOTATION) else {
            continue;
        };
        let property = Property::parse(name, text).map_err(|reason| Error::Argument {
            argument: "annotations",
            reason: format!("{key}: {reason}"),
        })?;
        list.push(property);
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

/// Waits until this process has one thread again, as cloning a container wants it.
fn await_one_thread() -> Result<()> {
    let deadline = Instant::now() + THREADS_END;
    let failed = |source| Error::Process {
        attempt: "look at",
        pid: std::process::id().cast_signed(),
        source,
    };
    while clone::thread_count().map_err(failed)? != 1 {
        if Instant::now() > deadline {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// A process that does nothing until it is killed; it ends with this one.
#[derive(Debug)]
struct Placeholder {
    child: Option<clone::Child>,
    pid: u32,
}

impl Placeholder {
    fn start() -> Result<Self> {
        let parent = rustix::process::getpid();
        let child = clone::clone_child(0, None, || {
            let signal = Some(rustix::process::Signal::KILL);
            let bound = rustix::process::set_parent_process_death_signal(signal);
            if bound.is_err() || rustix::process::getppid() != Some(parent) {
                return 1;
            }
            loop {
                nix::unistd::pause();
            }
        });
        let child = child.map_err(|source| Error::Process {
            attempt: "start a placeholder of",
            pid: parent.as_raw_nonzero().get(),
            source,
        })?;
        Ok(Self {
            pid: child.pid.cast_unsigned(),
            child: Some(child),
        })
    }

    fn pid(&self) -> u32 {
        self.pid
    }

    fn end(&mut self) {
        let Some(child) = self.child.take() else {
            return;
        };
        let ended = pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL)
            .and_then(|()| pidfd::wait(child.pidfd.as_fd()));
        if let Err(error) = ended {
            tracing::debug!(%error, "the placeholder had ended already");
        }
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_slice_prefix_and_name() {
        let path = |text, user| ScopePath::parse(text, user).map(|it| (it.slice, it.unit));
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            path("machine.slice:libpod:1234", false).expect("fine"),
            pair("machine.slice", "libpod-1234.scope")
        );
        assert_eq!(
            path(":p:n", false).expect("fine"),
            pair("system.slice", "p-n.scope")
        );
        assert_eq!(
            path(":p:n", true).expect("fine"),
            pair("user.slice", "p-n.scope")
        );
        assert_eq!(
            path("-.slice::n", true).expect("fine"),
            pair("-.slice", "n.scope")
        );
        for wrong in [
            "/a/b",
            "a:b",
            "a:b:c",
            "a.slice:b:",
            "a/b.slice:c:d",
            "-a.slice:b:c",
            "a--b.slice:c:d",
            "a.slice:b:c.slice",
            "a.slice:b:c:d",
        ] {
            assert!(path(wrong, false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn annotations_are_properties() {
        let mut spec = Spec::default();
        let annotations = [
            ("org.systemd.property.TimeoutStopUSec", "uint64 7"),
            ("org.systemd.property.KillSignal", "15"),
            ("another", "thing"),
        ];
        let annotations = annotations.map(|(k, v)| (k.to_owned(), v.to_owned()));
        spec.set_annotations(Some(annotations.into()));
        let names: Vec<String> = annotated(&spec)
            .expect("fine")
            .into_iter()
            .map(|it| it.name)
            .collect();
        assert_eq!(names, ["KillSignal", "TimeoutStopUSec"]);
        let wrong = [("org.systemd.property.X".to_owned(), "[".to_owned())];
        spec.set_annotations(Some(wrong.into()));
        assert!(annotated(&spec).is_err());
    }
}
