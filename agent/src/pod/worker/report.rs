//! What the node tells of a pod: its status, what it waits for, and its end, which outlives the node.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use podling_runtime::chain;

use super::Worker;
use crate::node::Wait;
use crate::pod::final_status;
use crate::pod::images::State;
use crate::pod::pull_secrets;
use crate::pod::status::{self, ImageFacts, Waiting};
use crate::store::Object;

impl Worker {
    /// Brings status and waits up to date.
    pub(super) fn publish(&self) {
        let Some((object, pod)) = self.object() else {
            return;
        };
        if self.link.is_some() && self.snapshot.is_none() {
            // A supervisor that was just found has not said yet how its pod is.
            return;
        }
        let before = self.status_before(&object);
        if self.snapshot.is_none() && before.as_deref().is_some_and(status::is_terminal) {
            // An end that an earlier agent saw: nothing is known here that could be added.
            self.context.set_waits(&self.uid, self.waits(&object, &pod));
            return;
        }
        let mut facts = status::Facts {
            snapshot: self.snapshot.as_ref(),
            host_ip: Some(self.context.host_ip),
            pod_ips: self
                .connection
                .as_ref()
                .map(|c| c.pod_ips.clone())
                .unwrap_or_default(),
            sandbox_ready: self.connection.is_some() && self.link.is_some(),
            failure: self.failure.clone(),
            start_time: Some(self.started),
            generation: i64::try_from(object.generation).ok(),
            ..status::Facts::default()
        };
        let spec = pod.spec.clone().unwrap_or_default();
        for container in spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
        {
            let name = container.image.as_deref().unwrap_or_default();
            match self.images.state(name) {
                Some(State::Ready(image)) => {
                    facts
                        .images
                        .insert(container.name.clone(), ImageFacts::of(name, image));
                }
                Some(state) => {
                    let shown = state.shown(name);
                    facts
                        .waiting
                        .extend(shown.map(|shown| (container.name.clone(), shown)));
                }
                None => {}
            }
            if let Some(trouble) = &self.trouble {
                facts
                    .waiting
                    .entry(container.name.clone())
                    .or_insert_with(|| Waiting {
                        reason: trouble.reason.to_owned(),
                        message: trouble.message.clone(),
                    });
            }
        }
        let status = status::status(&pod, &facts, before.as_deref(), Timestamp::now());
        self.keep_if_final(before.as_deref(), &status);
        self.context
            .store
            .set_status(&object.key, &self.uid, status);
        self.context.set_waits(&self.uid, self.waits(&object, &pod));
    }

    /// What the pod waits for, now.
    fn waits(&self, object: &Object, pod: &Pod) -> Vec<Wait> {
        let mut waits = Vec::new();
        if let Some(trouble) = &self.trouble {
            waits.push(
                Wait::of_pod(trouble.reason, &trouble.message)
                    .since(Some(trouble.since))
                    .until(Some(trouble.retry_at)),
            );
        }
        let deleted = object.deletion.map(|deletion| deletion.requested_at);
        if let Some(since) = deleted.or_else(|| self.context.store.ending(&self.uid)) {
            let message = "it is being ended";
            waits.push(Wait::of_pod("Terminating", message).since(Some(since)));
        }
        if let Some(failure) = &self.failure {
            waits.push(Wait::of_pod(&failure.reason, &failure.message));
        }
        if let Some(problem) = &self.pull_secrets.problem
            && !self.images.are_ready()
        {
            waits.push(Wait::of_pod(pull_secrets::MISSING, problem));
        }
        for container in pod
            .spec
            .iter()
            .flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
        {
            let name = container.image.as_deref().unwrap_or_default();
            let state = self.images.state(name);
            waits.extend(
                state
                    .into_iter()
                    .flat_map(|it| of_image(&container.name, name, it)),
            );
        }
        waits.extend(self.snapshot.iter().flat_map(crate::node::why::of_snapshot));
        waits
    }

    /// Writes down a status that has become final, and what is learnt of it later: a pod that was given up has failed
    /// before its containers have ended.
    fn keep_if_final(&self, before: Option<&PodStatus>, status: &PodStatus) {
        let dir = self.context.data_dir(&self.uid);
        let is_kept = before == Some(status) && final_status::path(&dir).exists();
        if !status::is_terminal(status) || is_kept {
            return;
        }
        if let Err(error) = final_status::write(&dir, status) {
            tracing::warn!(dir = %dir.display(), error = chain(&error), "the pod's end is not kept over a reboot");
        }
    }

    /// Tells the store of an end that an earlier node saw.
    pub(super) fn recall_final(&self) {
        let Some((object, _)) = self.object() else {
            return;
        };
        if let Some(status) = final_status::read(&self.context.data_dir(&self.uid)) {
            self.context
                .store
                .set_status(&object.key, &self.uid, status);
        }
    }
}

/// Why a container waits for its image: that it is being pulled, and what went wrong before.
fn of_image(container: &str, image: &str, state: &State) -> impl Iterator<Item = Wait> + use<> {
    let (pulling, until) = match state {
        State::Pulling { since, .. } => {
            let message = format!("image {image} is being pulled");
            let wait = Wait::of_container(container, "Pulling", message);
            (Some(wait.since(Some(*since))), None)
        }
        State::Failed { retry, .. } => (None, retry.map(|(_, at)| at)),
        State::Ready(_) => (None, None),
    };
    let shown = state.shown(image);
    let failed = shown.map(|it| Wait::of_container(container, it.reason, it.message).until(until));
    pulling.into_iter().chain(failed)
}
