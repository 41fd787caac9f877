//! The task that makes one pod be what the store says.
//!
//! ```text
//!               ┌────────────────────────── desired ──────────────────────────┐
//!  images ─► network ─► volumes ─► plan.json ─► supervisor started or told     │ snapshots ─► status
//!               └───────────────── any step that fails is tried again ─────────┘
//!               ┌──────────────────── deleted, or the node ends ──────────────┐
//!  Terminate ─► Ended ─► Release ─► volumes, network, cgroup, directories ─► store.finalize
//! ```
//!
//! One loop: look at what is wanted and what is there, do what is missing, then wait for the next event. Every step is
//! idempotent and finds out by itself what has been done, so that a worker of a new agent goes on where the last one
//! was killed. Facts live where they are made: in the store (wanted), the supervisor (observed) and on disk; this task
//! keeps only what it would have to ask for again.

mod ending;
mod report;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use podling_runtime::pod::plan::Plan;
use podling_runtime::pod::protocol::{PLAN_FILE, Reply, Request};
use podling_runtime::pod::snapshot::{Snapshot, Stage};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::builder::ImageState;
use super::context::Context;
use super::images::{Images, Policy, Pulled, State, chain};
use super::network::Connection;
use super::prepare;
use super::pull_secrets::{self, PullSecrets};
use super::status::{self, Waiting};
use super::supervisor::{self, Link, SupervisorError};
use crate::store::{Key, Object};
use report::shown;

/// The first delay after a step that failed.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest: most failures wait for a person, who should not wait for the node.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A supervisor that lived for less is not started again at once for ever: it dies of something that stays.
const SUPERVISOR_SETTLED: Duration = Duration::from_secs(10);
/// How often emptyDir volumes on disk are measured against their `sizeLimit`, as the kubelet's eviction does.
const VOLUME_PERIOD: Duration = Duration::from_secs(10);

/// What the node wants of its workers, beside what the store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Follow the store.
    Follow,
    /// Let go of the pod as it is.
    Leave,
    /// End the pod and remove all of it, though the store wants it.
    Terminate {
        /// Without its grace period.
        now: bool,
    },
}

/// The news for one worker: an order, and a number that grows whenever it should look at the store again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct News {
    /// The order.
    pub order: Order,
    /// How often it was poked.
    pub pokes: u64,
}

/// The task of one pod.
pub struct Worker {
    context: Arc<Context>,
    /// None: an orphan, of which the store knows nothing.
    key: Option<Key>,
    uid: String,
    news: watch::Receiver<News>,
    images: Images,
    pulled: mpsc::Receiver<Pulled>,
    pull_secrets: PullSecrets,
    connection: Option<Connection>,
    link: Option<Link>,
    snapshot: Option<Snapshot>,
    /// The plan that the supervisor was last told.
    plan: Option<Plan>,
    /// The grace period that the supervisor was last told, in seconds.
    terminating: Option<(u64, Instant)>,
    released: bool,
    /// The pod has come to its end, and what it held of the machine was taken back.
    retired: bool,
    /// What went wrong last, and when it is tried again.
    trouble: Option<Trouble>,
    failures: u32,
    /// When the supervisor was last started, and how many in a row were lost soon after.
    begun: Option<Instant>,
    losses: u32,
    /// The pod is given up.
    failure: Option<Waiting>,
    measure_at: Option<Instant>,
    started: Timestamp,
}

/// A step that failed.
struct Trouble {
    reason: &'static str,
    message: String,
    since: Timestamp,
    retry: Instant,
    retry_at: Timestamp,
}

/// A step's error: a reason for people, and its text.
pub(super) type Step<T> = Result<T, (&'static str, String)>;

/// What to do after a look around.
enum Next {
    /// Wait for an event.
    Wait,
    /// The pod is gone, or let go.
    Done,
}

impl Worker {
    /// A worker for a pod of the store, or for what is left of one that the store does not know.
    #[must_use]
    pub fn new(
        context: Arc<Context>,
        key: Option<Key>,
        uid: String,
        news: watch::Receiver<News>,
    ) -> Self {
        let (images, pulled) = Images::new(Arc::clone(&context));
        Self {
            context,
            key,
            uid,
            news,
            images,
            pulled,
            pull_secrets: PullSecrets::default(),
            connection: None,
            link: None,
            snapshot: None,
            plan: None,
            terminating: None,
            released: false,
            retired: false,
            trouble: None,
            failures: 0,
            begun: None,
            losses: 0,
            failure: None,
            measure_at: None,
            started: Timestamp::now(),
        }
    }

    /// Works until the pod is gone or let go.
    pub async fn run(mut self) {
        self.adopt();
        loop {
            let retry = self
                .trouble
                .as_ref()
                .is_some_and(|trouble| Instant::now() < trouble.retry);
            let next = if retry {
                Ok(Next::Wait)
            } else {
                self.work().await
            };
            match next {
                Ok(Next::Done) => break,
                Ok(Next::Wait) if retry => {}
                Ok(Next::Wait) => {
                    self.trouble = None;
                    self.failures = 0;
                }
                Err((reason, message)) => self.note_trouble(reason, message),
            }
            self.publish();
            self.wait().await;
        }
        self.context.set_waits(&self.uid, Vec::new());
    }

    /// Finds what an earlier agent left: its plan, and a supervisor that lives.
    fn adopt(&mut self) {
        self.recall_final();
        let dir = self.context.run_dir(&self.uid);
        self.plan = std::fs::read(dir.join(PLAN_FILE))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match Link::connect(&dir) {
            Ok(link) => {
                tracing::debug!(uid = self.uid, "found the pod's supervisor");
                self.link = Some(link);
            }
            Err(SupervisorError::Client(error)) if error.is_gone() => {}
            Err(error) => tracing::warn!(
                uid = self.uid,
                error = chain(&error),
                "supervisor not reached"
            ),
        }
        if let Some(started) = self
            .object()
            .and_then(|(object, _)| self.status_before(&object))
            .and_then(|s| s.start_time.clone())
        {
            self.started = started.0;
        }
    }

    /// The pod in the store, if it is this one.
    fn object(&self) -> Option<(Arc<Object>, Pod)> {
        let object = self.context.store.get(self.key.as_ref()?)?;
        if object.uid != self.uid {
            return None;
        }
        let pod = object.to_pod(None)?;
        Some((object, pod))
    }

    fn status_before(&self, object: &Object) -> Option<Arc<PodStatus>> {
        self.context.store.status(&object.key)
    }

    /// Looks at what is wanted and what is there, and does what is missing.
    async fn work(&mut self) -> Step<Next> {
        let order = self.news.borrow().order;
        let object = self.object();
        match (order, &object) {
            (Order::Leave, _) => Ok(Next::Done),
            (Order::Follow, Some((object, pod))) if object.deletion.is_none() => {
                if self.is_over(object) {
                    self.rest(pod).await
                } else {
                    self.keep_running(object, pod).await
                }
            }
            (Order::Terminate { now: true }, _) => {
                let object = object.map(|(object, _)| object);
                self.end(0, object.as_ref()).await
            }
            (Order::Follow | Order::Terminate { now: false }, Some((object, _))) => {
                let object = Arc::clone(object);
                self.end(object.grace_secs(), Some(&object)).await
            }
            (Order::Follow | Order::Terminate { now: false }, None) => {
                let grace = self
                    .plan
                    .as_ref()
                    .map_or(30, |plan| plan.termination_grace_secs);
                self.end(grace, None).await
            }
        }
    }

    /// True when the supervisor says that nothing runs and nothing will.
    fn has_ended(&self) -> bool {
        matches!(
            self.snapshot,
            Some(Snapshot {
                stage: Stage::Ended { .. },
                ..
            })
        )
    }

    /// True when the pod has come to its end by itself, or was given up.
    fn is_over(&self, object: &Object) -> bool {
        let terminal = self
            .status_before(object)
            .is_some_and(|status| status::is_terminal(&status));
        self.failure.is_some() || self.has_ended() || (terminal && self.snapshot.is_none())
    }

    /// Makes the pod run as wanted.
    async fn keep_running(&mut self, object: &Arc<Object>, pod: &Pod) -> Step<Next> {
        let adopting = self.plan.is_some();
        self.pull_secrets = self.read_pull_secrets(object, pod);
        self.images.set_keyring(self.pull_secrets.keyring.clone());
        prepare::directories(&self.context, &self.uid)?;
        let images = self.image_states(pod, adopting).await;
        if self.connection.is_none() || !adopting {
            self.connection = Some(Connection::make(&self.context, &self.uid, pod).await?);
        }
        self.measure_volumes(pod).await?;
        let Some(connection) = self.connection.clone() else {
            return Ok(Next::Wait);
        };
        let generation = self.plan.as_ref().map_or(1, |plan| plan.generation + 1);
        let place = self.plan.as_ref().map(|plan| supervisor::Place {
            path: plan.cgroup.path.clone(),
            scope: plan.cgroup.scope,
        });
        let wanted = prepare::Wanted {
            context: Arc::clone(&self.context),
            uid: self.uid.clone(),
            pod: pod.clone(),
            connection,
            images,
            generation,
        };
        let prepared = wanted.volumes().await?;
        match (&self.link, place) {
            (Some(link), Some(place)) => {
                let mut plan = prepared.plan(&place).await?;
                if let Some(before) = &self.plan {
                    keep_sources(&mut plan, before);
                    if is_same(&plan, before) {
                        return Ok(Next::Wait);
                    }
                    prepare::weigh_again(&self.context, &self.uid, before, &plan).await?;
                }
                prepare::write_plan(&self.context, &self.uid, &plan)?;
                tracing::info!(pod = %object.key, generation = plan.generation, "pod changed");
                link.send(&Request::Reload)
                    .map_err(|e| ("SupervisorFailed", chain(&e)))?;
                self.plan = Some(plan);
            }
            (Some(_), None) | (None, _) => self.start(object, prepared).await?,
        }
        Ok(Next::Wait)
    }

    fn read_pull_secrets(&self, object: &Object, pod: &Pod) -> PullSecrets {
        let spec = pod.spec.clone().unwrap_or_default();
        let secrets = PullSecrets::of(&spec, &self.context.objects(&object.key.namespace));
        if let Some(problem) = &secrets.problem
            && self.pull_secrets.problem != secrets.problem
        {
            tracing::warn!(pod = %object.key, reason = pull_secrets::MISSING, "{problem}");
        }
        secrets
    }

    /// Starts the pod's supervisor: a new pod's first, or one for what a dead one left.
    async fn start(&mut self, object: &Arc<Object>, prepared: prepare::Prepared) -> Step<()> {
        let dir = self.context.run_dir(&self.uid);
        let failed = |error: SupervisorError| ("SupervisorFailed", chain(&error));
        let waiting = supervisor::start(&self.context.supervisor, &dir).map_err(failed)?;
        let place = prepared.place(&waiting).await.map_err(failed)?;
        let mut plan = prepared.plan(&place).await?;
        if let Some(before) = &self.plan {
            keep_sources(&mut plan, before);
        }
        prepare::write_plan(&self.context, &self.uid, &plan)?;
        self.link = Some(waiting.begin().await.map_err(failed)?);
        self.begun = Some(Instant::now());
        self.plan = Some(plan);
        self.terminating = None;
        tracing::info!(pod = %object.key, uid = self.uid, "pod started");
        Ok(())
    }

    /// The images of the pod's containers; pulls are begun for those that are missing.
    async fn image_states(&mut self, pod: &Pod, adopting: bool) -> BTreeMap<String, ImageState> {
        let mut states = BTreeMap::new();
        let Some(spec) = &pod.spec else {
            return states;
        };
        let had: Vec<String> = self
            .plan
            .iter()
            .flat_map(|plan| &plan.containers)
            .map(|container| container.name.clone())
            .collect();
        for container in spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
        {
            let name = container.image.as_deref().unwrap_or_default();
            let policy = Policy::of(container.image_pull_policy.as_deref(), name);
            let adopt = adopting && had.contains(&container.name);
            self.images.ensure(name, policy, adopt).await;
            let state = match self.images.state(name) {
                Some(State::Ready(image)) => ImageState::Ready(Box::new(image.as_ref().clone())),
                Some(State::Failed {
                    reason,
                    message,
                    retry,
                }) => {
                    let shown = shown(name, reason, message, retry.is_some());
                    ImageState::Waiting {
                        reason: shown.reason,
                        message: shown.message,
                    }
                }
                Some(State::Pulling { .. }) | None => ImageState::Waiting {
                    reason: "ContainerCreating".to_owned(),
                    message: format!("Pulling image \"{name}\""),
                },
            };
            states.insert(container.name.clone(), state);
        }
        states
    }

    /// Gives up a pod whose emptyDir on disk has grown past its limit.
    async fn measure_volumes(&mut self, pod: &Pod) -> Step<()> {
        if !prepare::has_measured_volumes(pod) {
            self.measure_at = None;
            return Ok(());
        }
        if self.measure_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        self.measure_at = Some(Instant::now() + VOLUME_PERIOD);
        if let Some(message) = prepare::over_limit(&self.context, &self.uid, pod).await? {
            tracing::warn!(uid = self.uid, message, "pod is evicted");
            self.failure = Some(Waiting {
                reason: "Evicted".to_owned(),
                message,
            });
            self.measure_at = None;
            self.terminate(0, 0)?;
        }
        Ok(())
    }

    fn note_trouble(&mut self, reason: &'static str, message: String) {
        let factor = 1_u32.checked_shl(self.failures.min(10)).unwrap_or(u32::MAX);
        let delay = RETRY_FIRST.saturating_mul(factor).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        let is_news = self
            .trouble
            .as_ref()
            .is_none_or(|before| before.message != message);
        if is_news {
            let pod = self.key.as_ref().map(ToString::to_string);
            tracing::warn!(uid = self.uid, pod, reason, "{message}");
        }
        let now = Timestamp::now();
        let since = match &self.trouble {
            Some(before) if !is_news => before.since,
            _ => now,
        };
        let retry_at = now + jiff::SignedDuration::try_from(delay).unwrap_or_default();
        self.trouble = Some(Trouble {
            reason,
            message,
            since,
            retry: Instant::now() + delay,
            retry_at,
        });
    }

    /// The first supervisor that is lost is replaced at once; when its successors do not live either, with a delay.
    fn note_loss(&mut self, message: String) {
        let begun = self.begun.take();
        if begun.is_none_or(|at| at.elapsed() >= SUPERVISOR_SETTLED) {
            self.losses = 0;
            return;
        }
        self.losses = self.losses.saturating_add(1);
        if self.losses > 1 {
            self.failures = self.losses - 2;
            self.note_trouble("SupervisorFailed", message);
        }
    }

    /// Waits for the next event and takes note of it. Each branch is cancel-safe.
    async fn wait(&mut self) {
        let alarm = [
            self.trouble.as_ref().map(|trouble| trouble.retry),
            self.images.next_retry(),
            self.measure_at,
            self.terminating
                .map(|(_, deadline)| deadline)
                .filter(|_| self.link.is_some()),
        ]
        .into_iter()
        .flatten()
        .min();
        tokio::select! {
            changed = self.news.changed() => {
                if changed.is_err() {
                    // The dispatcher is gone, and with it the agent.
                    std::future::pending::<()>().await;
                }
                self.trouble = None;
            }
            Some(pulled) = self.pulled.recv() => self.images.pulled(pulled),
            reply = heard(self.link.as_ref()) => self.hear(reply),
            () = sleep_until(alarm) => {}
        }
    }

    fn hear(&mut self, reply: Result<Reply, SupervisorError>) {
        match reply {
            Ok(Reply::Snapshot(snapshot)) => self.snapshot = Some(*snapshot),
            Ok(Reply::Error { message }) => {
                tracing::warn!(uid = self.uid, message, "the supervisor refuses");
                if self.terminating.is_none() {
                    self.note_trouble("PlanRefused", message);
                }
            }
            Ok(
                Reply::Ok
                | Reply::ExecStarted
                | Reply::ExecRefused { .. }
                | Reply::ExecExited { .. }
                | Reply::Attached,
            ) => {}
            Err(error) => {
                self.link = None;
                if !self.released {
                    tracing::warn!(
                        uid = self.uid,
                        error = chain(&error),
                        "the pod's supervisor is gone"
                    );
                    self.note_loss(chain(&error));
                }
            }
        }
    }
}

/// Sleeps until then; for ever without a time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The supervisor's next word; for ever without a supervisor.
async fn heard(link: Option<&Link>) -> Result<Reply, SupervisorError> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

/// A container that can run is not made to wait by an image that was removed meanwhile.
fn keep_sources(plan: &mut Plan, before: &Plan) {
    use podling_runtime::pod::plan::ContainerSource::{Ready, Waiting};
    for container in &mut plan.containers {
        let old = before
            .containers
            .iter()
            .find(|old| old.name == container.name);
        if let Some(old) = old
            && matches!((&container.source, &old.source), (Waiting { reason, .. }, Ready { .. }) if reason != "CreateContainerConfigError")
            && old.spec_hash == container.spec_hash
        {
            container.source = old.source.clone();
        }
    }
}

fn is_same(plan: &Plan, before: &Plan) -> bool {
    let mut plan = plan.clone();
    plan.generation = before.generation;
    plan == *before
}
