//! The task that makes one pod be what the store says.
//!
//! ```text
//!               ┌──────────────────────────── desired ────────────────────────────┐
//!  images, network, supervisor ─► volumes ─► plan.json ─► supervisor lives or is told │ snapshots ─► status
//!               └─────────────────── any step that fails is tried again ───────────┘
//!               ┌──────────────────── deleted, or the node ends ──────────────┐
//!  Terminate ─► Ended ─► Release ─► volumes, network, cgroup, directories ─► store.finalize
//! ```
//!
//! One loop: look at what is wanted and what is there, do what is missing, then wait for the next event. Every step is
//! idempotent and finds out by itself what has been done, so that a worker of a new agent goes on where the last one
//! was killed. Facts live where they are made: in the store (wanted), the supervisor (observed) and on disk; this task
//! keeps only what it would have to ask for again.

mod ending;
mod gather;
mod report;
mod trouble;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use podling_runtime::chain;
use podling_runtime::pod::plan::Plan;
use podling_runtime::pod::protocol::{PLAN_FILE, Reply, Request};
use podling_runtime::pod::snapshot::{Snapshot, Stage};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::context::Context;
use super::images::{Images, Pulled};
use super::network::Connection;
use super::prepare;
use super::pull_secrets::{self, PullSecrets};
use super::status::{self, Waiting};
use super::supervisor::{self, Link, SupervisorError};
use crate::store::{Key, Object};
use trouble::{Trouble, next_alarm};

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
    /// A supervisor that has been started and has no plan yet.
    waiting: Option<supervisor::Waiting>,
    link: Option<Link>,
    snapshot: Option<Snapshot>,
    /// Something may have to be done; else there is only something to tell.
    due: bool,
    /// The plan that the supervisor was last told.
    plan: Option<Plan>,
    /// It did not take that plan.
    refused: bool,
    /// The supervisor at the other end of the link has said which plan it has.
    met: bool,
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
    /// When it last looked at what there is to do.
    looked_at: Instant,
    started: Timestamp,
}

/// A step's error: a reason for people, and its text.
pub(super) type Step<T> = Result<T, (&'static str, String)>;

/// What to do after a look around.
enum Next {
    /// Wait for an event.
    Wait,
    /// Look again.
    Again,
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
            waiting: None,
            link: None,
            snapshot: None,
            due: true,
            plan: None,
            refused: false,
            met: false,
            terminating: None,
            released: false,
            retired: false,
            trouble: None,
            failures: 0,
            begun: None,
            losses: 0,
            failure: None,
            measure_at: None,
            looked_at: Instant::now(),
            started: Timestamp::now(),
        }
    }

    /// Works until the pod is gone or let go.
    pub async fn run(mut self) {
        self.adopt();
        loop {
            let must_wait = self
                .trouble
                .as_ref()
                .is_some_and(|trouble| Instant::now() < trouble.retry);
            if self.due && !must_wait {
                self.due = false;
                self.looked_at = Instant::now();
                match self.work().await {
                    Ok(Next::Done) => break,
                    Ok(Next::Again) => {
                        self.due = true;
                        continue;
                    }
                    // The supervisor has yet to say whether it takes its plan now.
                    Ok(Next::Wait) if self.refused => {}
                    Ok(Next::Wait) => self.forget_trouble(),
                    Err((reason, message)) => self.note_trouble(reason, message),
                }
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

    /// The pod in the store, or on its way there, if it is this one.
    fn object(&self) -> Option<(Arc<Object>, Pod)> {
        let (store, key) = (&self.context.store, self.key.as_ref()?);
        let object = match store.coming().get(&self.uid) {
            Some(coming) => coming,
            None => store.get(key).filter(|object| object.uid == self.uid)?,
        };
        let pod = object.to_pod(None)?;
        Some((object, pod))
    }

    /// Waits until the pod is stored; false when it was not.
    async fn is_stored(&self) -> bool {
        let store = &self.context.store;
        store.coming().settled(&self.uid).await;
        let stored = self.key.as_ref().and_then(|key| store.get(key));
        stored.is_some_and(|object| object.uid == self.uid)
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
                    let done = self.keep_running(object, pod).await;
                    // Whatever came of it is told of a pod that others know.
                    if self.is_stored().await {
                        done
                    } else {
                        Ok(Next::Again)
                    }
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

    /// True when a supervisor that was just found has not taken the plan that is on disk: it refused it, or the agent
    /// that wrote it ended before it could say so.
    fn is_behind(&self, snapshot: &Snapshot) -> bool {
        let planned = self.plan.as_ref().map(|plan| plan.generation);
        planned.is_some_and(|planned| planned > snapshot.plan_generation)
            && !matches!(snapshot.stage, Stage::Ended { .. })
    }

    /// Makes the pod run as wanted.
    async fn keep_running(&mut self, object: &Arc<Object>, pod: &Pod) -> Step<Next> {
        self.pull_secrets = self.read_pull_secrets(object, pod);
        self.images.set_keyring(self.pull_secrets.keyring.clone());
        prepare::directories(&self.context, &self.uid)?;
        let (images, connection) = self.gather(pod).await?;
        self.measure_volumes(pod).await?;
        if self.failure.is_some() {
            return Ok(Next::Wait);
        }
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
                        if !self.refused {
                            self.images.are_planned();
                            return Ok(Next::Wait);
                        }
                        plan.generation = before.generation;
                    }
                    prepare::weigh_again(&self.context, &self.uid, before, &plan).await?;
                }
                prepare::write_plan(&self.context, &self.uid, &plan)?;
                self.images.are_planned();
                if !self.refused {
                    tracing::info!(pod = %object.key, generation = plan.generation, "pod changed");
                }
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
        let failed = |error: SupervisorError| ("SupervisorFailed", chain(&error));
        let waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            None => gather::start(&self.context, &self.uid)
                .await
                .map_err(failed)?,
        };
        let place = prepared.place(&waiting).await.map_err(failed)?;
        let mut plan = prepared.plan(&place).await?;
        if let Some(before) = &self.plan {
            keep_sources(&mut plan, before);
        }
        if !self.is_stored().await {
            let reason = "the object store could not take the pod, or it is gone again";
            return Err(("NotStored", reason.to_owned()));
        }
        prepare::write_plan(&self.context, &self.uid, &plan)?;
        self.images.are_planned();
        self.link = Some(waiting.begin().await.map_err(failed)?);
        self.begun = Some(Instant::now());
        self.plan = Some(plan);
        self.refused = false;
        self.terminating = None;
        tracing::info!(pod = %object.key, uid = self.uid, "pod started");
        Ok(())
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

    /// When it must look again although nothing happens.
    fn alarm(&self) -> Option<Instant> {
        let ending = self.terminating.filter(|_| self.link.is_some());
        let others = [
            self.images.next_change(self.looked_at),
            self.measure_at,
            ending.map(|(_, deadline)| deadline),
        ];
        let retry = self.trouble.as_ref().map(|trouble| trouble.retry);
        next_alarm(retry, &others, self.looked_at)
    }

    /// Waits for the next event and takes note of it. Each branch is cancel-safe.
    async fn wait(&mut self) {
        let alarm = self.alarm();
        tokio::select! {
            changed = self.news.changed() => {
                if changed.is_err() {
                    // The dispatcher is gone, and with it the agent.
                    std::future::pending::<()>().await;
                }
                self.trouble = None;
                self.due = true;
            }
            Some(pulled) = self.pulled.recv() => {
                self.images.pulled(pulled);
                self.due = true;
            }
            reply = heard(self.link.as_ref()) => self.hear(reply),
            () = sleep_until(alarm) => self.due = true,
        }
    }

    fn hear(&mut self, reply: Result<Reply, SupervisorError>) {
        match reply {
            Ok(Reply::Snapshot(snapshot)) => {
                // What a pod does while it runs changes nothing of what is wanted of it.
                self.due |= matches!(snapshot.stage, Stage::Ended { .. });
                // Each supervisor is asked once: one that was started again knows what its predecessor took.
                if !std::mem::replace(&mut self.met, true) && self.is_behind(&snapshot) {
                    self.refused = true;
                    self.due = true;
                }
                self.snapshot = Some(*snapshot);
            }
            Ok(Reply::Error { message }) => {
                if self.terminating.is_none() {
                    self.refused = true;
                    self.note_trouble("PlanRefused", message);
                } else {
                    tracing::warn!(uid = self.uid, message, "the supervisor refuses");
                }
            }
            Ok(Reply::Ok) => {
                if std::mem::take(&mut self.refused) {
                    self.forget_trouble();
                }
            }
            Ok(
                Reply::ExecStarted
                | Reply::ExecRefused { .. }
                | Reply::ExecExited { .. }
                | Reply::Attached,
            ) => {}
            Err(error) => self.lose_supervisor(&error),
        }
    }

    fn lose_supervisor(&mut self, error: &SupervisorError) {
        self.link = None;
        self.met = false;
        self.due = true;
        if !self.released {
            tracing::warn!(
                uid = self.uid,
                error = chain(error),
                "the pod's supervisor is gone"
            );
            self.note_loss(chain(error));
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

/// A container that can run is not made to wait by an image that was removed meanwhile, or whose name means another one
/// that does not come.
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
