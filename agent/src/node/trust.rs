//! Which images may come and run: the signature policy, as the agent, `podling run` and `podling images` all find it.
//!
//! It is read when it is needed, each time anew, so that a change counts at once and an idle node reads nothing.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use podling_images::trust::Verdict;
use podling_images::{Distrust, Image, Policy, PolicyError};

use super::Config;

/// The policy that is taken if it is there and the configuration names none.
pub const DEFAULT_POLICY: &str = "/etc/podling/policy.json";
/// What a container's state says while its image is not allowed; the word of the CRI.
pub const NOT_ALLOWED: &str = "SignatureValidationFailed";

/// The policy as it is now; none if the configuration names none and there is none at its usual place: then all images
/// are allowed.
///
/// # Errors
/// When there is one, or should be, that cannot be used: nothing may come then.
pub fn policy(config: &Config) -> Result<Option<Arc<Policy>>, PolicyError> {
    let path = match &config.images.signature_policy {
        Some(path) => path,
        None if is_absent(Path::new(DEFAULT_POLICY)) => return Ok(None),
        None => Path::new(DEFAULT_POLICY),
    };
    Ok(Some(Arc::new(Policy::load(path)?)))
}

/// True when there is certainly no such file. One that may not be seen, or a link to nothing, is there: it is then an error
/// that it cannot be read.
fn is_absent(path: &Path) -> bool {
    matches!(std::fs::symlink_metadata(path), Err(e) if e.kind() == ErrorKind::NotFound)
}

/// True when an image that is here was allowed by a policy when it came. While today's cannot be read, such an image may
/// run: a broken file must not stop a node that starts after a power cut.
#[must_use]
pub fn was_allowed(image: &Image) -> bool {
    let verdict = image.trust.as_ref().map(|trust| &trust.verdict);
    matches!(
        verdict,
        Some(Verdict::Allowed { .. } | Verdict::Signed { .. })
    )
}

/// What may help with an image that is not allowed.
#[must_use]
pub fn remedy(distrust: &Distrust) -> String {
    match distrust {
        Distrust::Rejected { policy, .. } => {
            format!("if it should be allowed, add a scope to {}", policy.display())
        }
        Distrust::Unsigned { .. } => "sign it: `cosign sign --key cosign.key IMAGE`".to_owned(),
        Distrust::NotAccepted { .. } => {
            "compare the key and `signedIdentity` of the policy with what signed it; classic signatures of cosign are for \
             the repository without a tag, which needs matchRepository, and bundles of cosign 3 name no image, which \
             needs `\"acceptUnnamed\": true` (`load --accept-unnamed`)"
                .to_owned()
        }
        Distrust::CannotBeSigned { .. } => {
            "`skopeo copy docker-archive:FILE oci-archive:FILE2:NAME` makes an OCI archive of it".to_owned()
        }
        Distrust::NoKey { .. } => "--key FILE names a public key".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_is_a_link_to_nothing_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.json");
        assert!(is_absent(&path));
        std::os::unix::fs::symlink("nothing", &path).unwrap();
        assert!(!is_absent(&path));
    }

    #[test]
    fn a_policy_that_is_named_and_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        let path = dir.path().join("policy.json");
        config.images.signature_policy = Some(path.clone());
        assert!(policy(&config).is_err());
        std::fs::write(&path, r#"{"default": [{"type": "reject"}]}"#).unwrap();
        assert_eq!(policy(&config).unwrap().unwrap().file(), path);
        std::fs::write(&path, "{").unwrap();
        assert!(policy(&config).is_err());
    }
}
