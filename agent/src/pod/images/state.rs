//! When an image of a pod is fetched, and how that goes.

use std::sync::Arc;

use jiff::Timestamp;
use podling_images::{Image, Reference};
use tokio::time::Instant;

use crate::pod::status::Waiting;

/// When an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Ask the registry, even if there is one of that name here.
    Always,
    /// Only if there is none of that name here.
    IfNotPresent,
    /// Never.
    Never,
}

impl Policy {
    /// `imagePullPolicy`; without one, `Always` for the tag `latest` and `IfNotPresent` for all else.
    #[must_use]
    pub fn of(written: Option<&str>, image: &str) -> Self {
        match written {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some("IfNotPresent") => Self::IfNotPresent,
            _ => match Reference::parse(image) {
                Ok(reference)
                    if reference.digest().is_none() && reference.tag() == Some("latest") =>
                {
                    Self::Always
                }
                _ => Self::IfNotPresent,
            },
        }
    }
}

/// How an image is doing.
#[derive(Debug, Clone)]
pub enum State {
    /// It is being fetched.
    Pulling {
        /// Since when.
        since: Timestamp,
        /// What was shown until now, when it failed to come before.
        failed: Option<Waiting>,
    },
    /// It is here.
    Ready(Arc<Image>),
    /// It is not, and why.
    Failed {
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, `SignatureValidationFailed`.
        reason: &'static str,
        /// For people.
        message: String,
        /// When it is tried again; none: only a new manifest helps.
        retry: Option<(Instant, Timestamp)>,
        /// From when on a pull is shown as being in back-off rather than by its error.
        back_off_from: Option<Instant>,
    },
}

impl State {
    /// What a container of this image shows while the image fails to come: the error first, then, as the kubelet does,
    /// that the next try is waited for, and this also while it is tried. None of an image that has not failed.
    #[must_use]
    pub fn shown(&self, image: &str) -> Option<Waiting> {
        let (reason, message, back_off_from) = match self {
            Self::Failed {
                reason,
                message,
                back_off_from,
                ..
            } => (reason, message, back_off_from),
            Self::Pulling { failed, .. } => return failed.clone(),
            Self::Ready(_) => return None,
        };
        let backs_off = back_off_from.is_some_and(|from| Instant::now() >= from);
        Some(if backs_off {
            Waiting {
                reason: "ImagePullBackOff".to_owned(),
                message: format!("Back-off pulling image \"{image}\": {reason}: {message}"),
            }
        } else {
            Waiting {
                reason: (*reason).to_owned(),
                message: message.clone(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn policies() {
        for (written, image, expected) in [
            (None, "nginx", Policy::Always),
            (None, "nginx:latest", Policy::Always),
            (None, "nginx:1.27", Policy::IfNotPresent),
            (Some("Never"), "nginx", Policy::Never),
            (Some("IfNotPresent"), "nginx", Policy::IfNotPresent),
            (Some("Always"), "nginx:1.27", Policy::Always),
        ] {
            assert_eq!(Policy::of(written, image), expected, "{written:?} {image}");
        }
    }

    #[test]
    fn a_pull_that_failed_shows_its_error_and_then_its_back_off() {
        let failed = |reason, back_off_from| {
            let state = State::Failed {
                reason,
                message: "no such host".to_owned(),
                retry: None,
                back_off_from,
            };
            state.shown("web:1").expect("it failed")
        };
        let now = Instant::now();
        let error = failed("ErrImagePull", Some(now + Duration::from_secs(3600)));
        assert_eq!(
            (&*error.reason, &*error.message),
            ("ErrImagePull", "no such host")
        );
        let back_off = failed("ErrImagePull", Some(now));
        assert_eq!(back_off.reason, "ImagePullBackOff");
        assert_eq!(
            back_off.message,
            "Back-off pulling image \"web:1\": ErrImagePull: no such host"
        );
        assert_eq!(
            failed("ErrImageNeverPull", None).reason,
            "ErrImageNeverPull"
        );
    }

    #[test]
    fn what_failed_is_shown_while_it_is_tried_again() {
        let pulling = |failed| State::Pulling {
            since: Timestamp::UNIX_EPOCH,
            failed,
        };
        let failed = Waiting {
            reason: "ImagePullBackOff".to_owned(),
            message: "Back-off".to_owned(),
        };
        assert_eq!(pulling(None).shown("web:1"), None);
        assert_eq!(pulling(Some(failed.clone())).shown("web:1"), Some(failed));
    }
}
