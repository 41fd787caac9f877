//! systemd's manager on the system bus: transient scopes (org.freedesktop.systemd1(5)).

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, Value};

use crate::property::Property;

/// How long a job may take. systemd answers within milliseconds, but while the machine boots or shuts down its queue
/// is long.
const JOB_DEADLINE: Duration = Duration::from_secs(60);

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// What was asked of systemd, and why it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// systemd runs the machine but cannot be talked to.
    #[error("cannot reach systemd on the system bus")]
    Connect(#[source] zbus::Error),
    /// systemd does not run this machine.
    #[error("systemd does not run this machine")]
    NotRunning,
    /// There is no asynchronous runtime to be had.
    #[error("cannot prepare to speak with systemd")]
    Runtime(#[source] std::io::Error),
    /// systemd refused a request.
    #[error("systemd did not {request} {unit}")]
    Request {
        /// `start`, `stop`, …
        request: &'static str,
        /// The unit.
        unit: String,
        /// Why.
        #[source]
        source: Box<zbus::Error>,
    },
    /// A scope of this name is there already.
    #[error("systemd has a unit {unit} already")]
    Exists {
        /// The unit.
        unit: String,
    },
    /// The job ended otherwise than by success.
    #[error("systemd could not {request} {unit}: the job's result is {result:?}")]
    Job {
        /// `start` or `stop`.
        request: &'static str,
        /// The unit.
        unit: String,
        /// systemd's word: `canceled`, `timeout`, `failed`, `dependency`, `skipped`.
        result: String,
    },
    /// The job did not end in time.
    #[error("systemd did not {request} {unit} within {} s", JOB_DEADLINE.as_secs())]
    Deadline {
        /// `start` or `stop`.
        request: &'static str,
        /// The unit.
        unit: String,
    },
    /// The bus was closed while a job ran.
    #[error("the system bus was closed while {unit} was waited for")]
    Closed {
        /// The unit.
        unit: String,
    },
}

/// Which systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// The machine's.
    System,
    /// The user's own (`systemd --user`).
    User,
}

/// The cgroup of a scope, below the root of each hierarchy, such as `/podling.slice/podling-pod1234.scope`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopePath(pub PathBuf);

/// A scope to be made: processes that somebody else started, as a unit. It is delegated: systemd leaves the cgroups
/// below it alone.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    /// `podling-pod1234.scope`.
    pub name: &'a str,
    /// `podling.slice`.
    pub slice: &'a str,
    /// For `systemctl status`.
    pub description: &'a str,
    /// The processes that it begins with.
    pub pids: &'a [u32],
    /// How long its processes have, once it is stopped, before they are killed.
    pub stop_timeout: Duration,
    /// Units that start after this one, and so stop before it.
    pub before: &'a [&'a str],
    /// Others, set last.
    pub properties: &'a [Property],
}

/// A connection to systemd.
#[derive(Debug, Clone)]
pub struct Systemd {
    manager: ManagerProxy<'static>,
}

impl Systemd {
    /// Connects; `None` when systemd does not run the machine. A connection that was lost is not made again: connect
    /// anew.
    ///
    /// # Errors
    /// When systemd runs the machine but cannot be talked to.
    pub async fn connect() -> Result<Option<Self>> {
        Self::connect_to(Bus::System).await
    }

    /// As [`Systemd::connect`], to either systemd.
    ///
    /// # Errors
    /// When systemd runs the machine but cannot be talked to.
    pub async fn connect_to(bus: Bus) -> Result<Option<Self>> {
        if !crate::runs_the_machine() {
            return Ok(None);
        }
        let connection = match bus {
            Bus::System => zbus::Connection::system().await,
            Bus::User => user_bus().await,
        }
        .map_err(Error::Connect)?;
        let manager = ManagerProxy::new(&connection)
            .await
            .map_err(Error::Connect)?;
        // Without it systemd announces no job's end.
        manager.subscribe().await.map_err(Error::Connect)?;
        Ok(Some(Self { manager }))
    }

    /// Changes properties of a unit until it ends (`systemctl set-property --runtime`, without a file).
    ///
    /// # Errors
    /// When systemd refuses one; none is changed then.
    pub async fn set_properties(&self, unit: &str, properties: &[Property]) -> Result<()> {
        let properties: Vec<_> = properties.iter().map(Property::to_pair).collect();
        self.manager
            .set_unit_properties(unit, true, &properties)
            .await
            .map_err(|source| Error::Request {
                request: "change",
                unit: unit.to_owned(),
                source: Box::new(source),
            })
    }

    /// Makes a scope and waits until it is there.
    ///
    /// # Errors
    /// [`Error::Exists`] when there is a unit of this name; else when systemd refuses or does not answer in time.
    pub async fn start_scope(&self, scope: &Scope<'_>) -> Result<ScopePath> {
        // The rest of a scope of the same name whose processes were killed.
        if self.manager.reset_failed_unit(scope.name).await.is_err() {
            tracing::trace!(unit = scope.name, "no failed scope is left from before");
        }
        let request = Request {
            verb: "start",
            unit: scope.name,
        };
        let properties = properties(scope);
        let start = self
            .manager
            .start_transient_unit(scope.name, "fail", &properties, &[]);
        self.run(request, start).await?;
        let control_group = self
            .control_group(scope.name)
            .await
            .map_err(|source| request.refused(source))?;
        Ok(ScopePath(PathBuf::from(control_group)))
    }

    /// Gives a scope another share of the CPU, until it ends.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn set_cpu_weight(&self, name: &str, cpu_weight: u64) -> Result<()> {
        let properties = [("CPUWeight", Value::from(cpu_weight))];
        self.manager
            .set_unit_properties(name, true, &properties)
            .await
            .map_err(|source| Error::Request {
                request: "set the CPU weight of",
                unit: name.to_owned(),
                source: Box::new(source),
            })
    }

    /// Stops a scope: its processes get SIGTERM, and SIGKILL after its timeout. One that is not there is fine.
    ///
    /// # Errors
    /// When systemd refuses or does not answer in time.
    pub async fn stop_scope(&self, name: &str) -> Result<()> {
        let request = Request {
            verb: "stop",
            unit: name,
        };
        match self
            .run(request, self.manager.stop_unit(name, "replace"))
            .await
        {
            Err(Error::Request { source, .. }) if is_error(&source, "NoSuchUnit") => Ok(()),
            other => other,
        }
    }

    /// The cgroup of a unit that runs; `None` when there is none.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn scope_path(&self, name: &str) -> Result<Option<ScopePath>> {
        match self.control_group(name).await {
            Ok(path) if path.is_empty() => Ok(None),
            Ok(path) => Ok(Some(ScopePath(PathBuf::from(path)))),
            Err(source) if is_error(&source, "NoSuchUnit") => Ok(None),
            Err(source) => Err(Error::Request {
                request: "find",
                unit: name.to_owned(),
                source: Box::new(source),
            }),
        }
    }

    async fn control_group(&self, name: &str) -> zbus::Result<String> {
        let unit = self.manager.get_unit(name).await?;
        let connection = self.manager.inner().connection();
        let scope = ScopeUnitProxy::builder(connection)
            .path(unit)?
            // One answer is all that is wanted; a cache would fetch every property and listen for changes.
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await?;
        scope.control_group().await
    }

    /// Sends a request that begins a job, and waits for its end. Ends are listened for beforehand: a quick one would
    /// be missed otherwise.
    async fn run(
        &self,
        request: Request<'_>,
        start: impl Future<Output = zbus::Result<OwnedObjectPath>>,
    ) -> Result<()> {
        let waiting = async {
            let mut ends = self
                .manager
                .receive_job_removed()
                .await
                .map_err(|source| request.refused(source))?;
            let job = start.await.map_err(|source| request.refused(source))?;
            while let Some(end) = ends.next().await {
                let end = end.args().map_err(|source| request.refused(source))?;
                if end.job.as_ref() == job.as_ref() {
                    return request.judge(end.result);
                }
            }
            Err(Error::Closed {
                unit: request.unit.to_owned(),
            })
        };
        tokio::time::timeout(JOB_DEADLINE, waiting)
            .await
            .unwrap_or_else(|_| {
                Err(Error::Deadline {
                    request: request.verb,
                    unit: request.unit.to_owned(),
                })
            })
    }
}

/// The user's message bus. Root of a user namespace is the user outside it: that one the bus knows.
async fn user_bus() -> zbus::Result<zbus::Connection> {
    let own =
        std::fs::metadata("/proc/self").map_or(0, |of| std::os::unix::fs::MetadataExt::uid(&of));
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let user = outer_id(&map, own).unwrap_or(own);
    let variable = |name| std::env::var(name).ok().filter(|it| !it.is_empty());
    let address = variable("DBUS_SESSION_BUS_ADDRESS").unwrap_or_else(|| {
        let directory = variable("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{user}"));
        format!("unix:path={directory}/bus")
    });
    zbus::connection::Builder::address(address.as_str())?
        .user_id(user)
        .build()
        .await
}

/// The id outside the user namespace of one inside (user_namespaces(7)).
fn outer_id(map: &str, inner: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (from, to, count) = (
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
        );
        let offset = inner.checked_sub(from)?;
        (offset < count).then(|| to + offset)
    })
}

/// What is asked, for errors.
#[derive(Clone, Copy)]
struct Request<'a> {
    verb: &'static str,
    unit: &'a str,
}

impl Request<'_> {
    fn refused(&self, source: zbus::Error) -> Error {
        if is_error(&source, "UnitExists") {
            return Error::Exists {
                unit: self.unit.to_owned(),
            };
        }
        Error::Request {
            request: self.verb,
            unit: self.unit.to_owned(),
            source: Box::new(source),
        }
    }

    fn judge(&self, result: &str) -> Result<()> {
        if result == "done" {
            return Ok(());
        }
        Err(Error::Job {
            request: self.verb,
            unit: self.unit.to_owned(),
            result: result.to_owned(),
        })
    }
}

/// True for an error with systemd's name `org.freedesktop.systemd1.<name>`.
fn is_error(error: &zbus::Error, name: &str) -> bool {
    match error {
        zbus::Error::MethodError(found, _, _) => found
            .strip_prefix("org.freedesktop.systemd1.")
            .is_some_and(|found| found == name),
        _ => false,
    }
}

/// The scope's properties (systemd.scope(5), systemd.resource-control(5)). Delegation also means that systemd leaves
/// an OOM kill below it alone (`OOMPolicy=continue`).
fn properties<'a>(scope: &Scope<'a>) -> Vec<(&'a str, Value<'a>)> {
    let stop_timeout_usec = u64::try_from(scope.stop_timeout.as_micros()).unwrap_or(u64::MAX);
    let mut properties = vec![
        ("Description", Value::from(scope.description)),
        ("Slice", Value::from(scope.slice)),
        ("PIDs", Value::from(scope.pids.to_vec())),
        ("Delegate", Value::from(true)),
        ("TimeoutStopUSec", Value::from(stop_timeout_usec)),
        // A scope whose processes were killed is no failed unit to be looked after.
        ("CollectMode", Value::from("inactive-or-failed")),
    ];
    if !scope.before.is_empty() {
        properties.push(("Before", Value::from(scope.before.to_vec())));
    }
    // Of two of one name the last counts.
    properties.extend(scope.properties.iter().map(Property::to_pair));
    properties
}

/// The parts of systemd's manager that are used.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;

    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        auxiliary: &[(&str, Vec<(&str, Value<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;

    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;

    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Value<'_>)],
    ) -> zbus::Result<()>;

    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

/// A scope unit.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Scope",
    default_service = "org.freedesktop.systemd1",
    gen_blocking = false
)]
trait ScopeUnit {
    #[zbus(property)]
    fn control_group(&self) -> zbus::Result<String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_known_outside_their_namespace() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(outer_id(map, 0), Some(1000));
        assert_eq!(outer_id(map, 7), Some(100_006));
        assert_eq!(outer_id(map, 70_000), None);
        assert_eq!(outer_id("0 0 4294967295\n", 1000), Some(1000));
    }
}
