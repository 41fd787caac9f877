//! systemd's manager on the system bus: transient scopes (org.freedesktop.systemd1(5)).

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, Value};

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
    /// systemd refused a request.
    #[error("systemd did not {request} {unit}")]
    Request {
        /// `start` or `stop`.
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
    /// How much of the CPU it gets beside others of its slice, 1 to 10000; others have 100.
    pub cpu_weight: u64,
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
        if !crate::runs_the_machine() {
            return Ok(None);
        }
        let connection = zbus::Connection::system().await.map_err(Error::Connect)?;
        let manager = ManagerProxy::new(&connection)
            .await
            .map_err(Error::Connect)?;
        // Without it systemd announces no job's end.
        manager.subscribe().await.map_err(Error::Connect)?;
        Ok(Some(Self { manager }))
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
fn properties<'a>(scope: &Scope<'a>) -> Vec<(&'static str, Value<'a>)> {
    let stop_timeout_usec = u64::try_from(scope.stop_timeout.as_micros()).unwrap_or(u64::MAX);
    let mut properties = vec![
        ("Description", Value::from(scope.description)),
        ("Slice", Value::from(scope.slice)),
        ("PIDs", Value::from(scope.pids.to_vec())),
        ("Delegate", Value::from(true)),
        ("CPUWeight", Value::from(scope.cpu_weight)),
        ("TimeoutStopUSec", Value::from(stop_timeout_usec)),
        // A scope whose processes were killed is no failed unit to be looked after.
        ("CollectMode", Value::from("inactive-or-failed")),
    ];
    if !scope.before.is_empty() {
        properties.push(("Before", Value::from(scope.before.to_vec())));
    }
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
