//! The end of a pod: by itself, when its status and logs stay; or terminated by its supervisor, then taken away.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use podling_runtime::pod::protocol::{Request, STATE_FILE};
use tokio::time::Instant;

use super::{Next, Step, Worker, gather};
use crate::pod::supervisor::SupervisorError;
use crate::pod::{final_status, prepare, teardown};
use crate::store::Object;
use podling_runtime::chain;

/// How much longer than its grace period a pod may take to end before its supervisor is given up: preStop hooks have a
/// floor of 2 s, and a dying process can hang in the kernel for a while.
const OVERTIME: Duration = Duration::from_secs(60);

impl Worker {
    /// The pod has come to its end by itself, or was given up: nothing more is to be started. Once all has ended, the
    /// pod's supervisor is let go and what the pod held is taken back, as the kubelet does with the sandbox of a pod
    /// in a final phase; its status and its logs stay until it is deleted.
    pub(super) async fn rest(&mut self, pod: &Pod) -> Step<Next> {
        if self.retired {
            return Ok(Next::Wait);
        }
        self.waiting = None;
        if self.link.is_some() && !self.has_ended() {
            if self.failure.is_some() {
                let spec = pod.spec.as_ref();
                let grace = spec.and_then(|spec| spec.termination_grace_period_seconds);
                let grace = grace.and_then(|secs| u64::try_from(secs).ok());
                self.terminate(grace.unwrap_or(30), 0)?;
            }
            // Else a supervisor that was just found, and has not said yet how its pod is.
            return Ok(Next::Wait);
        }
        // On disk first: the supervisor's record goes with it.
        self.publish();
        if final_status::read(&self.context.data_dir(&self.uid)).is_none() || !self.release() {
            return Ok(Next::Wait);
        }
        teardown::ended(&self.context, &self.uid).await?;
        self.retired = true;
        tracing::debug!(uid = self.uid, "what the ended pod held is taken back");
        Ok(Next::Wait)
    }

    /// Lets the supervisor of an ended pod go; true once it is gone.
    fn release(&mut self) -> bool {
        let Some(link) = &self.link else {
            return true;
        };
        if self.released {
            let late = self
                .terminating
                .is_some_and(|(_, deadline)| Instant::now() >= deadline);
            if late {
                self.link = None;
            }
            return late;
        }
        self.released = true;
        // A supervisor that is gone already is as good.
        if link.send(&Request::Release).is_err() {
            self.link = None;
            return true;
        }
        self.terminating = Some((0, Instant::now() + OVERTIME));
        false
    }

    /// Tells the supervisor to end the pod, once for each grace period.
    pub(super) fn terminate(&mut self, grace_secs: u64, passed_secs: u64) -> Step<()> {
        if self.terminating.is_some_and(|(told, _)| told <= grace_secs) {
            return Ok(());
        }
        let told_secs = grace_secs;
        let grace_secs = grace_secs.saturating_sub(passed_secs);
        if let Some(link) = &self.link {
            let reason = self
                .failure
                .as_ref()
                .map_or("deleted", |failure| failure.reason.as_str());
            let request = Request::Terminate {
                grace_secs,
                reason: reason.to_owned(),
            };
            link.send(&request)
                .map_err(|e| ("SupervisorFailed", chain(&e)))?;
        }
        let deadline = Instant::now() + Duration::from_secs(grace_secs) + OVERTIME;
        self.terminating = Some((told_secs, deadline));
        Ok(())
    }

    /// Ends the pod and takes everything away; the store hears of it last.
    pub(super) async fn end(
        &mut self,
        grace_secs: u64,
        object: Option<&Arc<Object>>,
    ) -> Step<Next> {
        let is_ended = self.has_ended();
        if self.link.is_none() && !self.released && self.is_resumable() && !is_ended {
            // Its containers may live: only a supervisor ends them properly.
            self.restart_supervisor().await?;
        }
        if self.link.is_some() && !is_ended {
            let passed = object.map_or(0, |object| passed_secs(object, grace_secs));
            self.terminate(grace_secs, passed)?;
            let late = self
                .terminating
                .is_some_and(|(_, deadline)| Instant::now() >= deadline);
            if !late {
                return Ok(Next::Wait);
            }
            tracing::error!(
                uid = self.uid,
                "the pod's supervisor does not end it; killing what is left"
            );
        }
        if is_ended && !self.release() {
            return Ok(Next::Wait);
        }
        self.link = None;
        self.waiting = None;
        self.publish();
        let identity = self
            .plan
            .as_ref()
            .map(|plan| (plan.pod.namespace.clone(), plan.pod.name.clone()));
        let identity = identity.or_else(|| {
            self.key
                .as_ref()
                .map(|key| (key.namespace.clone(), key.name.clone()))
        });
        let finalize = object.is_some_and(|object| object.deletion.is_some());
        teardown::all(
            &self.context,
            &self.uid,
            identity.as_ref().filter(|_| finalize || object.is_none()),
        )
        .await?;
        if let (Some(key), true) = (&self.key, finalize) {
            self.context
                .store
                .finalize(key, &self.uid)
                .map_err(|error| ("StoreFailed", chain(&error)))?;
        }
        tracing::info!(
            uid = self.uid,
            pod = identity.map(|(ns, name)| format!("{ns}/{name}")),
            "pod removed"
        );
        Ok(Next::Done)
    }

    /// True when a supervisor has begun with this pod since the machine started.
    fn is_resumable(&self) -> bool {
        let dir = self.context.run_dir(&self.uid);
        self.plan.is_some() && dir.join(STATE_FILE).exists()
    }

    /// Starts a supervisor on the plan that is there, to end the pod.
    async fn restart_supervisor(&mut self) -> Step<()> {
        let failed = |error: SupervisorError| ("SupervisorFailed", chain(&error));
        let waiting = gather::start(&self.context, &self.uid)
            .await
            .map_err(failed)?;
        prepare::place_again(&self.context, &self.uid, self.plan.as_ref(), &waiting)
            .await
            .map_err(failed)?;
        match waiting.begin().await {
            Ok(link) => self.link = Some(link),
            // What cannot be resumed is killed with its cgroup.
            Err(error) => tracing::warn!(
                uid = self.uid,
                error = chain(&error),
                "supervisor not resumed"
            ),
        }
        self.terminating = None;
        self.snapshot = None;
        Ok(())
    }
}

/// How much of its grace period a pod that is being deleted has had, in whole seconds.
fn passed_secs(object: &Object, grace_secs: u64) -> u64 {
    let Some(deletion) = object.deletion else {
        return 0;
    };
    let passed = Timestamp::now()
        .duration_since(deletion.requested_at)
        .as_secs();
    // A clock that jumped, or an agent that was away, must not turn a graceful end into a kill.
    u64::try_from(passed)
        .unwrap_or(0)
        .min(grace_secs.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Body, Deletion, Key, Origin, Writer};

    fn deleted(secs_ago: i64) -> Object {
        let requested_at = Timestamp::now() - jiff::SignedDuration::from_secs(secs_ago);
        Object {
            key: Key::pod("default", "web"),
            uid: "u".to_owned(),
            resource_version: 1,
            generation: 1,
            writer: Writer::etcd("/p/"),
            origin: Origin::etcd("/p/web"),
            hash: String::new(),
            created: requested_at,
            deletion: Some(Deletion {
                requested_at,
                grace_secs: None,
            }),
            body: Body::Pod(Arc::default()),
        }
    }

    #[test]
    fn grace_that_has_passed_counts() {
        assert_eq!(passed_secs(&deleted(10), 30), 10);
    }

    #[test]
    fn a_long_absence_leaves_a_second_to_end_well() {
        assert_eq!(passed_secs(&deleted(3600), 30), 29);
        assert_eq!(passed_secs(&deleted(3600), 0), 0);
    }

    #[test]
    fn a_clock_that_was_set_back_costs_nothing() {
        assert_eq!(passed_secs(&deleted(-3600), 30), 0);
    }
}
