//! What a pod needs before its plan can be made: images, network and a supervisor, each of which takes milliseconds
//! and knows nothing of the others. They are made ready at once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use podling_runtime::chain;
use podling_runtime::pod::plan::ContainerSource;

use super::{Step, Worker};
use crate::pod::builder::{self, ImageState};
use crate::pod::context::Context;
use crate::pod::images::{Images, Policy, State};
use crate::pod::network::Connection;
use crate::pod::supervisor::{self, SupervisorError, Waiting};

/// A container whose image is in the pod's plan.
struct Running<'a> {
    name: &'a str,
    /// Of the image's name, and what else a running container cannot change.
    spec_hash: &'a str,
    /// Of the image that the name meant.
    layers: &'a [PathBuf],
}

impl Worker {
    /// Makes all of it ready, or finds it so. A supervisor is left waiting, also where the network fails: the next try
    /// takes it.
    pub(super) async fn gather(
        &mut self,
        pod: &Pod,
    ) -> Step<(BTreeMap<String, ImageState>, Connection)> {
        let (context, uid) = (&self.context, &self.uid);
        // The containers that an adopted pod has keep their images, whatever the registry says now. One that waits has none
        // yet.
        let running: Vec<Running<'_>> = self
            .plan
            .iter()
            .flat_map(|plan| &plan.containers)
            .filter_map(|container| match &container.source {
                ContainerSource::Ready { rootfs, .. } => Some(Running {
                    name: &container.name,
                    spec_hash: &container.spec_hash,
                    layers: &rootfs.layers,
                }),
                ContainerSource::Waiting { .. } => None,
            })
            .collect();
        let images = image_states(&mut self.images, pod, &running);
        let connection = async {
            match &self.connection {
                // A running pod's network is made once in an agent's life: to find it again, or to repair it.
                Some(connection) if self.plan.is_some() => Ok(connection.clone()),
                _ => Connection::make(context, uid, pod).await,
            }
        };
        let supervisor = async {
            let needed = self.link.is_none() && self.waiting.is_none();
            match needed {
                true => start(context, uid).await.map(Some),
                false => Ok(None),
            }
        };
        let (images, connection, supervisor) = tokio::join!(images, connection, supervisor);
        let started = supervisor.map_err(|error| ("SupervisorFailed", chain(&error)))?;
        if started.is_some() {
            self.waiting = started;
        }
        let connection = connection?;
        self.connection = Some(connection.clone());
        Ok((images, connection))
    }
}

/// Starts a supervisor for the pod, on a thread that may wait for the disk.
pub(super) async fn start(context: &Arc<Context>, uid: &str) -> Result<Waiting, SupervisorError> {
    let dir = context.run_dir(uid);
    let for_thread = Arc::clone(context);
    let started =
        tokio::task::spawn_blocking(move || supervisor::start(&for_thread.supervisor, &dir));
    started
        .await
        .unwrap_or_else(|error| Err(SupervisorError::Thread(error)))
}

/// The images of the pod's containers; pulls are begun for those that are missing. A container that runs already takes the
/// image that it has.
async fn image_states(
    images: &mut Images,
    pod: &Pod,
    running: &[Running<'_>],
) -> BTreeMap<String, ImageState> {
    let mut states = BTreeMap::new();
    let Some(spec) = &pod.spec else {
        return states;
    };
    let containers = || {
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
    };
    let named = containers().map(|container| container.image.as_deref().unwrap_or_default());
    images.keep_only(&named.collect());
    for container in containers() {
        let name = container.image.as_deref().unwrap_or_default();
        let policy = Policy::of(container.image_pull_policy.as_deref(), name);
        let hash = builder::spec_hash(container);
        let layers = running
            .iter()
            .find(|it| it.name == container.name && it.spec_hash == hash)
            .map(|it| it.layers);
        images.ensure(name, policy, layers).await;
        states.insert(
            container.name.clone(),
            image_state(images.state(name), name),
        );
    }
    states
}

fn image_state(state: Option<&State>, name: &str) -> ImageState {
    if let Some(State::Ready(image)) = state {
        return ImageState::Ready(Box::new(image.as_ref().clone()));
    }
    match state.and_then(|state| state.shown(name)) {
        Some(shown) => ImageState::Waiting {
            reason: shown.reason,
            message: shown.message,
        },
        None => ImageState::Waiting {
            reason: "ContainerCreating".to_owned(),
            message: format!("Pulling image \"{name}\""),
        },
    }
}
