//! Secrets with credentials for registries: the two types that Kubernetes has for them.

use k8s_openapi::api::core::v1::Secret;
use podling_images::Keyring;

/// The type of a Secret with `~/.docker/config.json` in it.
pub const DOCKER_CONFIG_JSON: &str = "kubernetes.io/dockerconfigjson";
/// The type of a Secret with the older `~/.dockercfg` in it.
pub const DOCKER_CFG: &str = "kubernetes.io/dockercfg";

/// True for a Secret of one of the two types.
pub(super) fn is_one(secret: &Secret) -> bool {
    let type_ = secret.type_.as_deref();
    type_ == Some(DOCKER_CONFIG_JSON) || type_ == Some(DOCKER_CFG)
}

/// The credentials in a Secret of one of the two types.
///
/// # Errors
/// When it is of another type, or does not hold what its type says; without a word of what is in it.
pub fn read(secret: &Secret) -> Result<Keyring, String> {
    let keyring = match secret.type_.as_deref() {
        Some(DOCKER_CONFIG_JSON) => {
            Keyring::from_docker_config_json(value(secret, ".dockerconfigjson")?)
        }
        Some(DOCKER_CFG) => Keyring::from_docker_cfg(value(secret, ".dockercfg")?),
        other => {
            let other = other.unwrap_or("Opaque");
            return Err(format!(
                "it is of type {other}, not {DOCKER_CONFIG_JSON} or {DOCKER_CFG}"
            ));
        }
    };
    // The cause may quote the text.
    keyring.map_err(|error| error.to_string())
}

fn value<'a>(secret: &'a Secret, key: &str) -> Result<&'a [u8], String> {
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    let text = secret.string_data.as_ref().and_then(|data| data.get(key));
    // As Kubernetes merges them: `stringData` wins.
    text.map(|text| text.as_bytes())
        .or(data.map(|value| value.0.as_slice()))
        .ok_or_else(|| format!("it has no key `{key}`"))
}
