//! The credentials that a pod brings along for its images: the Secrets of `imagePullSecrets`, as the kubelet uses them
//! (`MakeDockerKeyring` and `getPullSecretsForPod` of Kubernetes). A Secret that is missing or unusable is told of and
//! stops nothing: the image may need no credentials, or the node may have them.

use k8s_openapi::api::core::v1::PodSpec;
use podling_images::Keyring;

use super::env::Objects;
use crate::manifest::pull_secret;

/// The reason that Kubernetes gives in an event.
pub const MISSING: &str = "FailedToRetrieveImagePullSecret";

/// What a pod's pull secrets come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullSecrets {
    /// All credentials.
    pub keyring: Keyring,
    /// What is wrong with some of the Secrets, for people.
    pub problem: Option<String>,
}

impl PullSecrets {
    /// Reads the Secrets that a pod names, in its namespace.
    #[must_use]
    pub fn of(spec: &PodSpec, objects: &dyn Objects) -> Self {
        let mut keyring = Keyring::default();
        let mut problems = Vec::new();
        for reference in spec.image_pull_secrets.iter().flatten() {
            let name = &reference.name;
            let read = match objects.secret(name) {
                Some(secret) => pull_secret::read(&secret),
                None => Err("there is no such Secret in the pod's namespace".to_owned()),
            };
            match read {
                Ok(found) => keyring.extend(found),
                Err(why) => problems.push(format!("{name}: {why}")),
            }
        }
        let problem = (!problems.is_empty()).then(|| {
            format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed",
                problems.join("; ")
            )
        });
        Self { keyring, problem }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::{ConfigMap, LocalObjectReference, Secret};

    use super::*;
    use crate::manifest::pull_secret::{DOCKER_CFG, DOCKER_CONFIG_JSON};

    struct Secrets(BTreeMap<&'static str, Secret>);

    impl Objects for Secrets {
        fn config_map(&self, _: &str) -> Option<Arc<ConfigMap>> {
            None
        }
        fn secret(&self, name: &str) -> Option<Arc<Secret>> {
            self.0.get(name).cloned().map(Arc::new)
        }
    }

    fn secret(type_: &str, key: &str, text: &str) -> Secret {
        Secret {
            type_: Some(type_.to_owned()),
            data: Some([(key.to_owned(), ByteString(text.into()))].into()),
            ..Secret::default()
        }
    }

    fn of(names: &[&str]) -> PullSecrets {
        let entry = r#"{"reg.example": {"username": "me", "password": "secret"}}"#;
        let auths = format!(r#"{{"auths": {entry}}}"#);
        let secrets = Secrets(BTreeMap::from([
            (
                "new",
                secret(DOCKER_CONFIG_JSON, ".dockerconfigjson", &auths),
            ),
            ("old", secret(DOCKER_CFG, ".dockercfg", entry)),
            ("opaque", secret("Opaque", ".dockerconfigjson", &auths)),
            ("empty", secret(DOCKER_CONFIG_JSON, "x", &auths)),
            (
                "broken",
                secret(DOCKER_CONFIG_JSON, ".dockerconfigjson", "secret"),
            ),
        ]));
        let spec = PodSpec {
            image_pull_secrets: Some(
                names
                    .iter()
                    .map(|name| LocalObjectReference {
                        name: (*name).to_owned(),
                    })
                    .collect(),
            ),
            ..PodSpec::default()
        };
        PullSecrets::of(&spec, &secrets)
    }

    #[test]
    fn both_types_of_secrets_are_read() {
        let secrets = of(&["new", "old"]);
        assert_eq!(secrets.problem, None);
        assert_eq!(secrets.keyring.find("reg.example", "x").len(), 2);
    }

    #[test]
    fn a_secret_that_is_no_use_is_named_without_its_content_and_the_others_count() {
        let secrets = of(&["gone", "opaque", "empty", "broken", "new"]);
        assert_eq!(secrets.keyring.find("reg.example", "x").len(), 1);
        let problem = secrets.problem.expect("a problem");
        for part in ["gone: ", "opaque: ", "empty: ", "broken: "] {
            assert!(problem.contains(part), "{problem}");
        }
        assert!(
            !problem.contains("me:") && !problem.contains("new:"),
            "{problem}"
        );
        assert_eq!(of(&[]), PullSecrets::default());
    }
}
