//! The images of one pod: found, made or pulled, with back-off.
//!
//! ```text
//!            ┌─ here, and the policy is content ─► Ready
//!  Unknown ──┤
//!            └─► Pulling ──┬─► Ready
//!                  ▲       └─► Failed (shown as ErrImagePull, then as ImagePullBackOff) ─┐
//!                  └───────────── 10 s, doubling to 300 s; new credentials ──────────────┘
//! ```
//!
//! An image must be allowed by the signature policy of the node, whether it comes or is here; one that is here and not
//! allowed is as good as none, unless the container runs it already. So is one for another platform, which somebody may have pulled
//! to take it elsewhere: the node's own is pulled in its place, unless the pod says `Never`.
//!
//! Until an image's layers stand in the pod's plan, where collectors look, the image is held: its name may come to mean
//! another image meanwhile, and then nothing else would keep its files.
//!
//! A difference to the kubelet: with `imagePullPolicy: Always` and a registry that cannot be reached, an image that is
//! here is used, with a line in the log. A node without network must start what it last knew.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use oci_spec::image::ConfigBuilder;
use podling_images::{
    FileSource, Image, ImageFile, ImageHold, ImageStore, Keyring, Platform,
    Policy as SignaturePolicy, PullError, PullOptions, Reference,
};
use podling_runtime::chain;
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use state::{Policy, State};

use super::context::Context;
use crate::node::config::Config;
use crate::node::garbage::{self, disk_space};
use crate::node::{registries, trust};

/// The image that the agent makes of its own program.
const DEMO_REPOSITORY: &str = "demo";
/// What is tried again after a back-off.
const PULL_FAILURES: [&str; 3] = [PULL_FAILED, NO_SPACE, trust::NOT_ALLOWED];
/// Its registry, which does not exist.
const DEMO_REGISTRY: &str = "podling.local";
/// The reason of a pull that failed.
const PULL_FAILED: &str = "ErrImagePull";
/// The reason of a pull that found no space for the image: who is to make some is not told to look at the image's name.
pub(crate) const NO_SPACE: &str = "ErrImageNoSpace";
/// The longest time that a pull's error is shown before the back-off: what the kubelet waits after a sync that failed.
const ERROR_SHOWN_MAX: Duration = Duration::from_secs(10);

/// The end of a pull.
#[derive(Debug)]
pub struct Pulled {
    image: String,
    /// What was tried.
    keyring: Keyring,
    result: Result<Found, Failure>,
}

/// An image that is here, and stays.
#[derive(Debug)]
struct Found {
    image: Arc<Image>,
    hold: ImageHold,
}

/// Why an image does not come: the word for the container's state, and the text.
type Failure = (&'static str, String);

/// What is here of an image.
struct Here {
    found: Found,
    /// It is what the container runs already: nothing is asked of it.
    runs: bool,
    /// Why it may not be used.
    refusal: Option<Refusal>,
}

/// Why an image that is here may not be used.
enum Refusal {
    /// The signature policy does not allow it, for this reason.
    Signature(String),
    /// It is for a platform that this node is not.
    Platform(Platform),
}

/// The images of one pod, by what the manifest calls them.
#[derive(Debug)]
pub struct Images {
    context: Arc<Context>,
    states: BTreeMap<String, State>,
    /// Of images that are ready and in no plan yet.
    holds: BTreeMap<String, ImageHold>,
    failures: BTreeMap<String, u32>,
    /// What the pod brings along.
    keyring: Keyring,
    done: mpsc::Sender<Pulled>,
}

impl Images {
    /// No images yet; the ends of pulls come through the receiver.
    #[must_use]
    pub fn new(context: Arc<Context>) -> (Self, mpsc::Receiver<Pulled>) {
        // One pull for each image of the pod at most: 16 never fill while the worker reads.
        let (done, receiver) = mpsc::channel(16);
        let images = Self {
            context,
            states: BTreeMap::new(),
            holds: BTreeMap::new(),
            failures: BTreeMap::new(),
            keyring: Keyring::default(),
            done,
        };
        (images, receiver)
    }

    /// How an image is doing.
    #[must_use]
    pub fn state(&self, image: &str) -> Option<&State> {
        self.states.get(image)
    }

    /// The pod's own credentials. With new ones, what failed is tried again at once.
    pub fn set_keyring(&mut self, keyring: Keyring) {
        if self.keyring == keyring {
            return;
        }
        self.keyring = keyring;
        self.failures.clear();
        self.states.retain(
            |_, state| !matches!(state, State::Failed { reason, .. } if PULL_FAILURES.contains(reason)),
        );
    }

    /// Forgets what the pod no longer names: an image that it names again is looked for again.
    pub fn keep_only(&mut self, named: &BTreeSet<&str>) {
        let is_named = |image: &String| named.contains(image.as_str());
        self.holds.retain(|image, _| is_named(image));
        self.states
            .retain(|image, state| is_named(image) || matches!(state, State::Pulling { .. }));
    }

    /// The pod's plan is written, with all images that are ready: they are held by it.
    pub fn are_planned(&mut self) {
        self.holds.clear();
    }

    fn ready(&mut self, image: &str, found: Found) {
        self.holds.insert(image.to_owned(), found.hold);
        self.states
            .insert(image.to_owned(), State::Ready(found.image));
    }

    /// True when all images that were asked for are here.
    #[must_use]
    pub fn are_ready(&self) -> bool {
        self.states
            .values()
            .all(|state| matches!(state, State::Ready(_)))
    }

    /// Sees to it that an image comes, if it has not. What is here is taken whatever the policies say if it is what the
    /// container runs already: it has these layers below it.
    pub async fn ensure(&mut self, image: &str, policy: Policy, running: Option<&[PathBuf]>) {
        match self.states.get(image) {
            Some(State::Ready(_) | State::Pulling { .. }) => return,
            Some(State::Failed { retry: None, .. }) if policy != Policy::Never => return,
            Some(State::Failed {
                retry: Some((at, _)),
                ..
            }) if Instant::now() < *at => return,
            Some(State::Failed { .. }) | None => {}
        }
        let reference = match Reference::parse(image) {
            Ok(reference) => reference,
            Err(error) => {
                let message = format!("Failed to apply default image tag \"{image}\": {error}");
                self.fail(image, "InvalidImageName", message, None);
                return;
            }
        };
        let is_demo = is_demo(&reference);
        let here = match self.find(&reference, running).await {
            Ok(here) => here,
            Err(message) => {
                self.back_off(image, (PULL_FAILED, message));
                return;
            }
        };
        match here {
            Some(Here {
                found,
                runs,
                refusal: None,
            }) if runs || is_demo || policy != Policy::Always => self.ready(image, found),
            // Nothing else may come: who brought it may have an emulator for it.
            Some(Here {
                found,
                refusal: Some(Refusal::Platform(_)),
                ..
            }) if policy == Policy::Never => self.ready(image, found),
            Some(Here {
                refusal: Some(Refusal::Signature(refusal)),
                ..
            }) if policy == Policy::Never => {
                self.back_off(image, not_allowed(image, &refusal));
            }
            None if policy == Policy::Never && !is_demo => {
                let message =
                    format!("Container image \"{image}\" is not present with pull policy of Never");
                // Looked for again, since somebody may load it.
                let retry = Some(Duration::from_secs(5));
                self.fail(image, "ErrImageNeverPull", message, retry);
            }
            here => self.pull(image, reference, here),
        }
    }

    /// Looks on this machine; unless it is what runs already, judges what is there by the signature policy and the
    /// platform.
    async fn find(
        &self,
        reference: &Reference,
        running: Option<&[PathBuf]>,
    ) -> Result<Option<Here>, String> {
        let store = self.context.images.clone();
        let context = Arc::clone(&self.context);
        let reference = reference.clone();
        let running = running.map(<[PathBuf]>::to_vec);
        // The pod's manifest is known: what is found now is not removed as garbage.
        let _stays = self.context.garbage.hold().await;
        let _alone = match is_demo(&reference) {
            true => Some(self.context.demo_image.lock().await),
            false => None,
        };
        blocking(move || {
            let found = store.resolve(&reference).map_err(|error| chain(&error))?;
            let image = match found {
                None if is_demo(&reference) => build_demo(&store, &reference)?,
                Some(found) => found,
                None => return Ok(None),
            };
            let runs = running.is_some_and(|layers| layers == image.layers);
            let refusal = match runs || is_demo(&reference) {
                true => None,
                false => refusal(&store, &reference, &image, &context.config),
            };
            // Somebody else's collector may have been faster: then it is not here.
            let found = hold(&store, image)?;
            Ok(found.map(|found| Here {
                found,
                runs,
                refusal,
            }))
        })
        .await
    }

    fn pull(&mut self, image: &str, reference: Reference, here: Option<Here>) {
        tracing::info!(image, "pulling image");
        let since = Timestamp::now();
        let failed = self.state(image).and_then(|state| state.shown(image));
        self.states
            .insert(image.to_owned(), State::Pulling { since, failed });
        let context = Arc::clone(&self.context);
        let done = self.done.clone();
        let image = image.to_owned();
        let keyring = self.keyring.clone();
        tokio::spawn(async move {
            let Ok(_permit) = context.pulls.acquire().await else {
                return;
            };
            let result = match trust::policy(&context.config) {
                Ok(policy) => pull(&context, &image, &reference, &keyring, policy, here).await,
                Err(error) => match here {
                    Some(Here {
                        found,
                        refusal: None,
                        ..
                    }) => Ok(found),
                    _ => Err(not_allowed(&image, &chain(&error))),
                },
            };
            context.garbage.look();
            // The worker may have ended meanwhile.
            done.send(Pulled {
                image,
                keyring,
                result,
            })
            .await
            .unwrap_or_default();
        });
    }

    /// Takes note of the end of a pull.
    pub fn pulled(&mut self, pulled: Pulled) {
        match pulled.result {
            Ok(found) => {
                tracing::info!(image = pulled.image, digest = %found.image.digest, "pulled image");
                self.failures.remove(&pulled.image);
                self.ready(&pulled.image, found);
            }
            // The pod has got other credentials meanwhile.
            Err(_) if pulled.keyring != self.keyring => {
                self.states.remove(&pulled.image);
            }
            Err(failure) => self.back_off(&pulled.image, failure),
        }
    }

    fn back_off(&mut self, image: &str, (reason, message): Failure) {
        let failures = self.failures.entry(image.to_owned()).or_default();
        let delay = delay(
            *failures,
            self.context.config.back_off.image_initial_ms,
            self.context.config.back_off.image_max_ms,
        );
        *failures = failures.saturating_add(1);
        tracing::warn!(image, error = message, retry_in = ?delay, "image not pulled");
        self.fail(image, reason, message, Some(delay));
    }

    fn fail(
        &mut self,
        image: &str,
        reason: &'static str,
        message: String,
        retry: Option<Duration>,
    ) {
        let now = Instant::now();
        let back_off_from = retry
            .filter(|_| reason == PULL_FAILED)
            .map(|delay| now + (delay / 2).min(ERROR_SHOWN_MAX));
        let retry = retry.map(|delay| {
            let at = Timestamp::now()
                .saturating_add(jiff::SignedDuration::try_from(delay).unwrap_or_default());
            (now + delay, at.unwrap_or(Timestamp::MAX))
        });
        self.states.insert(
            image.to_owned(),
            State::Failed {
                reason,
                message,
                retry,
                back_off_from,
            },
        );
    }

    /// When the first failed image after this time is tried again, or shows something else.
    #[must_use]
    pub fn next_change(&self, after: Instant) -> Option<Instant> {
        let times = self.states.values().flat_map(|state| match state {
            State::Failed {
                retry,
                back_off_from,
                ..
            } => [retry.map(|(at, _)| at), *back_off_from],
            State::Pulling { .. } | State::Ready(_) => [None, None],
        });
        times.flatten().filter(|at| *at > after).min()
    }
}

/// One pull, judged by the policy. An image that is here and allowed stands in for a registry that cannot be reached.
async fn pull(
    context: &Arc<Context>,
    image: &str,
    reference: &Reference,
    keyring: &Keyring,
    policy: Option<Arc<SignaturePolicy>>,
    here: Option<Here>,
) -> Result<Found, Failure> {
    let options = PullOptions {
        keyring: keyring.clone(),
        registries: registries::settings(&context.config),
        platform: context.config.platform(),
        policy,
        ..PullOptions::default()
    };
    let error = match context.images.pull(reference, &options).await {
        Ok(pulled) => {
            let store = context.images.clone();
            let found = blocking(move || hold(&store, pulled)).await;
            let vanished = || "it was pulled, and removed at once by another".to_owned();
            let found = found.and_then(|found| found.ok_or_else(vanished));
            return found.map_err(|message| (PULL_FAILED, message));
        }
        Err(error) => error,
    };
    let (reason, text) = explain(context, &error).await;
    match here {
        Some(Here {
            found,
            refusal: None,
            ..
        }) if error.is_transient() => {
            let error = chain(&error);
            tracing::warn!(
                image,
                error,
                "registry not reached; using the image that is here"
            );
            Ok(found)
        }
        _ if matches!(error, PullError::Distrust(_)) => Err(not_allowed(image, &text)),
        Some(Here {
            refusal: Some(Refusal::Signature(refusal)),
            ..
        }) => Err(not_allowed(
            image,
            &format!("{refusal}; pulled again: {text}"),
        )),
        Some(Here {
            refusal: Some(Refusal::Platform(platform)),
            ..
        }) => Err((
            reason,
            format!("{text}; the image that is here is for {platform}"),
        )),
        _ => Err((reason, text)),
    }
}

/// Sees to it that an image stays; none if it is gone already.
fn hold(store: &ImageStore, image: Image) -> Result<Option<Found>, String> {
    let hold = store.hold(&image).map_err(|error| chain(&error))?;
    Ok(hold.map(|hold| Found {
        image: Arc::new(image),
        hold,
    }))
}

/// As the kubelet words it.
fn not_allowed(image: &str, reason: &str) -> Failure {
    let message =
        format!("image pull failed for {image} because the signature validation failed: {reason}");
    (trust::NOT_ALLOWED, message)
}

/// Why an image that is here may not be used; none if it may.
fn refusal(
    store: &ImageStore,
    reference: &Reference,
    image: &Image,
    config: &Config,
) -> Option<Refusal> {
    let own = config.platform().unwrap_or_else(Platform::current);
    let distrust = match trust::policy(config) {
        Ok(None) => None,
        Ok(Some(policy)) => store
            .judge(reference, &policy)
            .err()
            .map(|error| chain(&error)),
        Err(error) if trust::was_allowed(image) => {
            let error = chain(&error);
            tracing::warn!(%reference, error, "using an image that an earlier signature policy allowed");
            None
        }
        Err(error) => Some(chain(&error)),
    };
    let foreign = || Some(image.platform()).filter(|platform| !own.runs(platform));
    distrust
        .map(Refusal::Signature)
        .or_else(|| foreign().map(Refusal::Platform))
}

/// Why a pull failed and what may help. That a disk is full is told to who removes images.
async fn explain(context: &Arc<Context>, error: &PullError) -> Failure {
    let is_full = disk_space::is_out_of_space(error);
    let remedy = if is_full {
        let looking = Arc::clone(context);
        let remedy = blocking(move || Ok(garbage::full_remedy(&looking))).await;
        // Told afterwards: what goes now was still there when it was looked.
        context.garbage.disk_is_full();
        remedy.ok()
    } else {
        registries::remedy(error)
    };
    let text = match remedy {
        Some(remedy) => format!("{} ({remedy})", chain(error)),
        None => chain(error),
    };
    (if is_full { NO_SPACE } else { PULL_FAILED }, text)
}

/// The delay after a number of earlier failures.
fn delay(failures: u32, initial_ms: u64, max_ms: u64) -> Duration {
    let factor = 1_u64.checked_shl(failures.min(32)).unwrap_or(u64::MAX);
    Duration::from_millis(initial_ms.saturating_mul(factor).min(max_ms))
}

/// The image that the agent makes of its own program.
pub(crate) fn demo_reference() -> Option<Reference> {
    Reference::parse(&format!("{DEMO_REGISTRY}/{DEMO_REPOSITORY}")).ok()
}

fn is_demo(reference: &Reference) -> bool {
    reference.registry() == DEMO_REGISTRY && reference.repository() == DEMO_REPOSITORY
}

/// Makes the demo image of this very program.
fn build_demo(store: &ImageStore, reference: &Reference) -> Result<Image, String> {
    let directory = |path: &str, mode| ImageFile {
        path: PathBuf::from(path),
        mode,
        source: FileSource::Directory,
    };
    let text = |path: &str, text: &str| ImageFile {
        path: PathBuf::from(path),
        mode: 0o644,
        source: FileSource::Bytes(text.as_bytes().to_vec()),
    };
    let files = [
        directory("/tmp", 0o1777),
        text(
            "/etc/passwd",
            "root:x:0:0:root:/:/\nnobody:x:65534:65534:nobody:/:/\n",
        ),
        text("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ImageFile {
            path: PathBuf::from("/podling"),
            mode: 0o755,
            source: FileSource::Host(PathBuf::from("/proc/self/exe")),
        },
    ];
    let config = ConfigBuilder::default()
        .entrypoint(vec!["/podling".to_owned(), "demo".to_owned()])
        .env(vec!["PATH=/".to_owned()])
        .build()
        .map_err(|error| chain(&error))?;
    store
        .build_from_files(reference, &files, &config)
        .map_err(|error| chain(&error))
}

/// Runs blocking work; a panic in it becomes an error.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_most() {
        let secs: Vec<u64> = (0..8)
            .map(|n| delay(n, 10_000, 300_000).as_secs())
            .collect();
        assert_eq!(secs, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(delay(u32::MAX, 10_000, 300_000).as_secs(), 300);
    }
}
